"""Sample the images, from the checkpoint alone; a killed run resumes where it stopped."""

from ddpm.config import Config
from ddpm.models.build import flops_per_image
from ddpm.models.checkpoint import load_checkpoint
from ddpm.sampling.batches import batch_count, sample_replicates, write_images
from ddpm.sampling.generator import make_generator, restore_generator
from ddpm.utils.files import atomic_folder, save_arrays, write_csv, write_json
from ddpm.utils.processes import process_pool
from ddpm.utils.resume import KeptRun
from ddpm.utils.runtime import choose_runtime, environment, peak_memory_bytes, process_count, worker_count
from stages.paths import COST, GENERATED, LABELS, MODEL, REPLICATES, TRAJECTORY
from stages.resume import finished_run, resume_folder
from stages.runner import run


def generate(config: Config) -> None:
    settings, path = config.generate, MODEL / f"{config.generate.checkpoint}.safetensors"
    checkpoint = load_checkpoint(path)
    nfe = make_generator(checkpoint, str(path), settings, config.seed, choose_runtime(config.runtime, 0.0)).nfe
    work = nfe * flops_per_image(checkpoint.model, checkpoint.spec) * settings.num_images * (1 + settings.replicates)
    runtime = choose_runtime(config.runtime, work)
    processes = process_count(config.runtime, runtime, batch_count(config, runtime.device), work)
    generator = restore_generator(*(restored := (path, settings, config.seed, runtime)))
    labels = generator.label_table(range(1, settings.num_images + 1))
    with KeptRun(resume_folder("generate", config, *runtime.arithmetic())) as kept:
        with process_pool(processes, restore_generator, *restored) as pool, atomic_folder(GENERATED) as folder:
            given = (config.runtime.generate_batch_size, kept.folder, pool)
            cost, trajectory = write_images(generator, folder, worker_count(config.runtime.workers), *given)
            save_arrays(REPLICATES, **sample_replicates(generator, settings.replicates, *given))
        save_arrays(TRAJECTORY, **trajectory)
        write_csv(LABELS, *labels)
        described: dict[str, object] = {"nfe": nfe, "processes": processes, **runtime.describe(), **environment()}
        described["peak_memory_mib"] = (cost.pop("device_bytes") or peak_memory_bytes(runtime, processes)) / 2**20
        write_json(COST / "generate.json", cost | {f"generate_{key}": value for key, value in described.items()})
        kept.finish(finished_run("generate"))


if __name__ == "__main__":
    run(generate)
