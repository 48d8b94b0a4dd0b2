"""Bring the images of the data set into data/raw, verified."""

from ddpm.config import Config
from ddpm.data.sources import SOURCES
from ddpm.utils.registry import call
from stages.paths import RAW
from stages.runner import run


def fetch_mnist(config: Config) -> None:
    fetched = call(SOURCES[config.data.name].fetch, config.data, place=config.data.source, folder=RAW)
    print(f"{config.data.name}: {fetched}, verified in {RAW}")


if __name__ == "__main__":
    run(fetch_mnist)
