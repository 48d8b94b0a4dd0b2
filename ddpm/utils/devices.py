"""Devices of tensors."""

import math

import torch
from torch import Tensor

_MAX_BATCH = {"mps": 1000, "cuda": 1250}  # 10,000 images are enough of them for eight CUDA devices
_MAX_BATCH_ELSEWHERE = 125


def fitting_batch(images: int, device: torch.device) -> int:
    """A batch size at which networks are fast on the device, and which divides so many images with little over."""
    return math.ceil(images / math.ceil(images / _MAX_BATCH.get(device.type, _MAX_BATCH_ELSEWHERE)))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device; to a CUDA device it is on its way when this returns.

    CUDA stages memory that is not pinned before the call returns, so that it may be changed or freed at once. On an
    Apple GPU that is not said, so this waits there.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def of_each(values: Tensor, device: torch.device) -> Tensor:
    """One value of each image, [n] on the CPU, as [n, 1, 1, 1] on the device. A scalar, one value of all, as it is.

    Scalars of the CPU take part on every device without a copy.
    """
    return to_device(values[:, None, None, None], device) if values.ndim else values


def with_float64(device: torch.device) -> torch.device:
    """The device, or the CPU in place of one that has no float64, such as an Apple GPU."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")
