"""One denoising evaluation, (x_t, t, label) -> x̂_0, as a file that is compared with PyTorch."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ddpm.config import GenerateConfig
from ddpm.diffusion.process import TARGETS
from ddpm.diffusion.schedule import build_schedule
from ddpm.export.formats import EXPORT_FORMATS, Evaluate
from ddpm.models.checkpoint import Checkpoint, restore_network
from ddpm.utils.errors import DdpmError
from ddpm.utils.files import atomic_path

TOLERANCE = 1e-4  # between x̂_0 by PyTorch and by a written file, relative to values above 1
_TIMED_SECONDS = 0.5


def refusal(checkpoint: Checkpoint) -> str:
    """Why an evaluation of the network cannot be written by itself; "" where it can."""
    wants_more = checkpoint.model.self_conditioning
    return "one evaluation of a network with model.self_conditioning needs the one before" if wants_more else ""


class Denoise(nn.Module):
    """The network's x̂_0, before clipping and without guidance, which both are linear in it and left to the caller.

    predict: the network. checkpoint: what it is of.
    """

    alpha_bar: Tensor
    alpha_bar_prev: Tensor

    def __init__(self, predict: nn.Module, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.predict, self._target = predict, TARGETS[checkpoint.diffusion.target]
        self._labels, self._shape = checkpoint.conditioning.count, checkpoint.spec.shape
        schedule = build_schedule(checkpoint.diffusion)
        self.register_buffer("alpha_bar", schedule.alpha_bar.float())
        self.register_buffer("alpha_bar_prev", schedule.alpha_bar_prev.float())

    def forward(self, x_t: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """x_t: float32 [n, c, h, w]; t: int64 [n] in 0 … T−1. Returns x̂_0, shaped like x_t.

        label: int64 [n], conditioning labels (`Conditioning`), −1 for the null label; None for a network without any.
        """
        alpha_bar, alpha_bar_prev = (levels[t][:, None, None, None] for levels in (self.alpha_bar, self.alpha_bar_prev))
        prediction = self.predict(x_t, t, label)[:, : x_t.shape[1]]  # without a learned variance
        return self._target.to_x_0(x_t, alpha_bar, prediction, alpha_bar_prev)

    def amplification(self, t: Tensor) -> Tensor:
        """How many times an error of the prediction is larger in x̂_0, at times int64 [n]: float32 [n, 1, 1, 1]."""
        levels = (level[t][:, None, None, None] for level in (self.alpha_bar, self.alpha_bar_prev))
        return self._target.x_0_error(*levels).sqrt()

    def example(self, count: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Inputs of so many images: noise, times from first to last, and labels, the null label among them."""
        random = torch.Generator().manual_seed(seed)
        x_t = torch.randn(count, *self._shape, generator=random)
        t = torch.randint(len(self.alpha_bar), (count,), generator=random)
        label = torch.randint(-1, max(1, self._labels), (count,), generator=random)
        return (x_t, t, label) if self._labels else (x_t, t)


def evaluated(checkpoint: Checkpoint, settings: GenerateConfig) -> dict[str, str]:
    """The weights that sampling by these settings evaluates: their group in the checkpoint, by the file's name."""
    guided = settings.autoguidance != 1.0 and bool(checkpoint.tensors.get("guide"))
    return {"denoise": "ema"} | ({"guide": "guide"} if guided else {})


def restore_denoise(checkpoint: Checkpoint, name: str, group: str = "ema") -> Denoise:
    """The evaluation of that group's weights, in float32 on the CPU. Raises what `restore_network` does."""
    return Denoise(restore_network(checkpoint, name, group), checkpoint).eval()


@dataclass(frozen=True)
class Exported:
    """A file that was written, and what it is worth.

    difference: the largest from PyTorch's x̂_0. milliseconds: of an evaluation, by batch size, in torch's threads.
    """

    path: Path
    bytes: int
    difference: float
    milliseconds: dict[int, float]


def export(path: Path, denoise: Denoise, name: str, batch_sizes: Sequence[int] = (1, 64)) -> Exported:
    """Write the evaluation to ``path`` and the suffix of the format ``name``, atomically, and compare it with PyTorch.

    The batch size is free, the same weights give the same bytes. Raises DdpmError where the file does not compute what
    PyTorch does, and OSError.
    """
    chosen = EXPORT_FORMATS[name]
    path = path.with_name(path.name + chosen.suffix)
    with atomic_path(path) as temporary:
        chosen.write(temporary, denoise, denoise.example(2))
        evaluate = chosen.read(temporary)
        found = max(difference(evaluate, denoise, count) for count in (1, 2, 17))
        if not found <= TOLERANCE:
            raise DdpmError(
                f"{path}: the {name} file is {found:.1e} away from PyTorch, more than {TOLERANCE:.0e}: leave {name} "
                "out of export.formats."
            )
        milliseconds = {count: 1e3 * _seconds(evaluate, denoise.example(count)) for count in batch_sizes}
    return Exported(path, path.stat().st_size, found, milliseconds)


def difference(evaluate: Evaluate, denoise: Denoise, count: int) -> float:
    """The largest |x̂_0 − PyTorch's| / max(1, |PyTorch's|, a) over so many images of noise at random times.

    a: how many times an error of the prediction is larger in x̂_0, as that of eps is at much noise: it is the network
    that is compared.
    """
    inputs = denoise.example(count, seed=count)
    with torch.inference_mode():
        expected = denoise(*inputs)
    scale = torch.maximum(expected.abs(), denoise.amplification(inputs[1])).clamp(min=1.0)
    return float(((evaluate(*inputs) - expected).abs() / scale).max())


def described(exported: Sequence[Exported], denoise: Denoise) -> str:
    """Sizes, differences and speeds as text, PyTorch's own first."""
    batch_sizes = list(exported[0].milliseconds) if exported else []
    with torch.inference_mode():
        own = {count: 1e3 * _seconds(denoise, denoise.example(count)) for count in batch_sizes}
    rows = [("PyTorch, float32", "", "", own)]
    rows += [
        (part.path.name, f"{part.bytes / 2**20:.2f} MiB", f"{part.difference:.1e}", part.milliseconds)
        for part in exported
    ]
    heads = "".join(f"{f'batch of {count}':>14}" for count in batch_sizes)
    lines = [f"{'one evaluation':20}{'size':>10}{'difference':>12}{heads}"]
    lines += [
        f"{name:20}{size:>10}{gap:>12}" + "".join(f"{times[count]:>11.2f} ms" for count in batch_sizes)
        for name, size, gap, times in rows
    ]
    return "\n".join(lines)


def _seconds(evaluate: Evaluate, inputs: tuple[Tensor, ...]) -> float:
    """The shortest time of an evaluation: others that use the machine only make it longer."""
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 3 or time.perf_counter() < started + _TIMED_SECONDS:
        begun = time.perf_counter()
        evaluate(*inputs)
        times.append(time.perf_counter() - begun)
    return min(times)
