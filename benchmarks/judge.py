"""A second classifier, by which nothing in the pipeline is measured: `python -m benchmarks.judge data/raw
benchmarks/judge.safetensors`.

Another architecture (residual blocks, GELU, features averaged over the image instead of taken from it place by place)
and another seed than the shipped one, trained by the same recipe. It is no part of the pipeline: a gain that the
shipped classifier sees and this one does not is a gain of no digit.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ddpm.data.image_set import normalize
from ddpm.evaluation.train_classifier import main

WEIGHTS = Path(__file__).with_name("judge.safetensors")
SEED, EPOCHS = 77, 8


class ResidualBlock(nn.Module):
    """BatchNorm, GELU, convolution, twice, around a 1 × 1 convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(channels_in),
            nn.GELU(),
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.GELU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        )
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, channels_in, h, w]. Returns [n, channels_out, h, w]."""
        return self.shortcut(x) + self.branch(x)


class Judge(nn.Module):
    """Three residual blocks at 14, 7 and 4 pixels a side, then the mean over the image: 96 features."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Sequential(
            nn.Conv2d(1, 24, 5, stride=2, padding=2, bias=False),
            ResidualBlock(24, 48),
            nn.AvgPool2d(2),
            ResidualBlock(48, 80),
            nn.AvgPool2d(2, ceil_mode=True),
            ResidualBlock(80, 96),
            nn.BatchNorm2d(96),
            nn.GELU(),
        )
        self.dropout = nn.Dropout(0.2)
        self.classify = nn.Linear(96, 10)

    def features(self, images: Tensor) -> Tensor:
        """images: uint8 [n, 1, 28, 28]. Returns float32 [n, 96]."""
        return self.levels(normalize(images)).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """images: uint8 [n, 1, 28, 28]. Returns class logits, float32 [n, 10]."""
        return self.classify(self.dropout(self.features(images)))


def load_judge() -> Judge:
    """The trained network in evaluation mode."""
    judge = Judge()
    judge.load_state_dict(load_file(WEIGHTS))
    return judge.eval().requires_grad_(False).to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main(Judge, SEED, EPOCHS)
