"""Bring the original files of the data set into data/raw, verified."""

from ddpm.config import Config
from ddpm.data.sources import SOURCES
from stages.paths import RAW
from stages.runner import run


def fetch_mnist(config: Config) -> None:
    print(f"{config.data.name}: {SOURCES[config.data.name].fetch(config.data.source, RAW)}, verified in {RAW}")


if __name__ == "__main__":
    run(fetch_mnist)
