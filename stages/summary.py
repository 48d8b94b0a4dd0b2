"""Put the headline numbers of training and generation where Git tracks them.

They come from outputs in DVC's cache: a stage that writes uncached files itself could not be restored from the cache
that a team shares, and training must be.
"""

from ddpm.config import Config
from ddpm.files import read_json, write_json
from stages import COST, METRICS, MODEL, run


def summary(_: Config) -> None:
    write_json(METRICS / "train.json", read_json(MODEL / "results.json"))
    costs = [read_json(COST / f"{stage}.json") for stage in ("train", "generate")]
    write_json(METRICS / "cost.json", costs[0] | costs[1])


if __name__ == "__main__":
    run(summary)
