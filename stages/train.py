"""Train the network; a killed run resumes where it stopped."""

from functools import partial

from ddpm.config import Config
from ddpm.data.image_set import read_image_set
from ddpm.evaluation.early import EarlyDistance
from ddpm.training.launch import LAUNCHED, train_on_files, train_together
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe
from ddpm.utils.files import write_json
from ddpm.utils.runtime import choose_runtime, environment, one_thread, peak_memory_bytes, process_count
from stages.paths import COST, MODEL, PREVIEWS, SPLIT
from stages.resume import finished_run, resume_folder
from stages.runner import fitting, run


def train_stage(config: Config) -> None:
    recipe, path = Recipe(config.model, config.diffusion, config.train, config.seed), SPLIT / "train.npz"
    flops = recipe.flops(fitting(config, read_image_set(path), config.split.train_fraction))
    runtime = choose_runtime(config.runtime, flops, trains=True)
    processes = 1 if LAUNCHED.size > 1 else process_count(config.runtime, runtime, config.train.shards, flops)
    kept = resume_folder("train", config, *runtime.arithmetic())
    with RunFolder(MODEL, kept, PREVIEWS, writes=not LAUNCHED.rank) as folder:
        if found := folder.finished:
            folder.say(f"this very run was finished, but not recorded: it is taken from {folder.folder}")
        else:
            work = partial(train_on_files, recipe, path, SPLIT / "validation.npz", distance=EarlyDistance)
            often = config.runtime.checkpoint_every_seconds
            results, cost = train_together(processes, partial(work, save_every_seconds=often), runtime, folder)
            cost = {"train_peak_memory_mib": peak_memory_bytes(runtime, processes) / 2**20} | cost
            found = {"results": results, "cost": cost | one_thread(runtime.device)(runtime.describe)() | environment()}
        folder.finish(finished_run("train", **found))  # of this workspace, where it was of another one, too
        if folder.writes:
            write_json(MODEL / "results.json", found["results"])
            write_json(COST / "train.json", found["cost"])


if __name__ == "__main__":
    run(train_stage)
