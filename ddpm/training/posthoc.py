"""Averages of a training's weights of any length, after the training: post-hoc EMA.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv:2312.02696), §3.2 and
appendix C. A training with `train.posthoc_snapshots` keeps, at several times t_i, its averages by profiles τ^γ_i on
[0, t_i]. The sum of these whose profile is nearest to the wanted one, in the square norm, is nearly the wanted average.

γ: the exponent of a profile, `ddpm.training.ema.power` of its length. t: a time, in optimizer steps.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ddpm.models.checkpoint import Checkpoint, load_checkpoint
from ddpm.training.ema import power
from ddpm.utils.errors import DdpmError, MissingFile

LONGEST = 12**-0.5  # of the average in which all weights count alike, γ = 0


def inner_products(t: np.ndarray, gamma: np.ndarray, other_t: np.ndarray, other_gamma: np.ndarray) -> np.ndarray:
    """⟨p, q⟩ = ∫ p(τ) q(τ) dτ of profiles p(τ) = (γ + 1) τ^γ / t^(γ + 1) on [0, t], eq. 151: [n], [m] → float64 [n, m].

    With t the earlier of both times and t' the later: (γ + 1)(γ' + 1) / (γ + γ' + 1) · (t / t')^γ' / t'.
    """
    t, gamma = t[:, None], gamma[:, None]
    later = np.maximum(t, other_t)
    ratio = np.minimum(t, other_t) / later
    later_gamma = np.where(t > other_t, gamma, other_gamma)
    return (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1) * ratio**later_gamma / later


def coefficients(t: np.ndarray, gamma: np.ndarray, wanted_t: float, wanted_gamma: float) -> tuple[np.ndarray, float]:
    """Of the sum of profiles, float64 [n], that is nearest to the wanted one: algorithm 3. They add up to 1.

    Solves A x = b with A_ij = ⟨p_i, p_j⟩ and b_i = ⟨p_i, wanted⟩. Also returns the distance of the sum from the wanted
    profile, as a fraction of that one's norm.
    """
    wanted = np.array([wanted_t]), np.array([wanted_gamma])
    a, b = inner_products(t, gamma, t, gamma), inner_products(t, gamma, *wanted)[:, 0]
    x = np.linalg.solve(a, b)
    x /= x.sum()
    square = float(inner_products(*wanted, *wanted)[0, 0])
    return x, float(max(0.0, 1 - (2 * b @ x - x @ a @ x) / square) ** 0.5)


def averaged(path: Path, length: float) -> tuple[Checkpoint, float]:
    """The checkpoint at ``path`` with weights averaged over ``length``, from the snapshots in posthoc/ beside it.

    length: the standard deviation of the profile over the time of the last snapshot, in (0, `LONGEST`]. The second
    result is that of `coefficients`. Raises DdpmError for another length and for snapshots of another training,
    MissingFile where there are none, DamagedFile.
    """
    if not 0 < length <= LONGEST:
        raise DdpmError(f"there is no average of length {length:g}: name one above 0, up to {LONGEST:.4g}.")
    checkpoint, folder = load_checkpoint(path), path.parent / "posthoc"
    snapshots = [load_checkpoint(kept) for kept in sorted(folder.glob("step_*.safetensors"))]
    if not snapshots:
        raise MissingFile(f"{folder} holds no snapshots (a training with train.posthoc_snapshots above 0 keeps them)")
    if any(_training(snapshot) != _training(checkpoint) for snapshot in snapshots):
        raise DdpmError(
            f"{folder} holds snapshots of another training than {path}: train again, or name its checkpoint."
        )
    kept = [(snapshot.metadata["step"], *named) for snapshot in snapshots for named in snapshot.tensors.items()]
    t = np.array([step for step, _, _ in kept], float)
    gamma = np.array([power(float(name.removeprefix("power_"))) for _, name, _ in kept])
    factors, distance = coefficients(t, gamma, t.max(), power(length))
    weights = {
        key: sum(x * named[key].double() for x, (_, _, named) in zip(factors, kept, strict=True)).to(value.dtype)
        for key, value in kept[0][2].items()
    }
    metadata = {key: value for key, value in checkpoint.metadata.items() if key in ("seed", "sampling", "null_label")}
    metadata |= {"step": int(t.max()), "average_length": length}
    guide = checkpoint.tensors.get("guide", {})
    return replace(checkpoint, metadata=metadata, tensors={"ema": weights, "guide": guide}), distance


def _training(checkpoint: Checkpoint) -> tuple[object, ...]:
    """What the checkpoints of one training share."""
    return checkpoint.model, checkpoint.diffusion, checkpoint.spec, checkpoint.metadata.get("seed")
