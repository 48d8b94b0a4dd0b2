"""Draw the images, from the checkpoint alone."""

from ddpm.config import Config
from ddpm.errors import DdpmError
from ddpm.files import atomic_folder, save_arrays, write_csv, write_json
from ddpm.model.checkpoint import build_schedule, flops_per_image, load_checkpoint, restore_network
from ddpm.runtime import choose_runtime, peak_memory_bytes, worker_count
from ddpm.sampling import evaluations, generate, make_source
from stages import COST, GENERATED, LABELS, MODEL, TRAJECTORY, run


def generate_stage(config: Config) -> None:
    path = MODEL / f"{config.generate.checkpoint}.safetensors"
    checkpoint = load_checkpoint(path)
    restored = restore_network(checkpoint, str(path))
    schedule = build_schedule(checkpoint.diffusion)
    if config.generate.steps > len(schedule):
        raise DdpmError(f"generate.steps={config.generate.steps} exceeds the {len(schedule)} timesteps of {path}.")
    nfe = evaluations(config.generate, schedule, checkpoint.model.classes)
    flops = flops_per_image(checkpoint.model, checkpoint.image_size) * nfe * config.generate.num_images
    runtime = choose_runtime(config.runtime, flops)
    network = runtime.compile(runtime.prepare(restored, trains=False))
    source = make_source(checkpoint, network, config.generate, config.seed, runtime)
    numbers = range(1, config.generate.num_images + 1)
    labels = source.labels(numbers)
    with atomic_folder(GENERATED) as folder:
        cost, way = generate(source, folder, config.runtime.generate_batch_size, worker_count(config.runtime.workers))
    save_arrays(TRAJECTORY, **way)
    write_csv(LABELS, ("image", "digit"), [] if labels is None else zip(numbers, labels.tolist(), strict=True))
    write_json(
        COST / "generate.json",
        cost
        | {"generate_nfe": nfe, "generate_peak_memory_mib": peak_memory_bytes(runtime) / 2**20}
        | {f"generate_{key}": value for key, value in runtime.describe().items()},
    )


if __name__ == "__main__":
    run(generate_stage)
