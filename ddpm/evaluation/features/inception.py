"""`inception`: the network and the weights of the pytorch-fid package.

The distance of these features is the FID of the literature, and equal to what ``python -m pytorch_fid`` prints.
"""

import http.client
import re
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ddpm.evaluation.features import EXTRACTORS, Features, UnavailableExtractor, refuse_few
from ddpm.utils.errors import DdpmError, lacks_memory
from ddpm.utils.files import sha256
from ddpm.utils.processes import process_pool
from ddpm.utils.runtime import Runtime, one_thread, sharing

_BATCH = {"cuda": 100, "mps": 100, "cpu": 50}  # of 299 × 299 pixels: 100 take some GiB


@EXTRACTORS.register("inception")
def open_inception(
    device: torch.device,
    images: int,
    inception: str,
    inception_weights: str | None,
    inception_features: int,
    processes: int = 1,
) -> "InceptionExtractor":
    """The network where it can be had.

    inception "auto": where there is no CUDA device (a CPU takes a quarter of an hour for every 10,000 images), the
    training ``images`` are too few, or the weights cannot be had, raise UnavailableExtractor; "required": a CPU will
    do, and the others raise DdpmError.
    inception_weights: their file, None for torch's hub cache or a download. inception_features: 64, 192, 768 or 2048.
    processes: see `InceptionExtractor`.
    """
    if inception == "auto" and device.type != "cuda":
        raise UnavailableExtractor("no CUDA device (fid.inception: required measures on a CPU too)")
    try:
        refuse_few(images, inception_features)
        weights = find_weights(Path(inception_weights) if inception_weights else None)
    except UnavailableExtractor as few:
        if inception == "auto":
            raise
        raise DdpmError(
            f"{few} of Inception: lower fid.inception_features, or leave inception out of fid.extractors."
        ) from few
    except DdpmError as error:
        if inception == "required":
            raise
        raise UnavailableExtractor(str(error)) from error
    return InceptionExtractor(weights, inception_features, device, processes)


class InceptionExtractor:
    """pytorch-fid's network up to the layer of 64, 192, 768 or 2048 features."""

    name, frechet_key = "inception", "fid_inception"
    preprocessing = "8 bit; grey repeated to RGB; resized to 299 × 299 bilinearly by the network"

    def __init__(self, weights: Path, dimensions: int, device: torch.device, processes: int = 1) -> None:
        """processes: that share the images, of one thread each on a CPU, where their number does not change a bit; on
        CUDA at most one a device. Raises DdpmError for a file that does not hold the weights.
        """
        self.network, self.device = load_inception(weights, dimensions, device), device
        self.weights, self.weights_sha256, self.dimensions = weights, sha256(weights), dimensions
        self.processes = sharing(device, processes)

    def features(self, images: np.ndarray, label: str) -> Features:
        """Features float32 [n, d]; maps are averaged over their pixels, as pytorch-fid does."""
        parts = np.array_split(images, -(-len(images) // _BATCH[self.device.type]))
        values = []
        with (
            process_pool(min(self.processes, len(parts)), _open, self.weights, self.dimensions, self.device) as pool,
            one_thread(self.device),
            tqdm(total=len(images), desc=f"Inception, {label}", unit="image") as progress,
        ):
            shared = [pool.submit(InceptionExtractor.embed, part) for part in parts] if pool else []
            for number, part in enumerate(parts):
                values.append(shared[number].result() if shared else self.embed(part))
                progress.update(len(part))
        return Features(np.concatenate(values))

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Features of one batch; where memory lacks for it, of its halves."""
        try:
            return self._embed(images)
        except RuntimeError as error:
            if len(images) == 1 or not lacks_memory(error):
                raise
        return np.concatenate([self.embed(half) for half in np.array_split(images, 2)])

    @torch.inference_mode()
    def _embed(self, images: np.ndarray) -> np.ndarray:
        batch = torch.tensor(images, device=self.device).float() / 255
        return self.network(batch.expand(-1, 3, -1, -1))[0].mean((2, 3)).cpu().numpy()


def _open(weights: Path, dimensions: int, device: torch.device, number: int) -> InceptionExtractor:
    """The network in a process of its own."""
    runtime = Runtime(device, torch.float32, compiled=False).of_rank(number)
    return InceptionExtractor(weights, dimensions, runtime.device)


def find_weights(path: Path | None) -> Path:
    """The weights file: ``path`` where given, else in torch's hub cache, downloaded into it where it is not there.

    A file's name ends in -XXXXXXXX.pth, the beginning of the SHA-256 of its content, which is checked.
    Raises DdpmError with what is missing and how to fix it.
    """
    from pytorch_fid.inception import FID_WEIGHTS_URL

    cached = Path(torch.hub.get_dir()) / "checkpoints" / FID_WEIGHTS_URL.rsplit("/", 1)[1]
    advice = f"name a copy of {cached.name} in fid.inception_weights, or leave inception out of fid.extractors."
    if path and not path.is_file():
        raise DdpmError(f"the Inception weights {path} are missing: {advice}")
    if not path and not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(FID_WEIGHTS_URL, str(cached), hash_prefix=cached.stem.rsplit("-", 1)[1])
        except (OSError, http.client.HTTPException, RuntimeError) as error:
            raise DdpmError(f"the Inception weights could not be downloaded ({error}): {advice}") from error
    found = path or cached
    prefix = re.fullmatch(r".*-([0-9a-f]{8,64})\.pth", found.name)
    if prefix is None or not sha256(found).startswith(prefix[1]):
        raise DdpmError(f"{found} does not have the SHA-256 that its name should end in: fetch it again.")
    return found


def load_inception(weights: Path, dimensions: int, device: torch.device) -> nn.Module:
    """pytorch-fid's network up to the layer of 64, 192, 768 or 2048 features, the last pooling, for evaluation.

    Raises DdpmError for a file that does not fit.
    """
    from pytorch_fid import inception

    # pytorch-fid reads its weights from torch's hub folder only: give it those of the file in their place.
    with patch.object(inception, "load_state_dict_from_url", lambda *_, **__: torch.load(weights, map_location="cpu")):
        try:
            network = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[dimensions]])
        except Exception as error:  # unpickling, missing keys and shapes fail in many ways, all meaning the same
            raise DdpmError(f"{weights} does not hold pytorch-fid's Inception weights ({error}).") from error
    return network.eval().to(device)
