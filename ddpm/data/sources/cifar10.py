"""CIFAR-10: 50,000 + 10,000 photographs, 32 × 32 pixels, RGB, ten classes. Krizhevsky 2009."""

from ddpm.data.sources import SOURCES
from ddpm.data.torchvision_source import TorchvisionSource, cifar

CIFAR10 = SOURCES.register("cifar10")(
    TorchvisionSource("cifar10", "CIFAR10", lambda loader: {loader.filename: loader.tgz_md5}, "", cifar)
)
