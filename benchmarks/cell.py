"""The last stage of an experiment of `benchmarks.grid`: images of its training by every sampler, and how good they are.

Samples as many images as `generate.num_images` says by each of `SAMPLERS`, at about as many network evaluations an
image, from the same noise, and writes their numbers into metrics/grid.json.
"""

from dataclasses import replace
from typing import Any

from benchmarks.common import evaluator, run, sample, settings
from ddpm.evaluation.classes import ambiguous
from ddpm.evaluation.frechet import fit_gaussian, frechet_distance
from ddpm.models.checkpoint import load_checkpoint
from ddpm.sampling.generator import make_generator
from ddpm.utils.devices import fitting_batch
from ddpm.utils.files import significant, write_json
from ddpm.utils.runtime import choose_runtime, one_thread
from stages.paths import METRICS, MODEL

SAMPLERS: dict[str, dict[str, Any]] = {
    "ddpm": {"generate.sampler": "ddpm", "generate.variance": "small"},
    "ddim": {"generate.sampler": "ddim", "generate.eta": 0.0},
    "dpmpp_2m": {"generate.sampler": "dpmpp_2m", "generate.eta": 0.0},
    "heun": {"generate.sampler": "heun", "generate.steps": 10},
}


def main() -> None:
    config = settings()
    path, count = MODEL / f"{config.generate.checkpoint}.safetensors", config.generate.num_images
    runtime = choose_runtime(config.runtime, 1.0)
    generator = make_generator(load_checkpoint(path), str(path), config.generate, config.seed, runtime)
    labels = generator.class_labels(range(1, count + 1))
    network, real = evaluator()
    found: dict[str, dict[str, float]] = {}
    with one_thread(runtime.device):
        for name, changes in SAMPLERS.items():
            chosen = replace(generator, config=settings(changes).generate)
            features = network.features(sample(chosen, count, fitting_batch(count, runtime.device)), name)
            assert features.probabilities is not None
            found[name] = {
                "nfe": chosen.nfe,
                "fd_mnist": frechet_distance(real.gaussian, fit_gaussian(features.values)),
                "label_accuracy": float((features.probabilities.argmax(1) == labels).mean()),
                "ambiguous_fraction": float(ambiguous(features.probabilities).mean()),
            }
    write_json(METRICS / "grid.json", significant(found))


if __name__ == "__main__":
    run(main)
