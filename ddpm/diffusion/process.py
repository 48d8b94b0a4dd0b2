"""The forward process, its posterior, and the conversions between what a network may predict. Pure functions.

``alpha_bar`` is always ᾱ_t shaped to broadcast against the images, that is [n, 1, 1, 1] or a scalar tensor.
"""

from torch import Tensor


def normalize(images: Tensor) -> Tensor:
    """uint8 pixels [n, height, width] to x_0: float32 [n, 1, height, width] in [-1, 1]."""
    return images[:, None].float() / 127.5 - 1.0


def q_sample(x_0: Tensor, alpha_bar: Tensor, eps: Tensor) -> Tensor:
    """x_t = √ᾱ_t x_0 + √(1−ᾱ_t) eps. DDPM, eq. 4."""
    return alpha_bar.sqrt() * x_0 + (1.0 - alpha_bar).sqrt() * eps


def v_from(x_0: Tensor, alpha_bar: Tensor, eps: Tensor) -> Tensor:
    """V = √ᾱ_t eps − √(1−ᾱ_t) x_0. Salimans & Ho 2022, "Progressive Distillation", §4."""
    return alpha_bar.sqrt() * eps - (1.0 - alpha_bar).sqrt() * x_0


def x_0_from_eps(x_t: Tensor, alpha_bar: Tensor, eps: Tensor) -> Tensor:
    """Solve eq. 4 of DDPM for x_0."""
    return (x_t - (1.0 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()


def eps_from_x_0(x_t: Tensor, alpha_bar: Tensor, x_0: Tensor) -> Tensor:
    """Solve eq. 4 of DDPM for eps."""
    return (x_t - alpha_bar.sqrt() * x_0) / (1.0 - alpha_bar).sqrt()


def x_0_from_v(x_t: Tensor, alpha_bar: Tensor, v: Tensor) -> Tensor:
    """x_0 = √ᾱ_t x_t − √(1−ᾱ_t) v."""
    return alpha_bar.sqrt() * x_t - (1.0 - alpha_bar).sqrt() * v


def target_of(name: str, x_0: Tensor, alpha_bar: Tensor, eps: Tensor) -> Tensor:
    """What the network is to predict: ``name`` is "eps", "v" or "x_0"."""
    if name == "eps":
        return eps
    return v_from(x_0, alpha_bar, eps) if name == "v" else x_0


def x_0_from(name: str, x_t: Tensor, alpha_bar: Tensor, prediction: Tensor) -> Tensor:
    """The x_0 that a prediction of the target ``name`` ("eps", "v" or "x_0") stands for."""
    if name == "eps":
        return x_0_from_eps(x_t, alpha_bar, prediction)
    return x_0_from_v(x_t, alpha_bar, prediction) if name == "v" else prediction


def q_posterior_mean(x_0: Tensor, x_t: Tensor, alpha_bar: Tensor, alpha_bar_prev: Tensor) -> Tensor:
    """Mean of q(x_{t−1} | x_t, x_0). DDPM, eq. 7, with β_t = 1 − ᾱ_t / ᾱ_{t−1}."""
    beta = 1.0 - alpha_bar / alpha_bar_prev
    weight_x_0 = alpha_bar_prev.sqrt() * beta / (1.0 - alpha_bar)
    weight_x_t = (1.0 - beta).sqrt() * (1.0 - alpha_bar_prev) / (1.0 - alpha_bar)
    return weight_x_0 * x_0 + weight_x_t * x_t
