"""Guidance: away from a weaker prediction."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """Adds (scale − 1) · (p − q) to the prediction p, q being a weaker one of the same x_t.

    q by the same network for the null label is classifier-free guidance (Ho & Salimans 2021, "Classifier-Free Diffusion
    Guidance", eq. 6 with w counted from 1): towards the label. q for the same label by an earlier state of the
    network is autoguidance (Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", eq. 3): away
    from the faults that both have and the weaker one has more of.

    scale: w; 1 is p alone, at one network evaluation instead of two. interval: bounds of the noise-to-signal ratio
    √(1/ᾱ − 1) within which there is guidance: it helps where the image takes shape, and costs variety before
    (Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval").
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, float("inf"))

    def is_active(self, alpha_bar: Tensor) -> Tensor:
        """Whether q is evaluated at each time: bool, shaped like ``alpha_bar``."""
        sigma = (1.0 / alpha_bar - 1.0).sqrt()
        return (sigma >= self.interval[0]) & (sigma <= self.interval[1]) & (self.scale != 1.0)

    def correction(self, prediction: Tensor, weaker: Tensor) -> Tensor:
        """What is added to the prediction: shaped like it."""
        return (self.scale - 1.0) * (prediction - weaker)


UNGUIDED = Guidance()


def rescaled(guided: Tensor, prediction: Tensor, fraction: float) -> Tensor:
    """Bring the standard deviation of each guided prediction back towards that of the prediction: shaped like it.

    Guidance makes images too bright and too dark. ``fraction`` 0 changes nothing, 1 makes the deviations equal: Lin et
    al. 2024, "Common Diffusion Noise Schedules and Sample Steps Are Flawed", eq. 15 and 16.
    """
    axes = (1, 2, 3)
    ratio = prediction.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return guided * (fraction * ratio + (1.0 - fraction))
