"""The page's JavaScript against the Python that it follows, number for number, in Node.js."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.config import Config
from ddpm.data.image_set import denormalize, normalize
from ddpm.diffusion.denoiser import Denoiser
from ddpm.diffusion.editing import repaint, repaint_moves, slerp, usual_jump
from ddpm.diffusion.guidance import Guidance
from ddpm.diffusion.noise import ImageNoise, normal_noise, normal_table
from ddpm.diffusion.process import TARGETS, eps_from_x_0
from ddpm.diffusion.samplers import SAMPLERS
from ddpm.diffusion.schedule import build_schedule, respace, trailing_times
from ddpm.export.page import RESAMPLINGS, SOURCES, step_weights
from ddpm.models.conditioning import Conditioning
from ddpm.sampling.conditions import nearest_labels
from ddpm.sampling.labels import balanced_labels
from ddpm.utils.seeds import stream_number

STEPS = 15
SHAPE = (1, 5, 5)
CPU = torch.device("cpu")
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(not NODE, reason="Node.js is not installed")


@pytest.fixture
def node(tmp_path: Path) -> Callable[..., Any]:
    """Runs JavaScript that may use the page's scripts, the table of noise and a value; returns what it returns."""
    for name in ("noise", "sampling"):
        shutil.copy(SOURCES / f"scripts/{name}.js", tmp_path / f"{name}.mjs")
    (tmp_path / "normal.bin").write_bytes(normal_table(CPU).numpy().tobytes())

    def run(body: str, **given: Any) -> Any:  # noqa: ANN401
        (tmp_path / "given.json").write_text(json.dumps(given))
        (tmp_path / "main.mjs").write_text(f"""
            import {{ readFileSync }} from "node:fs";
            import * as noises from "./noise.mjs";
            import * as sampling from "./sampling.mjs";
            const table = new Float32Array(new Uint8Array(readFileSync("normal.bin")).buffer);
            const given = JSON.parse(readFileSync("given.json"));
            const found = await (async () => {{ {body} }})();
            console.log(JSON.stringify(found, (_, part) => (ArrayBuffer.isView(part) ? [...part] : part)));
        """)
        done = subprocess.run([str(NODE), "main.mjs"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize("seed", [0, 3407, (5 << 32) + 7, 2**63 - 1])
def test_the_noise_has_the_same_bits(node: Callable[..., Any], seed: int):
    images, stream = [1, 2, 2**31 + 5], stream_number("generate", 0)
    found = node(
        "return noises.normalNoise(table, given.seed, given.stream, 3, given.images, 784)",
        seed=str(seed),
        stream=stream,
        images=images,
    )
    expected = normal_noise(seed, stream, 3, torch.tensor(images), (784,)).flatten()
    assert torch.equal(torch.tensor(found), expected)


def test_philox_gives_the_published_vector_of_random123(node: Callable[..., Any]):
    counter, key = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]
    found = node("return noises.philox(given.counter, given.key)", counter=counter, key=key)
    assert found == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def conditioning(classes: int = 10, clusters: int = 7) -> Conditioning:
    random = torch.Generator().manual_seed(1)
    frequencies = torch.rand(max(1, classes), clusters, generator=random, dtype=torch.float64)
    centroids = torch.rand(max(1, classes), clusters, 196, generator=random)
    return Conditioning(classes, frequencies / frequencies.sum(), centroids)


def model(labels: Conditioning) -> dict[str, Any]:
    image = {"size": 28, "channels": 1, "classes": 10}
    return {"image": image, "classes": labels.classes, "frequencies": labels.frequencies.tolist()}


@pytest.mark.parametrize("wanted", [None, 0, 7])
def test_the_labels_of_image_numbers_are_the_same(node: Callable[..., Any], wanted: int | None):
    labels, numbers = conditioning(), list(range(1, 1001))
    found = node(
        "return sampling.balancedLabels(given.numbers, sampling.labelWeights(given.model, given.wanted))",
        numbers=numbers,
        model=model(labels),
        wanted=wanted,
    )
    assert found == balanced_labels(numbers, labels.weights(None if wanted is None else [wanted])).tolist()


@pytest.mark.parametrize(("classes", "wanted"), [(10, 4), (10, None), (0, None)])
def test_the_label_of_known_pixels_is_the_same(node: Callable[..., Any], classes: int, wanted: int | None):
    labels, rng = conditioning(classes, clusters=40), np.random.default_rng(0)
    assert labels.centroids is not None
    for known in (np.ones((28, 28), bool), rng.random((28, 28)) < 0.3, np.arange(784).reshape(28, 28) < 300):
        image = rng.integers(0, 256, (1, 1, 28, 28), dtype=np.uint8)
        expected = nearest_labels(labels, image, known[None, None], None if wanted is None else np.array([wanted]))
        found = node(
            "return sampling.nearestLabel(given.model, new Float32Array(given.centroids), given.image, given.known, "
            "given.wanted)",
            model=model(labels),
            centroids=labels.centroids.flatten().tolist(),
            image=image.flatten().tolist(),
            known=known.astype(int).flatten().tolist(),
            wanted=wanted,
        )
        assert found == (-1 if expected is None else expected.item())


class Sampling:
    """A run of five images by a simple prediction of x_0, which both languages compute with the same bits."""

    def __init__(self, config: Config) -> None:
        self.settings = config.generate
        self.schedule = build_schedule(config.diffusion)
        self.steps = respace(self.schedule, trailing_times(self.schedule, STEPS))
        self.weights = step_weights(self.schedule, TARGETS[config.diffusion.target], config.generate, STEPS)
        self.noise = ImageNoise(11, 0, range(1, 6), SHAPE, CPU)

    def denoise(self, x_t: Tensor, t: int) -> Tensor:
        return (x_t * (0.25 + t / 1024)).clamp(-1, 1)

    DENOISE = """
        const { steps, stream } = given, numbers = [1, 2, 3, 4, 5];
        const noise = noises.imageNoise(table, 11, stream, numbers, 25), x = noise();
        const clamped = (value) => Math.min(1, Math.max(-1, value));
        const denoise = async (x_t, step) => x_t.map((value) => clamped(value * (0.25 + steps.t[step] / 1024)));
    """


@pytest.fixture
def sampling(configure: Callable[..., Config]) -> Sampling:
    return Sampling(configure())


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_a_sampling_run_has_the_same_result(node: Callable[..., Any], sampling: Sampling, sampler: str):
    found, watched = node(
        sampling.DENOISE
        + """
        const watched = [], onStep = (taken, x_t, x_0) => watched.push([taken, x_t[0], x_0[0]]);
        return [await sampling.sample({ steps, sampler: given.sampler, denoise, x, noise, onStep }), watched];
        """,
        steps=sampling.weights,
        stream=stream_number("generate", 0),
        sampler=sampler,
    )
    seen: list[list[float]] = []
    expected = SAMPLERS.build(sampler, sampling.settings)(
        sampling.denoise,
        sampling.noise(),
        sampling.steps,
        sampling.noise,
        lambda taken, x_t, x_0: seen.append([taken, x_t.flatten()[0].item(), x_0.flatten()[0].item()]),
    )
    result = torch.tensor(found).view_as(expected)
    if sampler == "ddpm":
        assert torch.equal(result, expected)
    else:  # which PyTorch computes by way of eps
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert [row[0] for row in watched] == [row[0] for row in seen] == list(range(STEPS + 1))
    assert np.allclose(watched, seen, atol=1e-5)


def test_completing_has_the_same_result(node: Callable[..., Any], sampling: Sampling):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8))
    known = torch.from_numpy(np.random.default_rng(1).random((5, *SHAPE)) < 0.4)
    found = node(
        sampling.DENOISE
        + """
        const image = sampling.fromBytes(given.image), known = given.known;
        return sampling.complete({ steps, denoise, x, noise, image, known });
        """,
        steps=sampling.weights,
        stream=stream_number("generate", 0),
        image=image.flatten().tolist(),
        known=known.int().flatten().tolist(),
    )
    x_0, moves = normalize(image), sampling.weights["moves"]
    assert moves == repaint_moves(STEPS, usual_jump(STEPS), RESAMPLINGS) != [-1] * STEPS
    variance = sampling.settings.variance
    expected = repaint(
        sampling.denoise, x_0, ~known, sampling.steps, sampling.noise, usual_jump(STEPS), RESAMPLINGS, variance
    )
    result = torch.tensor(found).view_as(expected)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    assert np.array_equal(denormalize(result)[known.numpy()], image.numpy()[known.numpy()])


def test_guidance_goes_along_the_differences_where_it_is_active(node: Callable[..., Any]):
    found = node(
        """
        const steps = { t: [4, 9], guided: [false, true], autoguided: [true, true] };
        const network = async (x, t, labels) => x.map((value, i) => value * 0.5 + labels[i] + t / 8);
        const guide = async (x, t, labels) => x.map((value, i) => value * 0.25 + labels[i]);
        const by = (changes) => sampling.denoiser({ network, guide, steps, clip: false, ...changes });
        const x = new Float32Array([0.5, -1]), labels = [2, 3];
        return [
          await by({ guidance: 3 })(x, 0, labels), await by({ guidance: 3 })(x, 1, labels),
          await by({ autoguidance: 2 })(x, 0, labels), await by({ clip: true })(x, 1, labels),
        ].map((part) => [...part]);
        """
    )
    # x̂_0 = x / 2 + label + t / 8, that of the null label −1; the guide's is x / 4 + label.
    assert found == [[2.75, 3.0], [3.375 + 2 * 3, 3.625 + 2 * 4], [2.75 + 0.625, 3.0 + 0.25], [1, 1]]


@pytest.mark.parametrize("name", list(TARGETS))
def test_guidance_is_rescaled_as_in_python(node: Callable[..., Any], sampling: Sampling, name: str):
    schedule, target, step = sampling.schedule, TARGETS[name], 9
    settings = sampling.settings.model_copy(update={"guidance_interval": (0.0, 1e9)})
    weights, t = step_weights(schedule, target, settings, STEPS), int(sampling.steps.times[step])
    alpha_bar, alpha_bar_prev = schedule.alpha_bar[t].float(), schedule.alpha_bar_prev[t].float()

    def predict(x_t: Tensor, _: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        x_0 = x_t**2 * (labels + 1.5)[:, None, None, None]
        return target.of(x_0, alpha_bar, eps_from_x_0(x_t, alpha_bar, x_0), alpha_bar_prev)

    x_t, labels = sampling.noise(), torch.arange(5)
    denoiser = Denoiser(predict, target, schedule, clip=False, guidance=Guidance(2.5), rescale=0.6, labels=labels)
    assert (denoiser(x_t, t) - replace(denoiser, rescale=0.0)(x_t, t)).abs().max() > 0.1
    found = node(
        """
        const { steps, stream, labels, step } = given, numbers = [1, 2, 3, 4, 5];
        const x = noises.imageNoise(table, 11, stream, numbers, 25)();
        const network = async (x_t, t, all) => x_t.map((value, i) => value ** 2 * (all[Math.floor(i / 25)] + 1.5));
        const how = { guidance: 2.5, guidance_rescale: 0.6, clip: false };
        return sampling.denoiser({ network, steps, length: 25, ...how })(x, step, labels);
        """,
        steps=weights,
        stream=stream_number("generate", 0),
        labels=labels.tolist(),
        step=step,
    )
    torch.testing.assert_close(torch.tensor(found).view_as(x_t), denoiser(x_t, t), rtol=1e-4, atol=1e-4)


def test_the_arc_between_two_noises_is_the_same(node: Callable[..., Any]):
    one, other = (normal_noise(seed, 1, 0, torch.tensor([1]), SHAPE) for seed in (1, 2))
    at = [0.0, 0.25, 0.5, 1.0]
    found = node(
        "return sampling.slerp(given.one, given.other, given.at)",
        one=one.flatten().tolist(),
        other=other.flatten().tolist(),
        at=at,
    )
    expected = slerp(one.expand(4, *SHAPE), other.expand(4, *SHAPE), torch.tensor(at).view(-1, 1, 1, 1))
    torch.testing.assert_close(torch.tensor(found).view_as(expected), expected, rtol=0, atol=1e-6)


def test_between_two_labels_the_predictions_are_mixed(node: Callable[..., Any]):
    found = node(
        """
        const denoise = async (x_t, step, labels) => x_t.map((value, i) => value + labels[i >> 1]);
        return sampling.blended(denoise, [1, 1, 1], [3, 3, 3], [0, 0.5, 1])(new Float32Array([0, 1, 0, 1, 0, 1]), 0);
        """
    )
    assert found == [1, 2, 2, 3, 3, 4]


def test_pixels_are_rounded_alike(node: Callable[..., Any]):
    every = torch.arange(-70000, 70000) / 65536
    found = node("return sampling.toBytes(new Float32Array(given.x))", x=every.tolist())
    assert found == denormalize(every).tolist()
    found = node("return sampling.fromBytes(given.x)", x=list(range(256)))
    assert torch.equal(torch.tensor(found), normalize(torch.arange(256)))


def test_a_network_without_labels_is_given_none(node: Callable[..., Any]):
    nothing = {"image": {"size": 28, "channels": 1}, "classes": 0, "frequencies": None}
    found = node(
        """
        const { model } = given;
        return [sampling.balancedLabels([1, 2], sampling.labelWeights(model, null)),
                sampling.nearestLabel(model, new Float32Array(0), [], [], null)];
        """,
        model=nothing,
    )
    assert found == [None, None]
