"""Draw the images, from the checkpoint alone."""

from ddpm.config import Config
from ddpm.errors import DdpmError
from ddpm.files import atomic_folder, save_arrays, write_json
from ddpm.model.checkpoint import build_schedule, flops_per_image, load_checkpoint, restore_network
from ddpm.model.denoiser import make_denoiser
from ddpm.runtime import choose_runtime, peak_memory_bytes, worker_count
from ddpm.sampling import Source, generate, trace
from stages import COST, GENERATED, MODEL, TRAJECTORY, run


def generate_stage(config: Config) -> None:
    path = MODEL / f"{config.generate.checkpoint}.safetensors"
    checkpoint = load_checkpoint(path)
    network = restore_network(checkpoint, str(path))
    schedule = build_schedule(checkpoint.diffusion)
    if config.generate.steps > len(schedule):
        raise DdpmError(f"generate.steps={config.generate.steps} exceeds the {len(schedule)} timesteps of {path}.")
    flops = (
        flops_per_image(checkpoint.model, checkpoint.image_size) * config.generate.steps * config.generate.num_images
    )
    runtime = choose_runtime(config.runtime, flops)
    denoise = make_denoiser(
        runtime.compile(runtime.prepare(network)), checkpoint.diffusion, schedule, runtime, config.generate.clip
    )
    source = Source(denoise, schedule, config.generate, checkpoint.image_size, config.seed, runtime.device)
    with atomic_folder(GENERATED) as folder:
        cost = generate(source, folder, config.runtime.generate_batch_size, worker_count(config.runtime.workers))
    save_arrays(TRAJECTORY, **trace(source))
    write_json(
        COST / "generate.json",
        cost
        | {"generate_nfe": config.generate.steps, "generate_peak_memory_mib": peak_memory_bytes(runtime) / 2**20}
        | {f"generate_{key}": value for key, value in runtime.describe().items()},
    )


if __name__ == "__main__":
    run(generate_stage)
