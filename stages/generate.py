"""Sample the images, from the checkpoint alone; a killed run resumes where it stopped."""

from ddpm.config import Config
from ddpm.models.build import flops_per_image
from ddpm.models.checkpoint import load_checkpoint
from ddpm.sampling.batches import sample_replicates, write_images
from ddpm.sampling.generator import make_generator
from ddpm.utils.files import atomic_folder, save_arrays, write_csv, write_json
from ddpm.utils.resume import KeptRun
from ddpm.utils.runtime import choose_runtime, environment, peak_memory_bytes, worker_count
from stages.paths import COST, GENERATED, LABELS, MODEL, REPLICATES, TRAJECTORY
from stages.resume import finished_run, resume_folder
from stages.runner import run


def generate(config: Config) -> None:
    settings, batch_size = config.generate, config.runtime.generate_batch_size
    checkpoint = load_checkpoint(path := MODEL / f"{settings.checkpoint}.safetensors")
    nfe = make_generator(checkpoint, str(path), settings, config.seed, choose_runtime(config.runtime, 0.0)).nfe
    work = nfe * settings.num_images * (1 + settings.replicates)
    runtime = choose_runtime(config.runtime, work * flops_per_image(checkpoint.model, checkpoint.spec))
    generator = make_generator(checkpoint, str(path), settings, config.seed, runtime)
    labels = generator.class_labels(range(1, settings.num_images + 1))
    with KeptRun(resume_folder("generate", config, *runtime.arithmetic())) as kept:
        with atomic_folder(GENERATED) as folder:
            workers = worker_count(config.runtime.workers)
            cost, trajectory = write_images(generator, folder, batch_size, workers, kept.folder)
        save_arrays(REPLICATES, **sample_replicates(generator, settings.replicates, batch_size, kept.folder))
        save_arrays(TRAJECTORY, **trajectory)
        write_csv(LABELS, ("image", "label"), [] if labels is None else enumerate(labels.tolist(), 1))
        cost |= {"generate_nfe": nfe, "generate_peak_memory_mib": peak_memory_bytes(runtime) / 2**20}
        described = (runtime.describe() | environment()).items()
        write_json(COST / "generate.json", cost | {f"generate_{key}": value for key, value in described})
        kept.finish(finished_run("generate"))


if __name__ == "__main__":
    run(generate)
