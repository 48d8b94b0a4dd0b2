"""Bits per dimension with the variance of the reverse steps fixed and learned: `python -m benchmarks.variance --help`.

The default's network and training but for its times, which are uniform, as the variational bound weighs them; trained
for an epoch with a fixed variance, with a learned one by L_hybrid (Nichol & Dhariwal 2021, eq. 16), and with that and
times by their losses (eq. 18), under several seeds. With --json, rows that the file has are left out; trainings lie in
the folder of --work, where a killed one resumes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import QUIET, arguments, defaults, earlier, fit, run, save, settings, show, slug_of
from ddpm.data.image_set import read_image_set
from ddpm.diffusion.likelihood import Likelihood, bits_per_dimension
from ddpm.sampling.generator import make_denoiser
from ddpm.utils.errors import DdpmError
from ddpm.utils.runtime import choose_runtime
from stages.paths import SPLIT

VARIANCES: dict[str, dict[str, Any]] = {
    "fixed": {},
    "learned": {"model.learned_variance": True},
    "learned, times by their losses": {"model.learned_variance": True, "train.time_density": "loss_aware"},
}
DEFINITIONS = {"variance": VARIANCES}
COMMON = QUIET | {"train.time_density": "uniform"}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--epochs", type=float, default=1.0, help="of a training (default 1)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default 0 1")
    parser.add_argument("--images", type=int, default=2000, help="test images (default 2000)")
    parser.add_argument("--work", type=Path, default=Path(".ckpt/variance"), help="where the trainings lie")
    given = parser.parse_args()
    common = COMMON | {"train.epochs": given.epochs}
    metadata = {"images": given.images} | defaults(common)
    rows = earlier(given.json, metadata, DEFINITIONS)
    known = {(row["variance"], row["seed"]) for row in rows}
    test = read_image_set(SPLIT / "test.npz")
    if not 2 <= given.images <= len(test):
        raise DdpmError(f"--images {given.images}: choose 2 to {len(test)} of the test images.")
    test = test.take(np.arange(given.images))
    for name in VARIANCES:
        for seed in [seed for seed in given.seeds if (name, seed) not in known]:
            config = settings(common, VARIANCES[name]).model_copy(update={"seed": seed})
            runtime = choose_runtime(config.runtime, float("inf"))
            slug = slug_of(name)
            checkpoint, _, _ = fit(config, runtime, given.work / f"{slug}_{given.epochs:g}_{seed}")
            denoiser = make_denoiser(checkpoint, "the checkpoint", runtime)
            images = torch.from_numpy(test.images).to(runtime.device)
            labels = checkpoint.conditioning.labels(test, runtime.device)
            schedule, times = denoiser.schedule, config.likelihood.times_per_image
            likelihood = Likelihood(denoiser.conditioned, images, labels, schedule, times, 0, denoiser.learned_variance)
            bits = bits_per_dimension(likelihood, checkpoint.conditioning.frequencies.flatten().tolist())
            keys = ("bpd_small", "bpd_large", "bpd_learned", "bpd_small_se")
            rows.append({"variance": name, "seed": seed} | {key: bits.get(key, "–") for key in keys})
            save(rows, given.json, metadata, DEFINITIONS)
            show(rows[-1:])
    show(rows)


if __name__ == "__main__":
    run(main)
