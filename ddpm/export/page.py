"""A folder of static files that samples in a browser: no server computes anything, nothing is loaded from elsewhere."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ddpm.config import GenerateConfig
from ddpm.diffusion.editing import repaint_moves, usual_jump
from ddpm.diffusion.guidance import Guidance
from ddpm.diffusion.noise import normal_table
from ddpm.diffusion.process import TARGETS, Target, eps_from_x_0, q_posterior_mean, q_sample
from ddpm.diffusion.samplers import reverse_variance
from ddpm.diffusion.schedule import Schedule, build_schedule, spaced
from ddpm.export.browser_runtime import FILES
from ddpm.export.denoise import evaluated, export, restore_denoise
from ddpm.models.checkpoint import Checkpoint
from ddpm.utils.files import atomic_path, write_json
from ddpm.utils.seeds import stream_number

SOURCES = Path(__file__).with_name("page")
_STEP_COUNTS = (5, 10, 15, 20, 30, 40, 50, 75, 100)  # to choose from, beside the settings' own
RESAMPLINGS = 5  # of completing a drawing: somebody waits for it


def write_page(
    folder: Path,
    checkpoint: Checkpoint,
    name: str,
    settings: GenerateConfig,
    seed: int,
    runtime: Path,
    written: Path | None = None,
) -> None:
    """Write the page of a checkpoint, which messages call ``name``, into ``folder``.

    settings, seed: what it samples with until the visitor changes it. runtime: see `fetch_runtime`. written: a folder
    with the ONNX files that `write_export` writes of its networks, where they are there. Raises what `restore_denoise`
    and `export` do.
    """
    shutil.copytree(SOURCES, folder, dirs_exist_ok=True)
    networks = evaluated(checkpoint, settings)
    copies = {f"runtime/{file}": runtime / file for file in FILES}
    copies |= {f"{file}.onnx": written / f"{file}.onnx" for file in networks} if written else {}
    for file, source in copies.items():
        with atomic_path(folder / file) as temporary:
            shutil.copyfile(source, temporary)
    if not written:
        for file, group in networks.items():
            export(folder / file, restore_denoise(checkpoint, name, group), "onnx", batch_sizes=())
    centroids = checkpoint.conditioning.centroids
    arrays = {
        "normal": normal_table(torch.device("cpu")),
        "centroids": torch.empty(0) if centroids is None else centroids,
    }
    for file, array in arrays.items():
        with atomic_path(folder / f"{file}.bin") as temporary:
            temporary.write_bytes(array.numpy().astype("<f4").tobytes())
    write_json(folder / "model.json", model_facts(checkpoint, settings, seed))


def model_facts(checkpoint: Checkpoint, settings: GenerateConfig, seed: int) -> dict[str, Any]:
    """What the page's scripts know of the model: its images, labels, the settings, and the steps by their number.

    Raises DdpmError for settings with more steps than the network was trained on.
    """
    schedule, target = build_schedule(checkpoint.diffusion), TARGETS[checkpoint.diffusion.target]
    conditioning = checkpoint.conditioning
    counts = sorted({settings.steps, *(count for count in _STEP_COUNTS if count <= len(schedule))})
    facts = {
        "image": asdict(checkpoint.spec),
        "classes": conditioning.classes,
        "frequencies": conditioning.frequencies.tolist() if conditioning.count else None,
        "settings": {
            "seed": str(seed),  # JavaScript rounds large numbers
            "steps": settings.steps,
            "sampler": "ddim" if settings.sampler == "ddim" else "ddpm",  # what the page knows
            "guidance": settings.guidance if checkpoint.null_label else 1.0,
            "autoguidance": settings.autoguidance if "guide" in evaluated(checkpoint, settings) else 1.0,
            "guidance_rescale": settings.guidance_rescale,
            "clip": bool(settings.clip),
        },
        "streams": {"generate": stream_number("generate", settings.replicate)},
        "steps": {count: step_weights(schedule, target, settings, count) for count in counts},
    }
    return facts if checkpoint.null_label else facts | {"null_label": False}


def step_weights(schedule: Schedule, target: Target, settings: GenerateConfig, count: int) -> dict[str, Any]:
    """The ``count`` steps as weights, float64 [count], the last to be taken first, as in a `Schedule`.

    Every step of the samplers is linear, so that its formula, applied to ones and zeros, gives its weights: ``ddpm``
    and ``ddim``: x_{t−1} = x_0 · x̂_0 + x_t · x_t + noise · eps. ``keep``: x_{t−1} of known pixels, x_0 · x_0 + noise ·
    eps. ``again``: back to x_t from x_{t−1}, x_t · x_{t−1} + noise · eps (DDPM, eq. 2). ``t``: the training times.
    ``predicted``: what the network predicts, ``target``, is a multiple of x̂_0 + predicted · x_t. ``moves``: see
    `repaint_moves`. ``guided``, ``autoguided``: where there is guidance.
    """
    steps = spaced(schedule, count, settings.spacing)
    alpha_bar, alpha_bar_prev, beta = steps.alpha_bar, steps.alpha_bar_prev, steps.beta
    one, zero = torch.ones_like(beta), torch.zeros_like(beta)
    # A learned variance differs from pixel to pixel: the page takes the one that needs no network.
    sigma = reverse_variance(steps, "small" if settings.variance == "learned" else settings.variance).sqrt()
    sigma[0] = 0.0
    weights = {
        "ddpm": {
            "x_0": q_posterior_mean(one, zero, alpha_bar, alpha_bar_prev),
            "x_t": q_posterior_mean(zero, one, alpha_bar, alpha_bar_prev),
            "noise": sigma,
        },
        "ddim": {
            "x_0": q_sample(one, alpha_bar_prev, eps_from_x_0(zero, alpha_bar, one)),
            "x_t": q_sample(zero, alpha_bar_prev, eps_from_x_0(one, alpha_bar, zero)),
            "noise": zero,
        },
        "keep": {"x_0": q_sample(one, alpha_bar_prev, zero), "noise": q_sample(zero, alpha_bar_prev, one)},
        "again": {"x_t": q_sample(one, 1.0 - beta, zero), "noise": q_sample(zero, 1.0 - beta, one)},
    }
    trained, trained_prev = schedule.alpha_bar[steps.times], schedule.alpha_bar_prev[steps.times]
    of_x_0 = target.of(one, trained, eps_from_x_0(zero, trained, one), trained_prev)
    of_x_t = target.of(zero, trained, eps_from_x_0(one, trained, zero), trained_prev)
    intervals = {"guided": settings.guidance_interval, "autoguided": settings.autoguidance_interval}
    single = {key: Guidance(2.0, ends).is_active(trained) for key, ends in intervals.items()}
    single |= {"t": steps.times, "predicted": of_x_t / of_x_0}
    listed = {key: {part: values.tolist() for part, values in parts.items()} for key, parts in weights.items()}
    moves = {"moves": repaint_moves(count, usual_jump(count), RESAMPLINGS)}
    return {key: values.tolist() for key, values in single.items()} | moves | listed
