"""The recipe of the shipped classifier: `python -m ddpm.evaluation.train_classifier data/raw OUTPUT.safetensors`.

60,000 training digits under small random rotations, shifts and scalings; AdamW with a one-cycle learning rate; the
weights after the last epoch, not chosen by test accuracy, which is measured once at the end and printed.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ddpm.data.sources.mnist import MNIST
from ddpm.evaluation.features.classifier import Classifier
from ddpm.utils.files import atomic_path, sha256
from ddpm.utils.seeds import torch_generator

SEED = 3407
EPOCHS = 16
BATCH = 100
LEARNING_RATE = 3e-3
MAX_ROTATION = math.radians(12)
MAX_SHIFT = 0.12  # of half the image's width
MAX_SCALING = 0.1


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift each image at random. uint8 [n, 1, 28, 28] in and out."""
    count = len(images)
    angle, scale, *shift = torch.rand(4, count, generator=generator) * 2 - 1
    angle, scale = angle * MAX_ROTATION, 1 + scale * MAX_SCALING
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [torch.stack([cos, -sin, shift[0] * MAX_SHIFT], 1), torch.stack([sin, cos, shift[1] * MAX_SHIFT], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False).round().to(torch.uint8)


def train(build: Callable[[], nn.Module], images: Tensor, labels: Tensor, seed: int, epochs: int) -> nn.Module:
    """Train what ``build`` makes on uint8 images [n, 1, 28, 28] and int64 labels [n]; returns it ready to evaluate."""
    torch.manual_seed(seed)  # the initial weights and dropout have no generator argument
    generator = torch_generator(seed, "classifier")
    network = build().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=0.2)
    with tqdm(total=steps, desc="classifier", unit="step") as progress:
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator)
            for batch in order[: len(order) // BATCH * BATCH].split(BATCH):
                with torch.autocast("cpu", torch.bfloat16):
                    logits = network(augment(images[batch], generator))
                loss = F.cross_entropy(logits.float(), labels[batch])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return network.eval()


def main(build: Callable[[], nn.Module] = Classifier, seed: int = SEED, epochs: int = EPOCHS) -> None:
    """Train, save, and print the accuracy on the 10,000 test digits with the file's SHA-256."""
    parser = argparse.ArgumentParser(description="Train a classifier of MNIST's digits by the shipped one's recipe.")
    parser.add_argument("raw", type=Path, help="folder with the four IDX files")
    parser.add_argument("output", type=Path, help="the safetensors file to write")
    arguments = parser.parse_args()
    train_set, test_set = (MNIST.load(arguments.raw, part) for part in ("train", "test"))
    network = train(build, torch.from_numpy(train_set.images), torch.from_numpy(train_set.labels), seed, epochs)
    with atomic_path(arguments.output) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, temporary)
    with torch.inference_mode():
        guesses = [network(batch).argmax(1) for batch in torch.from_numpy(test_set.images).split(500)]
    accuracy = np.mean(torch.cat(guesses).numpy() == test_set.labels)
    print(f"test accuracy {accuracy:.4f}  sha256 {sha256(arguments.output)}")


if __name__ == "__main__":
    main()
