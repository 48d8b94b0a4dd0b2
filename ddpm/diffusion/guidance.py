"""Classifier-free guidance."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """The prediction p_null + scale · (p_label − p_null), p_null being that of the null label.

    scale: w; 1 is the label's prediction alone, at one network evaluation instead of two (Ho & Salimans 2021,
    "Classifier-Free Diffusion Guidance", eq. 6 with w counted from 1). interval: bounds of the noise-to-signal ratio
    √(1/ᾱ − 1) within which there is guidance: it helps where the image takes shape, and costs variety before
    (Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval").
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, float("inf"))

    def is_active(self, alpha_bar: Tensor) -> Tensor:
        """Whether the network is evaluated a second time at each time: bool, shaped like ``alpha_bar``."""
        sigma = (1.0 / alpha_bar - 1.0).sqrt()
        return (sigma >= self.interval[0]) & (sigma <= self.interval[1]) & (self.scale != 1.0)

    def combine(self, of_null: Tensor, of_label: Tensor) -> Tensor:
        """The guided prediction, from those of the null label and of the class label."""
        return of_null.lerp(of_label, self.scale)


UNGUIDED = Guidance()
