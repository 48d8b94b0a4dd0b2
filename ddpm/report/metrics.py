"""Which numbers of a run say how good it is, what each means, and what stands beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

_LOWER_IS_BETTER = ("fd_", "fid_", "kd_", "swd", "ambiguous_", "memorized_", "bpd_", "val_")  # beginnings of keys
OF_NETWORK = ("parameters", "flops_per_image")
_COSTS = ("_seconds", "_mib", "_nfe", *OF_NETWORK)  # their ends
_MEANINGS = {  # by the beginning of the key, as the name of the feature network follows
    "fd_": "Fréchet distance to the training images; lower is better",
    "fid_": "Fréchet distance of the literature (FID); lower is better",
    "swd": "sliced Wasserstein distance of patches, × 10³; lower is better",
    "precision_": "fraction of generated images that lie among real ones",
    "recall_": "fraction of real images that lie among generated ones",
    "label_accuracy": "fraction classified as their conditioning label",
    "ambiguous_": "fraction to which the classifier gives no class 0.7; lower is better",
    "memorized_": "fraction nearer to the training set than 99 % of 99 or more test images; 0.01 without copying",
    "bpd_": "bits per dimension of the test images, an upper bound; lower is better",
    "val_loss": "training objective on the validation images; lower is better",
}


@dataclass(frozen=True)
class Metric:
    """A number with what there is beside it: 95 % interval (low, high), standard error, the score of real images, its
    floor, mean and standard deviation over replicates. None is what there is not.
    """

    key: str
    value: float
    low: float | None = None
    high: float | None = None
    se: float | None = None
    real: float | None = None
    floor: float | None = None
    replicates_mean: float | None = None
    replicates_std: float | None = None

    @classmethod
    def find(cls, key: str, numbers: Mapping[str, Any]) -> Self | None:
        """The metric ``key`` of flat numbers, None where they lack it."""
        if numbers.get(key) is None:
            return None
        ends = ("low", "high", "se", "real", "floor", "replicates_mean", "replicates_std")
        return cls(key, numbers[key], **{end: numbers.get(f"{key}_{end}") for end in ends})

    @property
    def interval(self) -> tuple[float, float, float] | None:
        """(value, low, high), None without an interval."""
        return None if self.low is None or self.high is None else (self.value, self.low, self.high)

    @property
    def meaning(self) -> str:
        """One line on what it says."""
        return next((text for start, text in _MEANINGS.items() if self.key.startswith(start)), "")


@dataclass(frozen=True)
class Difference:
    """A number of this run beside that of another: with the 95 % interval (low, high) of the difference, or without.

    verdict: "better", "worse", "no difference that counts", or "" where there is no interval to say so.
    """

    key: str
    other: float
    this: float
    low: float | None = None
    high: float | None = None
    verdict: str = ""


def lower_is_better(key: str) -> bool:
    """Whether of two runs the one with the smaller number ``key``, one of the headline, is better by it."""
    return key.startswith(_LOWER_IS_BETTER) or key.endswith(_COSTS)


def quality_keys(headline: Sequence[str], cost: Mapping[str, Any]) -> list[str]:
    """The headline keys that say how good a run is: not what it cost, and not what stands beside another of them."""
    ends = ("_low", "_high", "_floor")
    beside = {key + end for key in headline for end in ends}
    return [key for key in headline if key not in beside and key not in cost and key not in OF_NETWORK]
