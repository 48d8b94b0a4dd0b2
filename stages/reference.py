"""Compute the features of the real images once, so that no model's evaluation has to."""

from ddpm.config import Config
from ddpm.data.sources import SOURCES
from ddpm.evaluation.features import open_extractors
from ddpm.evaluation.reference import find_nearest_pixels, make_reference
from ddpm.utils.runtime import choose_runtime, process_count
from stages.paths import CLASSIFIER, RAW, REFERENCE
from stages.runner import run


def reference(config: Config) -> None:
    source = SOURCES[config.data.name]
    train, test = source.load(RAW, "train"), source.load(RAW, "test")
    runtime = choose_runtime(config.runtime, 0.0)
    processes = process_count(config.runtime, runtime, len(train), float("inf"))
    networks, skipped = open_extractors(config.fid, train, runtime.device, CLASSIFIER, processes)
    for network in networks:
        make_reference(network, train, test, config.seed).save(REFERENCE / f"{network.name}.npz")
    find_nearest_pixels(REFERENCE / "pixels.npz", train, test)
    for name, reason in skipped.items():
        print(f"{name} skipped: {reason}")


if __name__ == "__main__":
    run(reference)
