"""Divide the training images into train and validation; the test images stay apart."""

import numpy as np

from ddpm.config import Config
from ddpm.data.image_set import write_image_set
from ddpm.data.sources import SOURCES
from ddpm.data.split import classes_lacking, stratified_split
from ddpm.utils.errors import DdpmError
from stages.paths import RAW, SPLIT
from stages.runner import run


def split(config: Config) -> None:
    source = SOURCES[config.data.name]
    images = source.load(RAW, "train")
    train, validation = stratified_split(images.labels, fraction := config.split.train_fraction, config.seed)
    if lacking := classes_lacking(images.labels[train], images.class_names):
        raise DdpmError(f"split.train_fraction={fraction} leaves no image of the {lacking} to train on: raise it.")
    parts = {"train": images.take(train), "validation": images.take(validation), "test": source.load(RAW, "test")}
    for name, part in parts.items():
        write_image_set(SPLIT / f"{name}.npz", part)
        print(f"{name}: {len(part)} images, of each class {np.bincount(part.labels).tolist()}")


if __name__ == "__main__":
    run(split)
