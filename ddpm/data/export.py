"""Write real images as PNG files: `python -m ddpm.data.export RAW train|test FOLDER`, for tools that read folders."""

import argparse
from pathlib import Path

from tqdm import tqdm

from ddpm.data.sources import SOURCES
from ddpm.utils.errors import one_sentence
from ddpm.utils.files import atomic_folder, check_new_folder
from ddpm.utils.images import write_rgb_pngs


def export(name: str, raw: Path, part: str, folder: Path) -> int:
    """Write the "train" or the "test" images of the data set ``name`` as RGB PNGs 00001.png, …; returns how many.

    Raises MissingFile or DamagedFile for the original files, DdpmError when the folder holds something, OSError when it
    cannot be written.
    """
    check_new_folder(folder)
    images = SOURCES[name].load(raw, part).images
    with atomic_folder(folder) as temporary:
        write_rgb_pngs(temporary, tqdm(images, desc=f"{part} to PNG", unit="image"), 1, len(images))
    return len(images)


def main() -> None:
    """Export the images named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path, help="folder with the original files, as data/raw")
    parser.add_argument("part", choices=("train", "test"))
    parser.add_argument("folder", type=Path, help="folder to make")
    parser.add_argument("--data", default="mnist", choices=list(SOURCES), help="the data set (default mnist)")
    arguments = parser.parse_args()
    with one_sentence():
        print(f"{export(arguments.data, arguments.raw, arguments.part, arguments.folder)} images in {arguments.folder}")


if __name__ == "__main__":
    main()
