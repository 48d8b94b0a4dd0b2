"""Train the network; a killed run resumes where it stopped."""

from ddpm.config import Config
from ddpm.data.image_set import read_image_set
from ddpm.models.build import flops_per_image
from ddpm.training.launch import train_together
from ddpm.training.ranks import launched_rank
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe
from ddpm.utils.files import write_json
from ddpm.utils.runtime import choose_runtime, environment, peak_memory_bytes, process_count
from stages.paths import COST, MODEL, SPLIT
from stages.resume import finished_run, resume_folder
from stages.runner import run


def train_stage(config: Config) -> None:
    training, validation = read_image_set(SPLIT / "train.npz"), read_image_set(SPLIT / "validation.npz")
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    # A backward pass costs about two forward ones.
    work = 3.0 * recipe.steps(len(training)) * config.train.batch_size
    runtime = choose_runtime(config.runtime, work * flops_per_image(config.model, training.spec))
    processes = process_count(config.runtime, runtime, config.train.shards)
    with RunFolder(MODEL, resume_folder("train", config, *runtime.arithmetic()), writes=not launched_rank()) as folder:
        if found := folder.finished:
            folder.say(f"this very run was finished, but not recorded: it is taken from {folder.folder}")
        else:
            given = (recipe, training, validation, runtime, folder, config.runtime.checkpoint_every_seconds)
            results, cost = train_together(processes, *given)
            cost |= runtime.describe() | environment() | {"threads": 1, "train_processes": processes}
            cost["train_peak_memory_mib"] = peak_memory_bytes(runtime, processes) / 2**20
            found = finished_run("train", results=results, cost=cost)
            folder.finish(found)
        if folder.writes:
            write_json(MODEL / "results.json", found["results"])
            write_json(COST / "train.json", found["cost"])


if __name__ == "__main__":
    run(train_stage)
