"""Draw the images, from the checkpoint alone; a killed run goes on where it stopped."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ddpm.config import Config
from ddpm.errors import DdpmError
from ddpm.files import atomic_folder, save_arrays, write_csv, write_json
from ddpm.images import resize
from ddpm.model.checkpoint import build_schedule, flops_per_image, load_checkpoint, restore_network
from ddpm.rescue import Rescue
from ddpm.runtime import choose_runtime, environment, peak_memory_bytes, worker_count
from ddpm.sampling import Source, draw_batches, evaluations, generate, make_source
from stages import COST, DRAWS, GENERATED, LABELS, MODEL, TRAJECTORY, finished_facts, rescue_folder, run


def generate_stage(config: Config) -> None:
    path = MODEL / f"{config.generate.checkpoint}.safetensors"
    checkpoint = load_checkpoint(path)
    restored = restore_network(checkpoint, str(path))
    schedule = build_schedule(checkpoint.diffusion)
    if config.generate.steps > len(schedule):
        raise DdpmError(f"generate.steps={config.generate.steps} exceeds the {len(schedule)} timesteps of {path}.")
    nfe = evaluations(config.generate, schedule, checkpoint.model.classes)
    total = config.generate.num_images * (1 + config.generate.repeats)
    runtime = choose_runtime(config.runtime, flops_per_image(checkpoint.model, checkpoint.image_size) * nfe * total)
    network = runtime.compile(runtime.prepare(restored, trains=False))
    source = make_source(checkpoint, network, config.generate, config.seed, runtime)
    numbers = range(1, config.generate.num_images + 1)
    labels = source.labels(numbers)
    with Rescue(rescue_folder("generate", config, *runtime.arithmetic())) as rescue:
        with atomic_folder(GENERATED) as folder:
            workers = worker_count(config.runtime.workers)
            cost, way = generate(source, folder, config.runtime.generate_batch_size, workers, rescue.folder)
        again = repeat(source, config, rescue.folder)
        save_arrays(TRAJECTORY, **way)
        save_arrays(DRAWS, **again)
        write_csv(LABELS, ("image", "digit"), [] if labels is None else zip(numbers, labels.tolist(), strict=True))
        cost |= {"generate_nfe": nfe, "generate_peak_memory_mib": peak_memory_bytes(runtime) / 2**20}
        described = (runtime.describe() | environment()).items()
        write_json(COST / "generate.json", cost | {f"generate_{key}": value for key, value in described})
        rescue.finish(finished_facts("generate"))


def repeat(source: Source, config: Config, kept: Path) -> dict[str, np.ndarray]:
    """Further sets of as many images, by other noise: uint8 [n, h, w] each, by the name of its draw."""
    sets = {}
    for draw in range(config.generate.draw + 1, config.generate.draw + 1 + config.generate.repeats):
        other = replace(source, config=config.generate.model_copy(update={"draw": draw, "trajectories": 1}))
        batches = draw_batches(other, config.runtime.generate_batch_size, kept / f"draw_{draw}", f"draw {draw}")
        sets[f"draw_{draw}"] = np.concatenate([resize(batch.images, config.generate.output_size) for batch in batches])
    return sets


if __name__ == "__main__":
    run(generate_stage)
