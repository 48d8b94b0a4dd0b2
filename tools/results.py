"""The results of a preset, kept under docs/results/: `python -m tools.results long`.

It clones HEAD below .ckpt/, writes the preset into the clone's params.yaml, copies the images that it names, runs
`dvc repro` there with this repository's cache, and copies metrics, pictures and report to docs/results/NAME. A run that
was killed resumes where it stood.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.page import table
from ddpm.utils.errors import DdpmError, one_sentence
from ddpm.utils.files import atomic_path, read_json
from presets.__main__ import names, path_of
from tools import commit_of, leave_surroundings, prepared_clone, run
from tools.reproduce import copy_images

FOLDER = Path("docs/results")
KEPT = (
    "params.yaml",
    "metrics/headline.json",
    "metrics/fid.json",
    "metrics/likelihood.json",
    "metrics/memorization.json",
    "metrics/cost.json",
    "data/figures/samples.png",
    "data/figures/closest_pairs.png",
    "data/report.html",
)
LARGEST = 3_000_000  # bytes of a file in Git; the report of large colour images has more
_START, _END = "<!-- table -->", "<!-- end -->"


def prepare(preset: str, folder: Path) -> None:
    """HEAD with the preset in its params.yaml and this repository's cache, unless the folder has it already.

    Raises DdpmError for no preset, where HEAD does not have it as it is here, and for settings that no run can have.
    """
    path = path_of(preset)
    if folder.exists():
        return
    if run("git", "-C", str(path.parent), "status", "--porcelain", "--untracked-files", "--", path.name):
        raise DdpmError(f"the run is of HEAD, where this preset is another or none: commit presets/{path.name} first.")
    with prepared_clone("HEAD", folder, Path(run("dvc", "cache", "dir").strip())) as part:
        run(sys.executable, "-m", "presets", preset, cwd=part)
        copy_images(part)


def refreshed(page: str) -> str:
    """The page docs/results/README.md with its table of the committed run and of every preset kept there."""
    runs = {"default": read_json(Path("metrics/headline.json"))}
    runs |= {path.parent.name: read_json(path) for path in sorted(FOLDER.glob("*/headline.json"))}
    keys = dict.fromkeys(key for run in runs.values() for key in run)
    rows = [{"metric": key} | {name: run.get(key, "–") for name, run in runs.items()} for key in keys]
    before, rest = page.split(_START)
    after = rest.split(_END)[1]
    return f"{before}{_START}\n\n{table(rows)}\n\n{_END}{after}"


def main() -> None:
    """Run the preset named on the command line and keep its results."""
    parser = argparse.ArgumentParser(prog="python -m tools.results", description=__doc__)
    parser.add_argument("preset", nargs="*", help=f"one of {', '.join(names())}; none: refresh the table alone")
    given = parser.parse_args()
    leave_surroundings()
    with one_sentence():
        for preset in given.preset:
            folder = Path(".ckpt/results").absolute() / f"{preset}-{commit_of('HEAD')[:12]}"
            prepare(preset, folder)
            if subprocess.run(["dvc", "repro"], cwd=folder, check=False).returncode:
                raise DdpmError(f"the run in {folder} did not end well: fix what it says and call this again.")
            (FOLDER / preset).mkdir(parents=True, exist_ok=True)
            for path in KEPT:
                kept = FOLDER / preset / Path(path).name
                if (folder / path).stat().st_size > LARGEST:
                    print(f"{folder / path} stays there: it is too large for Git.")
                    kept.unlink(missing_ok=True)  # that of an earlier run
                else:
                    shutil.copyfile(folder / path, kept)
        page = FOLDER / "README.md"
        with atomic_path(page) as temporary:
            temporary.write_text(refreshed(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
