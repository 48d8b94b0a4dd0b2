"""How much an image depends on the batch it is sampled in: `python -m benchmarks.batches --help`.

The first images of the pipeline's model are sampled in batches of several sizes, and compared with those of batches of
the default size. Their noise is their own whatever the batch; what is left is the rounding of the matrix products.
"""

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.common import arguments, run, sample, save, settings, show
from ddpm.models.checkpoint import load_checkpoint
from ddpm.sampling.generator import make_generator
from ddpm.utils.devices import fitting_batch
from ddpm.utils.runtime import choose_runtime
from stages.paths import MODEL

BATCHES = (1, 7, 64, 1000)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=1000, help="per row (default 1000; 64 in batches of 1)")
    given = parser.parse_args()
    config = settings()
    checkpoint = load_checkpoint(MODEL / f"{config.generate.checkpoint}.safetensors")
    rows = []
    with tqdm(total=2 * (1 + len(BATCHES)), desc="batches", unit="row") as progress:
        for precision in ("float32", "bfloat16"):
            runtime = choose_runtime(config.runtime.model_copy(update={"precision": precision, "compile": "off"}), 0.0)
            generator = make_generator(checkpoint, "the checkpoint", config.generate, config.seed, runtime)
            default = fitting_batch(config.generate.num_images, runtime.device)
            expected = sample(generator, given.images, default).astype(int)
            progress.update()
            for batch in BATCHES:
                count = min(given.images, 64) if batch == 1 else given.images
                difference = np.abs(sample(generator, count, batch) - expected[:count])
                rows.append(
                    {
                        "precision": precision,
                        "batch": batch,
                        "images": count,
                        "equal_pixels": float((difference == 0).mean()),
                        "mean_difference": float(difference.mean()),
                        "largest_difference": int(difference.max()),
                        "equal_images": float((difference.reshape(count, -1).max(1) == 0).mean()),
                    }
                )
                progress.update()
    save(rows, given.json, {"threads": torch.get_num_threads(), "against_batches_of": default})
    show(rows)


if __name__ == "__main__":
    run(main)
