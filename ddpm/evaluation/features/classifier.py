"""`mnist`: the fixed MNIST classifier, whose weights are shipped with the repository.

`WEIGHTS` was made by `python -m ddpm.evaluation.train_classifier`; `WEIGHTS_SHA256` names those very bytes, so that two
numbers with the same hash beside them were measured by the same network.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from ddpm.data.image_set import normalize
from ddpm.evaluation.features import EXTRACTORS, Features
from ddpm.utils.errors import DamagedFile, MissingFile
from ddpm.utils.files import sha256
from ddpm.utils.images import resize, to_grey

WEIGHTS = Path(__file__).parents[1] / "weights" / "mnist_classifier.safetensors"
WEIGHTS_SHA256 = "d494fd8d7691dc7102686cbad497e28dcd9b12dfe959101ce3f072faaedf677e"
SIZE, FEATURES, CLASSES = 28, 128, 10
# On a CPU a small batch in channels_last stays in the processor's cache: several times faster than a large one.
_BATCH = {"cuda": 2000, "cpu": 50}


class Classifier(nn.Module):
    """Three convolutional levels (28, 14, 7 pixels), then 128 features, then the ten digits."""

    def __init__(self) -> None:
        super().__init__()
        levels = []
        channels = 1
        for width in (32, 48, 64):
            levels += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels = width
        self.levels = nn.Sequential(*levels)
        self.dropout = nn.Dropout(0.3)
        self.embed = nn.Linear(channels * 3 * 3, FEATURES)
        self.classify = nn.Linear(FEATURES, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """images: uint8 [n, 1, 28, 28]. Returns float32 [n, 128], every value ≥ 0 (after the ReLU)."""
        x = normalize(images)
        return torch.relu(self.embed(self.dropout(self.levels(x).flatten(1))))

    def forward(self, images: Tensor) -> Tensor:
        """images: uint8 [n, 1, 28, 28]. Returns class logits, float32 [n, 10]."""
        return self.classify(self.dropout(self.features(images)))


def load_classifier(device: torch.device) -> Classifier:
    """The shipped network in evaluation mode. Raises MissingFile, or DamagedFile for another SHA-256."""
    if not WEIGHTS.is_file():
        raise MissingFile(f"{WEIGHTS} is missing")
    found = sha256(WEIGHTS)
    if found != WEIGHTS_SHA256:
        raise DamagedFile(f"{WEIGHTS} has SHA-256 {found[:12]}… instead of {WEIGHTS_SHA256[:12]}…")
    classifier = Classifier()
    classifier.load_state_dict(load_file(WEIGHTS))
    return classifier.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)


@EXTRACTORS.register("mnist")
class MnistExtractor:
    """The features before the classifier's last layer, and its class probabilities."""

    name, frechet_key, weights_sha256, dimensions = "mnist", "fd_mnist", WEIGHTS_SHA256, FEATURES
    preprocessing = f"8 bit; colours as luma (ITU-R 601); other sizes resized to {SIZE} × {SIZE} bicubically"

    def __init__(self, device: torch.device) -> None:
        self.network, self.device = load_classifier(device), device

    @torch.inference_mode()
    def features(self, images: np.ndarray, label: str) -> Features:
        """Features float32 [n, 128] and probabilities float32 [n, 10]: see `ddpm.evaluation.features`."""
        values, probabilities = [], []
        prepared = torch.tensor(resize(to_grey(images), SIZE))
        with tqdm(total=len(images), desc=f"classifier, {label}", unit="image") as progress:
            for batch in prepared.split(_BATCH[self.device.type]):
                found = self.network.features(batch.to(self.device))
                values.append(found.cpu().numpy())
                probabilities.append(self.network.classify(found).softmax(1).cpu().numpy())
                progress.update(len(batch))
        return Features(np.concatenate(values), np.concatenate(probabilities))
