"""Is what DVC stores still what it was? `python -m tools.doctor` reads it all, says what is wrong and how to mend it.

DVC trusts its cache: it does not read a stored object again to see whether the disk still holds the same bytes, and
checks out a damaged one without a word. This command rehashes every object of the cache and every output that a
dvc.lock or .dvc file records, looks for remotes that are not verified, and lists what killed runs have left.

With --mend it moves damaged objects, and their copies in the workspace, into the folder damaged/ of the cache; then
`dvc pull` or `dvc repro` brings good ones. It moves nothing that is sound, and deletes nothing.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from tqdm import tqdm

from ddpm.utils.errors import DamagedFile, DdpmError, one_sentence
from stages import rescues

NAMED = 5  # as many things of one kind are named; the rest are counted


@dataclass(frozen=True)
class Output:
    """What dvc.lock or a .dvc file records. The MD5 of a folder is that of the list of its files, and ends in .dir."""

    path: Path
    md5: str
    cached: bool


@dataclass(frozen=True)
class Store:
    """DVC's cache: the path and the actual MD5 of every object by its name, and the lists of files that are sound."""

    paths: dict[str, Path]
    digests: dict[str, str | None]
    lists: dict[str, dict[str, str]]  # of a folder: MD5 by path within it

    @property
    def damaged(self) -> list[str]:
        """The objects that are not what their names say."""
        return [name for name, digest in self.digests.items() if digest != name.removesuffix(".dir")]

    def holds(self, output: Output) -> bool:
        """Whether the output could be checked out."""
        objects = {output.md5, *self.lists.get(output.md5, {}).values()}
        return objects <= self.paths.keys() - set(self.damaged)


@dataclass
class Finding:
    """One thing that is wrong, and the files that are copies of damaged objects."""

    text: str
    copies: list[Path] = field(default_factory=list)


def md5(path: Path) -> str | None:
    """The MD5 of a file's bytes, None for what cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    except OSError:
        return None


def md5_of_all(paths: Iterable[Path], what: str) -> dict[Path, str | None]:
    """The MD5 of each file, read in parallel, with a progress bar."""
    sizes = {path: path.stat().st_size if path.exists() else 0 for path in paths}

    def read(path: Path) -> str | None:
        digest = md5(path)
        bar.update(sizes[path])
        return digest

    bar = tqdm(total=sum(sizes.values()), desc=what, unit="B", unit_scale=True, disable=None)
    with bar, ThreadPoolExecutor() as pool:
        return dict(zip(sizes, pool.map(read, sizes), strict=True))


def md5_of_list(files: Mapping[str, str | None]) -> str:
    """The MD5 that DVC gives a folder with these files: path within it, and MD5."""
    entries = [{"md5": digest, "relpath": path} for path, digest in sorted(files.items())]
    return hashlib.md5(json.dumps(entries).encode(), usedforsecurity=False).hexdigest() + ".dir"


def read_store(folder: Path) -> Store:
    """Read and rehash every object of a cache."""
    paths = {
        path.parent.name + path.name: path
        for path in sorted(folder.glob("files/md5/??/*"))
        if re.fullmatch(r"[0-9a-f]{32}(\.dir)?", path.parent.name + path.name)
    }
    digests = md5_of_all(paths.values(), "cache")
    lists = {}
    for name, path in paths.items():
        if name.endswith(".dir") and digests[path] == name.removesuffix(".dir"):
            lists[name] = {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_bytes())}
    return Store(paths, {name: digests[path] for name, path in paths.items()}, lists)


def read_outputs() -> list[Output]:
    """Every output that the dvc.lock and .dvc files of the working folder record. Raises DamagedFile."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "*dvc.lock", "*.dvc")
    found = []
    for file in sorted({Path(name) for name in listed.split("\0") if name and Path(name).is_file()}):
        stages, uncached = [_yaml(file)], set()
        if file.name == "dvc.lock":
            stages = list(stages[0].get("stages", {}).values())
            uncached = _uncached(file.with_name("dvc.yaml"))
        for out in (out for stage in stages for out in stage.get("outs", [])):
            # DVC 2 hashed text without its carriage returns, which is another MD5 and not looked at here.
            if out.get("hash") == "md5" and "md5" in out:
                cached = out.get("cache", True) and out["path"] not in uncached
                found.append(Output(file.parent / out["path"], out["md5"], cached))
    return found


def check_store(store: Store, outputs: list[Output]) -> list[Finding]:
    """What is wrong with the cache."""
    owners = defaultdict(list)
    for output in outputs:
        owners[output.md5].append(f"{output.path}")
        for path, digest in store.lists.get(output.md5, {}).items():
            owners[digest].append(f"{output.path / path}")
    found = []
    for name in store.damaged:
        of = _some(owners[name]) or "an earlier run, or to a folder whose list is damaged or missing"
        actual = f"its bytes have the MD5 {store.digests[name]}" if store.digests[name] else "it cannot be read"
        found.append(Finding(f"damaged: {store.paths[name]} ({actual}), which belongs to {of}"))
    for name, files in store.lists.items():
        if gone := [f"{path} ({digest})" for path, digest in files.items() if digest not in store.paths]:
            of = _some(owners[name]) or f"a folder of an earlier run ({name})"
            count = f"{len(gone)} of the {len(files)} files"
            found.append(Finding(f"missing from the cache: {count} of {of}: {_some(gone)}"))
    for output in outputs:
        # What is not in the workspace either is named there.
        if output.cached and output.md5 not in store.paths and output.path.exists():
            found.append(Finding(f"missing from the cache: {output.md5}, which belongs to {output.path}"))
    return found


def check_workspace(store: Store, outputs: list[Output]) -> list[Finding]:
    """What is wrong with the outputs in the workspace."""
    contents = {output: _files(output.path) for output in outputs}
    digests = md5_of_all((path for paths in contents.values() for path in paths), "workspace")
    bad = {store.digests[name] for name in store.damaged}
    found = []
    for output, paths in contents.items():
        path = output.path
        if not path.exists():
            found.append(Finding(f"missing: {path}: {_brings(store, output)} brings it"))
            continue
        if path.is_file():
            wrong = [] if digests[path] == output.md5 else [path]
            texts = [f"its MD5 is {digests[path]}, not {output.md5}"]
        else:
            files = {file.relative_to(path).as_posix(): digests[file] for file in paths}
            if md5_of_list(files) == output.md5:
                continue
            wrong, texts = _compare(path, _without_ignored(path, files), store.lists.get(output.md5), output.md5)
        if texts and (wrong or path.is_dir()):
            mend = f"delete what is changed, then {_brings(store, output)} brings it back"
            copies = [file for file in wrong if output.cached and file.exists() and digests[file] in bad]
            found.append(Finding(f"changed: {path}: {_some(texts)}: {mend}", copies))
    return found


def check_remotes(config: str) -> list[Finding]:
    """Which remotes hand over damaged objects unseen, by what `dvc config --list` says."""
    settings = re.findall(r"^remote\.(.+)\.(\w+)=(.*)$", config, flags=re.MULTILINE)
    true = ("true", "yes", "on", "1")
    verified = {name for name, key, value in settings if key == "verify" and value.lower() in true}
    return [
        Finding(f"unverified: remote {name} may hand over damaged objects: `dvc remote modify {name} verify true`")
        for name in sorted({name for name, key, _ in settings if key == "url"} - verified)
    ]


def left_over(folder: Path, now: float) -> list[str]:
    """One line a folder that a run keeps its state in."""
    lines = []
    for rescue in sorted(path for path in folder.glob("*") if path.is_dir()):
        sizes = [path.stat() for path in _files(rescue)]
        size = sum(status.st_size for status in sizes) / 2**20
        hours = (now - max((status.st_mtime for status in sizes), default=rescue.stat().st_mtime)) / 3600
        state = "in use now" if _is_locked(rescue / "lock") else "left over"
        lines.append(f"{rescue}: {size:,.1f} MiB, last written {hours:,.1f} hours ago, {state}")
    return lines


def move_away(paths: Iterable[Path], folder: Path) -> None:
    """Move files into a folder; a name that is taken there gets a number. Raises OSError."""
    for path in paths:
        name = path.parent.name + path.name if re.fullmatch(r"[0-9a-f]{2}", path.parent.name) else path.name
        place, number = folder / name, 0
        while os.path.lexists(place):
            number += 1
            place = folder / f"{name}.{number}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.move(path, place)
        print(f"moved {path} to {place}")


def run(*command: str, given: str | None = None, fails: int = 0) -> str:
    """What a command prints; ``fails`` is an exit status that is fine too. Raises DdpmError with its last line."""
    done = subprocess.run(command, capture_output=True, text=True, input=given, check=False)
    if done.returncode not in (0, fails):
        said = (done.stderr or done.stdout).strip().splitlines()
        name = " ".join(command[:5]).replace(f"{sys.executable} -m ", "")
        raise DdpmError(f"`{name}` failed: {said[-1] if said else f'exit status {done.returncode}'}")
    return done.stdout


def examine(mend: bool) -> list[Finding]:
    """All that is wrong, printed too; damaged objects and their copies are moved away if ``mend``."""
    if not Path(".dvc").is_dir():
        raise DdpmError("there is no .dvc folder here: run this in the folder that holds dvc.yaml.")
    dvc = (sys.executable, "-m", "dvc")
    folder = Path(os.path.relpath(run(*dvc, "cache", "dir").strip()))
    outputs, store = read_outputs(), read_store(folder)
    stored, worked = check_store(store, outputs), check_workspace(store, outputs)
    found = [*stored, *worked, *check_remotes(run(*dvc, "config", "--list"))]
    print(f"{len(store.paths)} objects in {folder}, {len(outputs)} recorded outputs: {len(found) or 'nothing'} wrong")
    for finding in found:
        print(f"  {finding.text}")
    damaged = [store.paths[name] for name in store.damaged]
    copies = [path for finding in worked for path in finding.copies]
    if damaged and mend:
        move_away([*damaged, *copies], folder / "damaged")
        anew = "" if copies else "`dvc commit` stores anew what is sound in the workspace, "
        print(f"Now `dvc pull` brings good ones from a remote, {anew}or `dvc repro` makes them again.")
    elif damaged:
        print("To mend what is damaged: `python -m tools.doctor --mend`, then `dvc pull` or `dvc repro`.")
    if any(finding.text.startswith("missing from the cache") for finding in stored):
        print("What is missing from the cache: `dvc fetch` brings it from a remote, `dvc commit` from the workspace.")
    if lines := left_over(rescues(), time.time()):
        print(f"Kept in {rescues()}, where the same run goes on; what is left over and not wanted may be deleted:")
        print("\n".join(f"  {line}" for line in lines))
    return found


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return dict(YAML(typ="safe", pure=True).load(path) or {})
    except (YAMLError, ValueError, TypeError) as error:
        raise DamagedFile(f"{path} is no YAML file of DVC: `git checkout {path}`") from error


def _uncached(path: Path) -> set[str]:
    """The outputs of a dvc.yaml that are not cached."""
    stages = _yaml(path).get("stages", {}).values() if path.exists() else ()
    listed = [out for stage in stages for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
    return {name for out in listed if isinstance(out, dict) for name, how in out.items() if not how.get("cache", True)}


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def _compare(
    folder: Path, files: dict[str, str | None], listed: dict[str, str] | None, expected: str
) -> tuple[list[Path], list[str]]:
    """The changed files of a folder, and all that is different, as text."""
    if listed is None:
        same = md5_of_list(files) == expected
        return [], [] if same else ["what is changed in it cannot be said, its list is not in the cache or damaged"]
    changed = [path for path, digest in files.items() if path in listed and listed[path] != digest]
    texts = [f"{path} is changed" for path in changed]
    texts += [f"{path} is missing" for path in listed if path not in files]
    texts += [f"{path} is not part of it" for path in files if path not in listed]
    return [folder / path for path in changed], texts


def _without_ignored(folder: Path, files: dict[str, str | None]) -> dict[str, str | None]:
    """The files of a folder that .dvcignore does not leave out."""
    names = "".join(f"{folder / path}\n" for path in files)
    ignored = set(run(sys.executable, "-m", "dvc", "check-ignore", "--stdin", given=names, fails=1).splitlines())
    return {path: digest for path, digest in files.items() if str(folder / path) not in ignored}


def _brings(store: Store, output: Output) -> str:
    if not output.cached:
        return f"`git checkout {output.path}` or `dvc repro`"
    return f"`dvc checkout {output.path}`" if store.holds(output) else "`dvc pull` or `dvc repro`"


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def main() -> None:
    """Run; exit status 0 when all is well, 1 when something is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mend", action="store_true", help="move damaged objects out of the cache")
    asked = parser.parse_args()
    with one_sentence():
        found = examine(asked.mend)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
