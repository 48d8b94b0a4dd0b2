"""What stands beside every number: with what, on what and by which versions it was measured."""

from importlib.metadata import version

from ddpm.evaluation.classes import SURE, UNSURE
from ddpm.evaluation.features.classifier import FEATURES, WEIGHTS_SHA256
from ddpm.evaluation.frechet import CURVE_ORDERS, CURVE_POINTS
from ddpm.evaluation.kernel import SUBSET_SIZE, SUBSETS
from ddpm.evaluation.neighbours import COVERAGE_NEIGHBOURS, PRECISION_NEIGHBOURS


def mnist_protocol(size: tuple[int, int], images: int, reference_images: int) -> dict[str, object]:
    """How the numbers of the shipped classifier came about; size: (height, width) of the images as they were read."""
    height, width = size
    resized = "" if size == (28, 28) else "; resized to 28 × 28 bicubically"
    return {
        "features": f"shipped classifier, {FEATURES}-d",
        "weights_sha256": WEIGHTS_SHA256,
        "preprocessing": f"{width} × {height} pixels, 8 bit; luma where coloured{resized}",
        "images": images,
        "reference_images": reference_images,
        "sure": f"one class at {SURE} or more; unsure: none at {UNSURE}",
        **_common(images),
    }


def inception_protocol(dimensions: int, weights_sha256: str, images: int, reference_images: int) -> dict[str, object]:
    """How the numbers of pytorch-fid's network came about."""
    return {
        "features": f"pytorch-fid, {dimensions}-d",
        "weights_sha256": weights_sha256,
        "preprocessing": "8 bit; grey repeated to RGB; resized to 299 × 299 bilinearly by the network",
        "images": images,
        "reference_images": reference_images,
        **_common(images),
    }


def versions() -> dict[str, str]:
    """The releases of the libraries that a number depends on."""
    return {name: version(name) for name in ("torch", "numpy", "pillow", "pytorch-fid")}


def _common(images: int) -> dict[str, str]:
    return {
        "kernel": f"cubic, {SUBSETS} pairs of subsets of {min(SUBSET_SIZE, images)}",
        "precision, recall": f"k = {PRECISION_NEIGHBOURS}, against as many random training images",
        "density, coverage": f"k = {COVERAGE_NEIGHBOURS}, against as many random training images",
        "limit": f"{CURVE_POINTS} sizes from a fifth up, {CURVE_ORDERS} random orders",
    }
