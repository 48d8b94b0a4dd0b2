"""How far few samples are from the training images: a look at a network while it trains, not a number to report."""

from contextlib import redirect_stderr
from functools import cached_property, partial
from io import StringIO

import numpy as np
import torch

from ddpm.data.image_set import ImageSet
from ddpm.evaluation.features import EXTRACTORS, FeatureExtractor
from ddpm.evaluation.frechet import Gaussian, fit_gaussian, frechet_distance
from ddpm.evaluation.patches import compare_patches
from ddpm.utils.seeds import numpy_generator

REAL = 10_000  # training images that features are compared with, at most


class EarlyDistance:
    """A function of samples, uint8 [n, c, h, w]: their distance from ``training``, on the CPU whatever trains.

    Where a feature network is shipped for the data set, as for MNIST, it is the Fréchet distance of its features; else
    the sliced Wasserstein distance of patches (`ddpm.evaluation.patches`), as no classifier of the data set is trained
    before the network is. The same images have the same distance. Which training images it is from, ``seed`` decides.
    """

    def __init__(self, training: ImageSet, seed: int) -> None:
        self.training = training
        self.stream = partial(numpy_generator, seed, "early distance")

    def __call__(self, images: np.ndarray) -> float:
        """Raises DdpmError for fewer images than the network has features."""
        # Progress bars of these parts would tear that of the training.
        with redirect_stderr(StringIO()):
            if self.training.spec.name in EXTRACTORS:
                return frechet_distance(self.reference, self.gaussian(images))
            real = self.real(len(images))
            return float(np.mean(compare_patches(images[: len(real)], real, self.stream, repeat=0)[0]))

    def real(self, count: int) -> np.ndarray:
        """So many random training images, or all."""
        return self.training.images[self.stream("real").permutation(len(self.training))[:count]]

    def gaussian(self, images: np.ndarray) -> Gaussian:
        """Of the features of the data set's own network."""
        return fit_gaussian(self.extractor.features(images, "early distance").values)

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The shipped network."""
        spec = self.training.spec
        extractor: FeatureExtractor = EXTRACTORS.build(spec.name, None, device=torch.device("cpu"), spec=spec)
        return extractor

    @cached_property
    def reference(self) -> Gaussian:
        """The real images' features."""
        return self.gaussian(self.real(REAL))
