"""Put the headline numbers of training and generation where Git tracks them.

They come from outputs in DVC's cache: a stage that writes uncached files itself could not be restored from the cache
that a team shares, and training must be.
"""

import json

from ddpm.config import Config
from ddpm.files import write_json
from stages import COST, METRICS, MODEL, run


def summary(_: Config) -> None:
    write_json(METRICS / "train.json", json.loads((MODEL / "results.json").read_text()))
    costs = [json.loads((COST / f"{stage}.json").read_text()) for stage in ("train", "generate")]
    write_json(METRICS / "cost.json", costs[0] | costs[1])


if __name__ == "__main__":
    run(summary)
