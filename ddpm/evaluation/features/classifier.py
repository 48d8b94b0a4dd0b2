"""`mnist` and `classifier`: a small classifier of the data set's own classes, the shipped one or one trained on it.

MNIST's, whose weights are shipped with the repository, was made by `python -m ddpm.evaluation.train_classifier`;
`WEIGHTS_SHA256` names those very bytes, so that two numbers with the same hash beside them were measured by the same
network. For every other data set with labels the stage `classifier` trains one by the same recipe.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from ddpm.data.image_set import ImageSpec, normalize
from ddpm.evaluation.features import EXTRACTORS, Features, refuse_few
from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile
from ddpm.utils.files import atomic_path, sha256
from ddpm.utils.images import resize, to_grey, to_rgb
from ddpm.utils.threads import in_threads

WEIGHTS = Path(__file__).parents[1] / "weights" / "mnist_classifier.safetensors"
WEIGHTS_SHA256 = "d494fd8d7691dc7102686cbad497e28dcd9b12dfe959101ce3f072faaedf677e"
FEATURES, CLASSES = 128, 10
LARGEST = 64  # pixels a side that a classifier sees; it costs four times as much at twice as many
# On a CPU a small batch in channels_last stays in the processor's cache: several times faster than a large one.
_BATCH = {"cuda": 2000, "mps": 500, "cpu": 50}
_METADATA_KEY = "classifier"  # one key: safetensors writes several in random order


class Classifier(nn.Module):
    """Convolutional levels, each half the size of the one before, then 128 features, then the classes.

    Of 28 pixels three levels (28, 14, 7); as many as leave 3 pixels or more.
    """

    def __init__(self, size: int = 28, channels: int = 1, classes: int = CLASSES) -> None:
        super().__init__()
        levels: list[nn.Module] = []
        width = 16
        while size // 2 >= 3:
            width += 16
            levels += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels, size = width, size // 2
        self.levels = nn.Sequential(*levels)
        self.dropout = nn.Dropout(0.3)
        self.embed = nn.Linear(channels * size * size, FEATURES)
        self.classify = nn.Linear(FEATURES, classes)

    def features(self, images: Tensor) -> Tensor:
        """images: uint8 [n, c, s, s]. Returns float32 [n, 128], every value ≥ 0 (after the ReLU)."""
        x = normalize(images)
        return torch.relu(self.embed(self.dropout(self.levels(x).flatten(1))))

    def forward(self, images: Tensor) -> Tensor:
        """images: uint8 [n, c, s, s]. Returns class logits, float32 [n, classes]."""
        return self.classify(self.dropout(self.features(images)))


def classifier_of(spec: ImageSpec) -> Classifier:
    """An untrained network for the images of a data set."""
    return Classifier(min(spec.size, LARGEST), spec.channels, spec.classes)


def as_input(images: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Images [n, c, h, w] as the classifier of a data set takes them: in its channels, at its size or `LARGEST`."""
    if images.shape[1] != spec.channels:  # else all of a large data set would be looked at
        images = to_grey(images) if spec.channels == 1 else to_rgb(images)
    return resize(images, min(spec.size, LARGEST))


def load_classifier(device: torch.device) -> Classifier:
    """The shipped network in evaluation mode. Raises MissingFile, or DamagedFile for another SHA-256."""
    if not WEIGHTS.is_file():
        raise MissingFile(f"{WEIGHTS} is missing")
    found = sha256(WEIGHTS)
    if found != WEIGHTS_SHA256:
        raise DamagedFile(f"{WEIGHTS} has SHA-256 {found[:12]}… instead of {WEIGHTS_SHA256[:12]}…")
    classifier = Classifier()
    classifier.load_state_dict(load_file(WEIGHTS))
    return _ready(classifier, device)


def save_trained(path: Path, network: nn.Module, spec: ImageSpec, remarks: dict[str, Any]) -> None:
    """Store a classifier of the data set ``spec``, with ``remarks`` for the protocol, atomically. Raises OSError."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    content = save(tensors, {_METADATA_KEY: json.dumps({"spec": spec.to_file(), "remarks": remarks})})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def load_trained(path: Path, device: torch.device) -> tuple[Classifier, ImageSpec, dict[str, Any]]:
    """What `save_trained` stored, in evaluation mode. Raises MissingFile, DamagedFile."""
    if not path.is_file():
        raise MissingFile(f"{path} is missing")
    content = path.read_bytes()
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        stored = json.loads(header["__metadata__"][_METADATA_KEY])
        spec = ImageSpec.from_file(stored["spec"])
        classifier = classifier_of(spec)
        classifier.load_state_dict(load(content))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DamagedFile(f"{path} is damaged or no classifier of this version ({reason})") from error
    return _ready(classifier, device), spec, stored["remarks"]


def _ready(classifier: Classifier, device: torch.device) -> Classifier:
    return classifier.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)


class ClassifierExtractor:
    """The features before a classifier's last layer, and its class probabilities."""

    dimensions = FEATURES

    def __init__(
        self,
        network: Classifier,
        spec: ImageSpec,
        weights_sha256: str,
        device: torch.device,
        remarks: dict[str, Any] | None = None,
    ) -> None:
        self.network, self.spec, self.weights_sha256, self.device = network, spec, weights_sha256, device
        self.name, self.remarks = spec.name, remarks or {}
        self.frechet_key = f"fd_{self.name}"
        colours = "colours as luma (ITU-R 601)" if spec.channels == 1 else "grey repeated to RGB"
        size = min(spec.size, LARGEST)
        self.preprocessing = f"8 bit; {colours}; other sizes resized to {size} × {size} bicubically"

    def features(self, images: np.ndarray, label: str) -> Features:
        """Features float32 [n, 128] and probabilities float32 [n, classes]: see `ddpm.evaluation.features`."""
        batches = range(0, len(images), step := _BATCH[self.device.type])
        parts = (images[start : start + step] for start in batches)
        found = in_threads(self.embed, parts, len(batches), f"classifier, {label}", "batch", self.device)
        values, probabilities = zip(*found, strict=True)
        return Features(np.concatenate(values), np.concatenate(probabilities))

    @torch.inference_mode()
    def embed(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of one batch of uint8 images [n, c, h, w]: features float32 [n, 128], probabilities float32 [n, classes]."""
        found = self.network.features(torch.tensor(as_input(images, self.spec)).to(self.device))
        return found.cpu().numpy(), self.network.classify(found).softmax(1).cpu().numpy()


@EXTRACTORS.register("mnist")
class MnistExtractor(ClassifierExtractor):
    """By the shipped classifier of MNIST's digits."""

    def __init__(self, device: torch.device, spec: ImageSpec | None = None) -> None:
        """spec: of the data set that is measured, None for MNIST. Raises DdpmError for any other one."""
        own = ImageSpec(28, 1, CLASSES, "mnist")
        if spec and spec.name != own.name:
            raise DdpmError(
                f"fid.extractors: mnist knows MNIST's ten digits, but the data set is {spec.name}: name classifier "
                "instead, or set fid.extractors to auto."
            )
        super().__init__(load_classifier(device), own, WEIGHTS_SHA256, device)


@EXTRACTORS.register("classifier")
class TrainedExtractor(ClassifierExtractor):
    """By the classifier trained on the data set."""

    def __init__(self, device: torch.device, spec: ImageSpec, images: int, classifier: Path) -> None:
        """spec: of the data set. classifier: the file of the one that was trained on it.

        Raises UnavailableExtractor for too few training ``images``, MissingFile, DamagedFile, and DdpmError for a
        classifier of another data set.
        """
        refuse_few(images, FEATURES)
        network, known, remarks = load_trained(classifier, device)
        if known != spec:
            raise DdpmError(
                f"{classifier} was trained on {known.name} ({known.classes} classes, {known.channels} × {known.size} × "
                f"{known.size}), not on {spec.name}: run `dvc repro classifier`."
            )
        # No key belongs to two networks: on MNIST the one trained here has another than the shipped one.
        name = f"own_{spec.name}" if spec.name in EXTRACTORS else spec.name
        super().__init__(network, replace(spec, name=name), sha256(classifier), device, remarks)
