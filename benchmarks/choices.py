"""What each choice is worth: half-size trainings, each with one setting changed: `python -m benchmarks.choices --help`.

Every training has half of the default's epochs, so that a row takes minutes; its images are those of a replicate that
no committed number is of. With --json, rows that the file has are left out, so that rows can be added one by one;
trainings lie in the folder of --work, where a killed one resumes and one that is there is not repeated.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.common import (
    QUIET,
    arguments,
    check,
    defaults,
    earlier,
    fit,
    quality,
    run,
    sample,
    save,
    settings,
    show,
)
from ddpm.sampling.batches import fitting_batch
from ddpm.sampling.generator import make_generator
from ddpm.utils.runtime import choose_runtime

HALF: dict[str, Any] = QUIET | {"train.epochs": 2.75, "generate.replicate": 100}
UNCONDITIONAL = {"model.classes": 0}
SIMPLE = {"train.weighting": "simple"}
TRAININGS: dict[str, dict[str, Any]] = {
    "default": {},
    "10 clusters a class": {"model.clusters": 10},
    "30 clusters a class": {"model.clusters": 30},
    "no labels": UNCONDITIONAL,
    "simple weights": SIMPLE,
    "simple weights, log_sigma_mean -0.3": SIMPLE | {"train.log_sigma_mean": -0.3},
    "v, simple weights": SIMPLE | {"diffusion.target": "v"},
    "100 clusters, no class labels": UNCONDITIONAL | {"model.clusters": 100},
}
SAMPLINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "no guidance": {"generate.guidance": 1.0, "generate.autoguidance": 1.0},
    "guidance 1.2": {"generate.guidance": 1.2, "generate.autoguidance": 1.0},
    "guidance 1.3": {"generate.guidance": 1.3, "generate.autoguidance": 1.0},
    "guidance 1.5": {"generate.guidance": 1.5, "generate.autoguidance": 1.0},
    "autoguidance 1.5": {"generate.guidance": 1.0, "generate.autoguidance": 1.5},
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--trainings", nargs="+", default=list(TRAININGS), choices=list(TRAININGS), metavar="NAME")
    parser.add_argument("--samplings", nargs="+", default=list(SAMPLINGS), choices=list(SAMPLINGS), metavar="NAME")
    parser.add_argument("--images", type=int, default=5000, help="per row (default 5000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[settings().seed], help="of the trainings")
    parser.add_argument("--work", type=Path, default=Path(".ckpt/choices"), help="where the trainings lie")
    given = parser.parse_args()
    check(given.images)
    metadata = {"images": given.images, "epochs": HALF["train.epochs"]} | defaults()
    rows = earlier(given.json, metadata)
    known = {(row["training"], row["sampling"], row["seed"]) for row in rows}
    for seed in given.seeds:
        for name in given.trainings:
            wanted = [sampling for sampling in given.samplings if (name, sampling, seed) not in known]
            if not wanted:
                continue
            tqdm.write(f"\n{name}, seed {seed}")
            config = settings(HALF, TRAININGS[name]).model_copy(update={"seed": seed})
            runtime = choose_runtime(config.runtime, float("inf"))
            slug = "".join(letter if letter.isalnum() else "_" for letter in name)
            checkpoint, results, _ = fit(config, runtime, given.work / f"{slug}_{seed}")
            generator = make_generator(checkpoint, "the checkpoint", config.generate, config.seed, runtime)
            for sampling in wanted:
                chosen = replace(generator, config=settings(HALF, TRAININGS[name], SAMPLINGS[sampling]).generate)
                images = sample(chosen, given.images, fitting_batch(given.images, runtime.device))
                found = quality(images, chosen.class_labels(range(1, given.images + 1)))
                row = {"training": name, "sampling": sampling, "seed": seed, "nfe": chosen.nfe}
                rows.append(row | {"val_mse": results["val_mse"]} | {"label_accuracy": "–"} | found)
                save(rows, given.json, metadata)
                show(rows[-1:])
    show(rows)


if __name__ == "__main__":
    run(main)
