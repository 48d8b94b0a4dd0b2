"""Kuzushiji-MNIST: 60,000 + 10,000 images of ten cursive hiragana, 28 × 28 pixels, grey. Clanuwat et al. 2018."""

from ddpm.data.sources import SOURCES
from ddpm.data.torchvision_source import TorchvisionSource, digits

KMNIST = SOURCES.register("kmnist")(
    TorchvisionSource("kmnist", "KMNIST", lambda loader: dict(loader.resources), "KMNIST/raw", digits)
)
