"""CIFAR-100: 50,000 + 10,000 photographs, 32 × 32 pixels, RGB, one hundred classes. Krizhevsky 2009."""

from ddpm.data.sources import SOURCES
from ddpm.data.torchvision_source import TorchvisionSource, cifar

CIFAR100 = SOURCES.register("cifar100")(
    TorchvisionSource("cifar100", "CIFAR100", lambda loader: {loader.filename: loader.tgz_md5}, "", cifar)
)
