"""Write the model for other programs, and the page that samples in a browser."""

from ddpm.config import Config
from ddpm.export.write import write_export
from ddpm.models.checkpoint import load_checkpoint
from ddpm.utils.files import atomic_folder
from stages.paths import EXPORT, MODEL
from stages.runner import run


def export(config: Config) -> None:
    path, wanted = MODEL / f"{config.generate.checkpoint}.safetensors", config.export
    checkpoint = load_checkpoint(path)
    with atomic_folder(EXPORT) as folder:
        given = (folder, checkpoint, str(path), wanted.formats, wanted.page)
        print(write_export(*given, config.generate, config.seed))


if __name__ == "__main__":
    run(export)
