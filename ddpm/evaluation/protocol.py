"""How a number was measured: with which network, on how many images and by which versions."""

from collections.abc import Sequence
from importlib.metadata import version

from ddpm.evaluation.classes import AMBIGUOUS, CONFIDENT
from ddpm.evaluation.features import FeatureExtractor
from ddpm.evaluation.frechet import CURVE_ORDERS, CURVE_POINTS
from ddpm.evaluation.kernel import SUBSETS, subset_size
from ddpm.evaluation.neighbours import COVERAGE_NEIGHBOURS, PRECISION_NEIGHBOURS
from ddpm.evaluation.reference import Reference


def extractor_protocol(extractor: FeatureExtractor, shape: Sequence[int], reference: Reference) -> dict[str, object]:
    """How the numbers of one network came about, for images of this shape (n, c, h, w)."""
    count, _, height, width = shape
    compared = min(count, len(reference.train))
    found: dict[str, object] = {
        "features": extractor.dimensions,
        "weights_sha256": extractor.weights_sha256,
        "preprocessing": f"{width} × {height} pixels; {extractor.preprocessing}",
        "images": count,
        "reference_images": reference.count,
        "kernel": f"cubic, {SUBSETS} pairs of subsets of {subset_size(count, compared)}",
        "precision, recall": f"k = {PRECISION_NEIGHBOURS}, against {compared} random training images",
        "density, coverage": f"k = {COVERAGE_NEIGHBOURS}, against {compared} random training images",
        "infinity": f"{CURVE_POINTS} sizes from a fifth up, {CURVE_ORDERS} random orders",
    }
    if reference.test_probabilities.shape[1]:
        found["confident"] = f"one class at {CONFIDENT} or more; ambiguous: none at {AMBIGUOUS}"
    return found


def versions() -> dict[str, str]:
    """The releases of the libraries that a number depends on."""
    return {name: version(name) for name in ("torch", "numpy", "pillow", "pytorch-fid")}
