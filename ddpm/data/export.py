"""Write real digits as PNG files: `python -m ddpm.data.export RAW train|t10k FOLDER`, for tools that read folders."""

import argparse
from pathlib import Path

from tqdm import tqdm

from ddpm.data.sources import load_mnist
from ddpm.errors import DdpmError, one_sentence
from ddpm.files import atomic_folder
from ddpm.images import write_rgb_pngs

_CHUNK = 1000


def export(raw: Path, part: str, folder: Path) -> int:
    """Write one part of MNIST, "train" or "t10k", as RGB PNGs 00001.png, …; returns how many.

    Raises MissingFile or DamagedFile for the IDX files, DdpmError when the folder holds something, OSError when it
    cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DdpmError(f"{folder} is there already: name a new folder, or delete it first.")
    images = load_mnist(raw, part).images
    with atomic_folder(folder) as temporary:
        for start in tqdm(range(0, len(images), _CHUNK), desc=f"{part} to PNG", unit=f"{_CHUNK} images"):
            write_rgb_pngs(temporary, images[start : start + _CHUNK], start + 1, len(images))
    return len(images)


def main() -> None:
    """Export the part of MNIST named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path, help="folder with the four IDX files")
    parser.add_argument("part", choices=("train", "t10k"))
    parser.add_argument("folder", type=Path, help="folder to make")
    arguments = parser.parse_args()
    with one_sentence():
        print(f"{export(arguments.raw, arguments.part, arguments.folder)} images in {arguments.folder}")


if __name__ == "__main__":
    main()
