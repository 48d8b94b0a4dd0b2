"""What each choice is worth: trainings, each with one setting changed: `python -m benchmarks.choices --help`.

Every training has half of the default's epochs unless told otherwise, so that a row takes minutes; its images are
those of a replicate that no committed number is of. With --json, rows that the file has are left out, so that rows can
be added one by one; trainings lie in the folder of --work, where a killed one resumes and one that is there is not
repeated.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.blind import torn
from benchmarks.common import (
    LAST,
    QUIET,
    arguments,
    check,
    defaults,
    earlier,
    fit,
    quality,
    run,
    sampling,
    save,
    settings,
    show,
    slug_of,
)
from ddpm.models.build import flops_per_image
from ddpm.utils.runtime import choose_runtime

EVERY: dict[str, Any] = QUIET | {"generate.replicate": 100}
UNCONDITIONAL = {"model.classes": 0}
_WITHOUT_CLASSES = (100, 200, 500, 1000, 2000)
X_0 = {"diffusion.target": "x_0"}
TRAININGS: dict[str, dict[str, Any]] = {
    "default": {},
    "x_0, simple weights": X_0,
    "x_0, simple weights, log_sigma_mean -0.3": X_0 | {"train.log_sigma_mean": -0.3},
    "x_0, weights of EDM": X_0 | {"train.weighting": "edm"},
    "10 clusters a class": {"model.clusters": 10},
    "30 clusters a class": {"model.clusters": 30},
    "100 clusters a class": {"model.clusters": 100},
    "200 clusters a class": {"model.clusters": 200},
    "400 clusters a class": {"model.clusters": 400},
    "no labels": UNCONDITIONAL | {"model.clusters": 1},
    **{f"{count} clusters, no class labels": UNCONDITIONAL | {"model.clusters": count} for count in _WITHOUT_CLASSES},
    "200 clusters, no class labels, self-conditioning": UNCONDITIONAL
    | {"model.clusters": 200, "model.self_conditioning": True},
    "batch 64": {"train.batch_size": 64},
    "batch 256": {"train.batch_size": 256},
    "AdamW, lr 0.001": {"train.optimizer": "adamw", "train.lr": 0.001},
    "AdamW, lr 0.003": {"train.optimizer": "adamw", "train.lr": 0.003},
    "8 groups in every norm": {"model.norm_groups": 8},
    "attention": {"model.attention": True},
    "48 channels": {"model.base_channels": 48},
    "one block a level": {"model.blocks_per_level": 1},
    "patches of 4": {"model.patch_size": 4},
    "uniform times": {"train.time_density": "uniform"},
    "uniform times, min-SNR weights": {"train.time_density": "uniform", "train.weighting": "min_snr"},
}
# Guidance, steps and variance by which targets and numbers of clusters are compared.
_COMPARED = (
    *((guidance, 24, 0.4) for guidance in (1.3, 1.4, 1.5)),
    *((1.5, steps, 0.4) for steps in (20, 18, 16)),
    *((1.6, steps, 0.4) for steps in (18, 14)),
    *((guidance, 16, 0.5) for guidance in (1.4, 1.5, 1.6)),
    *((guidance, 24, 0.4) for guidance in (1.6, 1.7, 1.8, 2.0)),
    *((1.8, 20, 0.4), (1.6, 16, 0.4), (1.8, 16, 0.5)),
    *((guidance, 16, 0.4) for guidance in (1.4, 1.5, 1.8)),
)
SAMPLINGS: dict[str, dict[str, Any]] = {
    "default": {},
    **{
        f"guidance {guidance}, {steps} steps, variance {variance}": {
            "generate.guidance": guidance,
            "generate.steps": steps,
            "generate.variance": variance,
        }
        for guidance, steps, variance in _COMPARED
    },
    "no guidance": {"generate.guidance": 1.0, "generate.autoguidance": 1.0},
    "guidance 1.2": {"generate.guidance": 1.2, "generate.autoguidance": 1.0},
    "guidance 1.3": {"generate.guidance": 1.3, "generate.autoguidance": 1.0},
    "guidance 1.5": {"generate.guidance": 1.5, "generate.autoguidance": 1.0},
    "autoguidance 1.5": {"generate.guidance": 1.0, "generate.autoguidance": 1.5},
    "guidance 1.65 in 1.2 – 4, 20 steps": {
        "generate.guidance": 1.65,
        "generate.guidance_interval": [1.2, 4.0],
        "generate.steps": 20,
    },
}
DEFINITIONS = {"training": TRAININGS, "sampling": SAMPLINGS}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--trainings", nargs="+", default=list(TRAININGS), choices=list(TRAININGS), metavar="NAME")
    parser.add_argument("--samplings", nargs="+", default=list(SAMPLINGS), choices=list(SAMPLINGS), metavar="NAME")
    parser.add_argument("--epochs", type=float, default=2.75, help="of the trainings (default 2.75)")
    parser.add_argument("--images", type=int, default=5000, help="per row (default 5000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[settings().seed], help="of the trainings")
    parser.add_argument("--work", type=Path, default=Path(".ckpt/choices"), help="where the trainings lie")
    given = parser.parse_args()
    check(given.images)
    common = EVERY | {"train.epochs": given.epochs, "generate.num_images": given.images, "generate.trajectories": 1}
    metadata = {"images": given.images} | defaults()
    rows = earlier(given.json, metadata, DEFINITIONS)
    known = {(row["training"], row["epochs"], row["sampling"], row["seed"]) for row in rows}
    for seed in given.seeds:
        for name in given.trainings:
            wanted = [each for each in given.samplings if (name, given.epochs, each, seed) not in known]
            if not wanted:
                continue
            tqdm.write(f"\n{name}, seed {seed}")
            config = settings(common, TRAININGS[name]).model_copy(update={"seed": seed})
            runtime = choose_runtime(config.runtime, float("inf"))
            folder = given.work / f"{slug_of(name)}_{given.epochs:g}_{seed}"
            checkpoint, _, _ = fit(config, runtime, folder)
            mflop = flops_per_image(checkpoint.model, checkpoint.spec) / 1e6
            with sampling(folder / LAST, config, runtime) as (generator, sampled):
                for each in wanted:
                    chosen = replace(generator, config=settings(common, TRAININGS[name], SAMPLINGS[each]).generate)
                    images = sampled(chosen, each)
                    found = quality(images, chosen.class_labels(range(1, given.images + 1)))
                    found["torn_fraction"] = float(torn(images).mean())
                    row = {"training": name, "epochs": given.epochs, "sampling": each, "seed": seed}
                    rows.append(row | {"mflop": mflop, "nfe": chosen.nfe, "label_accuracy": "–"} | found)
                    save(rows, given.json, metadata, DEFINITIONS)
                    show(rows[-1:])
    show(rows)


if __name__ == "__main__":
    run(main)
