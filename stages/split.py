"""Divide the training images into train and validation; the test images stay apart."""

import numpy as np

from ddpm.config import Config
from ddpm.data.sources import load_mnist
from ddpm.data.split import stratified_split, write_image_set
from stages import RAW, SPLIT, run


def split(config: Config) -> None:
    everything = load_mnist(RAW, "train")
    train, validation = stratified_split(everything.labels, config.split.train_fraction, config.seed)
    parts = {
        "train": everything.take(train),
        "validation": everything.take(validation),
        "test": load_mnist(RAW, "t10k"),
    }
    for name, part in parts.items():
        write_image_set(SPLIT / f"{name}.npz", part)
        print(f"{name}: {len(part)} images, of each digit {np.bincount(part.labels).tolist()}")


if __name__ == "__main__":
    run(split)
