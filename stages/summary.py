"""Copy the numbers to where Git tracks them, the headline ones into one small file.

They come from outputs in DVC's cache: a stage that writes uncached files itself could not be restored from the cache
that a team shares, and training and evaluation must be.
"""

import shutil

from ddpm.config import Config
from ddpm.utils.files import atomic_path, read_json, significant, write_json
from stages.paths import COST, EVALUATION, METRICS, MODEL
from stages.runner import run

HEADLINE = (  # NETWORK: the classifier that measures, `mnist` or the name of another data set
    *("fd_NETWORK", "fd_NETWORK_low", "fd_NETWORK_high", "fd_NETWORK_floor", "swd", "swd_low", "swd_high", "swd_floor"),
    *("fid_inception", "precision_NETWORK", "recall_NETWORK", "label_accuracy", "ambiguous_fraction"),
    *("memorized_fraction_pixel", "bpd_small", "val_loss", "parameters", "flops_per_image", "generate_nfe"),
    *(f"{of}_{cost}" for cost in ("seconds", "images_per_second", "peak_memory_mib") for of in ("train", "generate")),
)


def summary(_: Config) -> None:
    numbers = {"train": read_json(MODEL / "results.json")}
    numbers["cost"] = read_json(COST / "train.json") | read_json(COST / "generate.json")
    for name in ("fid", "memorization", "likelihood"):
        numbers[name] = read_json(EVALUATION / f"{name}.json")
    for name, values in numbers.items():
        write_json(METRICS / f"{name}.json", significant(values))
    with atomic_path(METRICS / "classes.csv") as temporary:
        shutil.copyfile(EVALUATION / "classes.csv", temporary)
    together = {key: value for values in numbers.values() for key, value in values.items()}
    measured = {name: how for name, how in together["protocol"].items() if f"fd_{name}" in together}
    # The classifier's, which alone says what is confident; else the first.
    own = min(measured, key=lambda name: "confident" not in measured[name], default="")
    keys = [key.replace("NETWORK", own) for key in HEADLINE]
    write_json(METRICS / "headline.json", significant({key: together[key] for key in keys if key in together}))


if __name__ == "__main__":
    run(summary)
