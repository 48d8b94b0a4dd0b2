"""Train the network; a killed run goes on where it stopped."""

from ddpm.config import Config
from ddpm.data.split import read_image_set
from ddpm.files import write_json
from ddpm.model.checkpoint import flops_per_image
from ddpm.runtime import choose_runtime, environment, peak_memory_bytes
from ddpm.training.loop import Recipe, train
from ddpm.training.run_folder import RunFolder
from stages import COST, MODEL, SPLIT, finished_facts, rescue_folder, run


def train_stage(config: Config) -> None:
    training, validation = read_image_set(SPLIT / "train.npz"), read_image_set(SPLIT / "validation.npz")
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    image_size = training.images.shape[-1]
    # A backward pass costs about two forward ones.
    flops = 3.0 * flops_per_image(config.model, image_size) * recipe.steps(len(training)) * config.train.batch_size
    runtime = choose_runtime(config.runtime, flops, trains=True)
    chosen = runtime.describe()
    print(
        f"training on {chosen['device']}, {chosen['precision']}, {'compiled' if runtime.compiled else 'not compiled'}"
    )
    with RunFolder(MODEL, rescue_folder("train", config, *runtime.arithmetic())) as folder:
        found = folder.finished
        if found:
            print(f"this very run was finished, but not recorded: it is taken from {folder.folder}")
        else:
            every = config.runtime.checkpoint_every_seconds
            results, cost = train(recipe, training, validation, runtime, folder, every)
            cost |= {"train_peak_memory_mib": peak_memory_bytes(runtime) / 2**20} | chosen | environment()
            found = finished_facts("train", results=results, cost=cost)
            folder.finish(found)
        write_json(MODEL / "results.json", found["results"])
        write_json(COST / "train.json", found["cost"])


if __name__ == "__main__":
    run(train_stage)
