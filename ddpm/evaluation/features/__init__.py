"""The feature networks by name: one module each, which registers a function that opens the network."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ddpm.data.image_set import ImageSet, ImageSpec
from ddpm.data.sources import SOURCES
from ddpm.utils.errors import DdpmError
from ddpm.utils.registry import Registry


@dataclass(frozen=True)
class Features:
    """Of n images. values: float32 [n, d]. probabilities: float32 [n, c] of the classes, None where there are none."""

    values: np.ndarray
    probabilities: np.ndarray | None = None


class FeatureExtractor(Protocol):
    """A fixed network and all that a number measured with it depends on.

    name: in the metrics' keys (``kd_NAME``). frechet_key: the key of the Fréchet distance. weights_sha256: of its
    weights. dimensions: features of an image. preprocessing: what happens to an image first, in words. It may also have
    ``remarks``, a dictionary of what else belongs into the protocol.
    """

    name: str
    frechet_key: str
    weights_sha256: str
    dimensions: int
    preprocessing: str

    def features(self, images: np.ndarray, label: str) -> Features:
        """Features of uint8 images [n, c, h, w], c = 1 or 3; ``label`` names the progress bar."""
        ...


class UnavailableExtractor(Exception):
    """This network is not measured with here, and that is no error; the text says why."""


# An entry is called with what its parameters name: ``device``, ``spec`` (of the data set), ``images`` (how many it has
# for training), ``classifier`` (the file of the stage `classifier`), ``processes`` (that may share its work),
# and settings (`fid` in params.yaml). It returns a FeatureExtractor, or raises UnavailableExtractor, or DdpmError where
# the network was required.
EXTRACTORS: Registry[Any] = Registry("feature extractor", __name__)


def extractor_names(extractors: str | tuple[str, ...], spec: ImageSpec) -> tuple[str, ...]:
    """The feature networks that ``extractors`` (`fid.extractors`) means for a data set.

    "auto": the shipped network that has the data set's name, else, where there are labels, the classifier that is
    trained on it; and Inception. A data set of one class is without labels.
    """
    if isinstance(extractors, tuple):
        return extractors
    own = (spec.name,) if spec.name in EXTRACTORS else ("classifier",) if spec.classes > 1 else ()
    return (*own, "inception")


def refuse_too_few(
    num_images: int,
    data_name: str,
    settings: Any,  # noqa: ANN401
    device: torch.device,
    given: str = "generate.num_images={}",
    option: str = "fid.extractors",
    train: tuple[ImageSpec, int] | None = None,
) -> None:
    """Raise DdpmError where so many images are too few for a network that would measure them, before they are sampled.

    Their covariance would be singular: see `ddpm.evaluation.frechet.fit_gaussian`. How many features an image has is
    the entry's attribute ``dimensions`` or the setting NAME_features; an entry with neither is not judged here. One
    whose setting NAME is auto is left out where the ``device`` is no CUDA device, and it as well as a classifier where
    the training images are too few. Whether these are, and have labels, may show only when they are there: ``train`` is
    what they share and how many they are. Without, no entry under auto is judged, nor a classifier unless the source
    has the attribute ``labelled``. given, option: what the message calls the number of images and the choice of
    networks.
    """
    trained = ("classifier",) if getattr(SOURCES[data_name], "labelled", False) else ()
    own = (data_name,) if data_name in EXTRACTORS else trained
    names = extractor_names(settings.extractors, train[0]) if train else (*own, "inception")
    for name in settings.extractors if isinstance(settings.extractors, tuple) else names:
        dimensions = int(getattr(EXTRACTORS[name], "dimensions", getattr(settings, f"{name}_features", 0)))
        auto = getattr(settings, name, "required") == "auto"
        spared = bool(train and few(train[1], dimensions)) and (auto or name == "classifier")
        used = not spared and (not auto or bool(train and device.type == "cuda"))
        if used and num_images <= dimensions:
            raise DdpmError(
                f"{given.format(num_images)} is too few to be measured by the {dimensions} features of {name}: "
                f"raise it above {dimensions}, or leave {name} out of {option}."
            )


def open_extractors(
    settings: Any,  # noqa: ANN401
    train: ImageSet,
    device: torch.device,
    classifier: Path,
    processes: int = 1,
) -> tuple[list[FeatureExtractor], dict[str, str]]:
    """The feature networks for a data set, and of those that cannot be had, why. Raises DdpmError for a required one.

    settings: ``extractors`` (see `extractor_names`), ``swd`` ("off": there must be a network) and what the networks'
    functions name as parameters (`fid` in params.yaml). classifier: the file that the stage `classifier` writes.
    processes: that may share the work of a large network.
    """
    networks: list[FeatureExtractor] = []
    skipped = {}
    given = {"device": device, "spec": train.spec, "images": len(train), "classifier": classifier}
    given["processes"] = processes
    for name in extractor_names(settings.extractors, train.spec):
        try:
            networks.append(EXTRACTORS.build(name, settings, **given))
        except UnavailableExtractor as reason:
            skipped[name] = str(reason)
    if not networks and settings.swd == "off":
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise DdpmError(f"none of fid.extractors can be used here ({reasons}): set fid.swd to on, which needs none.")
    return networks, skipped


def few(images: int, dimensions: int) -> bool:
    """Whether half of so many training images are too few for a covariance of the features."""
    return images // 2 <= dimensions


def refuse_few(images: int, dimensions: int) -> None:
    """Raise UnavailableExtractor where so many training images are `few`."""
    if few(images, dimensions):
        raise UnavailableExtractor(f"{images} training images are too few for {dimensions} features")
