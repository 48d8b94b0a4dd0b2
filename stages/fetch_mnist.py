"""Bring the four original MNIST files into data/raw, verified."""

from ddpm.config import Config
from ddpm.data.sources import fetch
from stages import RAW, run


def fetch_mnist(config: Config) -> None:
    print(f"MNIST: {fetch(config.data.source, RAW)}, verified in {RAW}")


if __name__ == "__main__":
    run(fetch_mnist)
