"""Train the network; a killed run resumes where it stopped."""

from ddpm.config import Config
from ddpm.data.image_set import read_image_set
from ddpm.models.build import flops_per_image
from ddpm.training.loop import train
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe
from ddpm.utils.files import write_json
from ddpm.utils.runtime import choose_runtime, environment, peak_memory_bytes
from stages.paths import COST, MODEL, SPLIT
from stages.resume import finished_run, resume_folder
from stages.runner import run


def train_stage(config: Config) -> None:
    training, validation = read_image_set(SPLIT / "train.npz"), read_image_set(SPLIT / "validation.npz")
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    # A backward pass costs about two forward ones.
    work = 3.0 * recipe.steps(len(training)) * config.train.batch_size
    runtime = choose_runtime(config.runtime, work * flops_per_image(config.model, training.spec))
    chosen = runtime.describe()
    print(f"training on {chosen['device']}, {chosen['precision']}, {'' if runtime.compiled else 'not '}compiled")
    with RunFolder(MODEL, resume_folder("train", config, *runtime.arithmetic())) as folder:
        found = folder.finished
        if found:
            print(f"this very run was finished, but not recorded: it is taken from {folder.folder}")
        else:
            every = config.runtime.checkpoint_every_seconds
            results, cost = train(recipe, training, validation, runtime, folder, every)
            cost |= {"train_peak_memory_mib": peak_memory_bytes(runtime) / 2**20} | chosen | environment()
            found = finished_run("train", results=results, cost=cost)
            folder.finish(found)
        write_json(MODEL / "results.json", found["results"])
        write_json(COST / "train.json", found["cost"])


if __name__ == "__main__":
    run(train_stage)
