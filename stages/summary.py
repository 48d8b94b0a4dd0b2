"""Copy the numbers to where Git tracks them, the headline ones into one small file.

They come from outputs in DVC's cache: a stage that writes uncached files itself could not be restored from the cache
that a team shares, and training and evaluation must be.
"""

import shutil

from ddpm.config import Config
from ddpm.utils.files import atomic_path, read_json, significant, write_json
from stages.paths import COST, EVALUATION, METRICS, MODEL
from stages.runner import run

HEADLINE = (
    *("fd_mnist", "fd_mnist_low", "fd_mnist_high", "fd_mnist_floor", "fid_inception", "precision_mnist"),
    *("recall_mnist", "label_accuracy", "ambiguous_fraction", "memorized_fraction_pixel", "bpd_small", "val_loss"),
    *("parameters", "train_seconds", "generate_seconds", "generate_nfe"),
)


def summary(_: Config) -> None:
    numbers = {
        "train": read_json(MODEL / "results.json"),
        "cost": read_json(COST / "train.json") | read_json(COST / "generate.json"),
    }
    for name in ("fid", "memorization", "likelihood"):
        numbers[name] = read_json(EVALUATION / f"{name}.json")
    for name, values in numbers.items():
        write_json(METRICS / f"{name}.json", significant(values))
    with atomic_path(METRICS / "classes.csv") as temporary:
        shutil.copyfile(EVALUATION / "classes.csv", temporary)
    together = {key: value for values in numbers.values() for key, value in values.items()}
    write_json(METRICS / "headline.json", significant({key: together[key] for key in HEADLINE if key in together}))


if __name__ == "__main__":
    run(summary)
