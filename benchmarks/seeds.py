"""How much the numbers differ between training runs: `python -m benchmarks.seeds --help`.

Trains the default, or a preset, under several seeds, and samples several sets of images of each. A seed decides
everything but the split and the reference: weights, order, noise, clusters, images. With --json, seeds that the file
has are left out; trainings lie in the folder of --work, where a killed one resumes.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from benchmarks.common import (
    LAST,
    arguments,
    check,
    defaults,
    earlier,
    fit,
    known,
    quality,
    run,
    sampling,
    save,
    settings,
    show,
)
from ddpm.utils.runtime import choose_runtime


def spread(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each number: its mean, its standard deviation over seeds (of their means) and over the sets of one seed."""
    table = pd.DataFrame(rows).drop(columns="replicate")
    of_seeds = table.groupby("seed").agg(["mean", "std"])

    return [
        {
            "metric": key,
            "mean": float(of_seeds[key]["mean"].mean()),
            "std_over_seeds": known(of_seeds[key]["mean"].std()),
            "std_over_replicates": known((of_seeds[key]["std"] ** 2).mean() ** 0.5),
        }
        for key in table.columns.drop("seed")
    ]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--preset", help="of presets/; default: params.yaml as it is")
    parser.add_argument("--seeds", type=int, nargs="+", default=[settings().seed, 1, 2])
    parser.add_argument("--replicates", type=int, default=3, help="sets of images of each (default 3)")
    parser.add_argument("--images", type=int, default=10_000, help="in a set (default 10000)")
    parser.add_argument("--work", type=Path, default=Path(".ckpt/seeds"), help="where the trainings lie")
    given = parser.parse_args()
    check(given.images)
    config = settings({"generate.num_images": given.images, "generate.trajectories": 1}, preset=given.preset)
    metadata = {"preset": given.preset, "images": given.images} | defaults(preset=given.preset)
    rows = earlier(given.json, metadata)
    known = {(row["seed"], row["replicate"]) for row in rows}
    for seed in given.seeds:
        wanted = [replicate for replicate in range(given.replicates) if (seed, replicate) not in known]
        if not wanted:
            continue
        tqdm.write(f"\nseed {seed}")
        chosen = config.model_copy(update={"seed": seed})
        runtime = choose_runtime(config.runtime, float("inf"))
        folder = given.work / f"{given.preset or 'default'}_{seed}"
        _, results, cost = fit(chosen, runtime, folder)
        fixed = {"val_mse": results["val_mse"], "train_seconds": cost["train_seconds"]}
        with sampling(folder / LAST, chosen, runtime) as (generator, sampled):
            labels = generator.class_labels(range(1, given.images + 1))
            for replicate in wanted:
                images = sampled(generator.changed(replicate=replicate), f"replicate {replicate}")
                rows.append({"seed": seed, "replicate": replicate, **quality(images, labels), **fixed})
                save(rows, given.json, metadata | {"spread": spread(rows)})
                show(rows[-1:])
    show(spread(rows))


if __name__ == "__main__":
    run(main)
