"""The recipe of the classifiers, whose features measure; as a command, of the shipped one of MNIST's digits:
`python -m ddpm.evaluation.train_classifier data/raw OUTPUT.safetensors`.

All training images under small random rotations, shifts and scalings; AdamW with a one-cycle learning rate; the weights
after the last epoch, not chosen by test accuracy, which is measured once at the end. The seed is the recipe's own: runs
under other seeds of the pipeline are measured by the same network.
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

from ddpm.data.image_set import ImageSet
from ddpm.data.sources import SOURCES
from ddpm.evaluation.features.classifier import Classifier, as_input, classifier_of, load_trained, save_trained
from ddpm.utils.devices import to_device
from ddpm.utils.files import arrays_sha256, atomic_path, sha256
from ddpm.utils.runtime import one_thread
from ddpm.utils.seeds import torch_generator

SEED = 3407
EPOCHS = 16  # of the shipped classifier
BATCH = 100
LEARNING_RATE = 3e-3
MAX_ROTATION = math.radians(12)
MAX_SHIFT = 0.12  # of half the image's width
MAX_SCALING = 0.1


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift each image at random. uint8 [n, c, s, s] in and out; the generator is the CPU's."""
    count = len(images)
    angle, scale, *shift = to_device(torch.rand(4, count, generator=generator) * 2 - 1, images.device)
    angle, scale = angle * MAX_ROTATION, 1 + scale * MAX_SCALING
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [torch.stack([cos, -sin, shift[0] * MAX_SHIFT], 1), torch.stack([sin, cos, shift[1] * MAX_SHIFT], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False).round().to(torch.uint8)


def train(
    build: Callable[[], nn.Module],
    images: np.ndarray,
    labels: np.ndarray,
    seed: int,
    epochs: int,
    device: torch.device,
    precision: torch.dtype = torch.bfloat16,
) -> nn.Module:
    """Train what ``build`` makes on uint8 images [n, c, s, s] and int64 labels [n]; returns it ready to evaluate."""
    torch.manual_seed(seed)  # the initial weights and dropout have no generator argument
    generator = torch_generator(seed, "classifier")
    network = build().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    size = min(BATCH, len(images))
    steps = epochs * (len(images) // size)
    start = 0.25 if steps == 5 else 0.2  # of the rise; one of exactly 1 step would have torch divide by zero
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps, pct_start=start)
    with tqdm(total=steps, desc="classifier", unit="step") as progress:
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator).numpy()
            for batch in np.split(order[: len(order) // size * size], len(order) // size):
                x, y = (to_device(torch.from_numpy(part[batch]), device) for part in (images, labels))
                with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    logits = network(augment(x, generator))
                loss = F.cross_entropy(logits.float(), y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update()
                if progress.n % 20 == 0:
                    progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return network.eval()


@torch.inference_mode()
def accuracy(network: nn.Module, images: np.ndarray, labels: np.ndarray, device: torch.device) -> float:
    """The fraction of uint8 images [n, c, s, s] that are classified as their label, int64 [n]."""
    parts = np.split(images, range(500, len(images), 500))
    guesses = [network(torch.tensor(part).to(device)).argmax(1).cpu() for part in parts]
    return float(np.mean(torch.cat(guesses).numpy() == labels))


def train_classifier(
    path: Path, train_set: ImageSet, test_set: ImageSet, epochs: int, device: torch.device, precision: torch.dtype
) -> float:
    """Train the feature network of a data set and write it to ``path``, atomically; returns its test accuracy.

    Raises OSError.
    """
    spec = train_set.spec
    images, held_out = (as_input(part.images, spec) for part in (train_set, test_set))
    with one_thread(device):  # else another number of cores would give other features
        network = train(lambda: classifier_of(spec), images, train_set.labels, SEED, epochs, device, precision)
        found = accuracy(network, held_out, test_set.labels, device)
    remarks = {"test_accuracy": found} | _recipe(train_set, epochs, precision)
    save_trained(path, network, spec, remarks)
    return found


def trained_on(path: Path, train_set: ImageSet, epochs: int, precision: torch.dtype) -> bool:
    """Whether `train_classifier` wrote ``path`` for just this. Raises MissingFile, DamagedFile."""
    _, spec, remarks = load_trained(path, torch.device("cpu"))
    return spec == train_set.spec and _recipe(train_set, epochs, precision).items() <= remarks.items()


def _recipe(train_set: ImageSet, epochs: int, precision: torch.dtype) -> dict[str, str]:
    words = f"{epochs} epochs of {len(train_set)} images, seed {SEED}, {str(precision).removeprefix('torch.')}"
    return {"recipe": words, "images_sha256": arrays_sha256(train_set.images, train_set.labels)}


def main(build: Callable[[], nn.Module] = Classifier, seed: int = SEED, epochs: int = EPOCHS) -> None:
    """Train, save, and print the accuracy on the 10,000 test digits with the file's SHA-256."""
    parser = argparse.ArgumentParser(description="Train a classifier of MNIST's digits by the shipped one's recipe.")
    parser.add_argument("raw", type=Path, help="folder with the four IDX files")
    parser.add_argument("output", type=Path, help="the safetensors file to write")
    arguments = parser.parse_args()
    cpu = torch.device("cpu")
    train_set, test_set = (SOURCES["mnist"].load(arguments.raw, part) for part in ("train", "test"))
    network = train(build, train_set.images, train_set.labels, seed, epochs, cpu)
    with atomic_path(arguments.output) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, temporary)
    found = accuracy(network, test_set.images, test_set.labels, cpu)
    print(f"test accuracy {found:.4f}  sha256 {sha256(arguments.output)}")


if __name__ == "__main__":
    main()
