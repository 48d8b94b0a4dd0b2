"""Are the bytes that DVC stores still the right ones? `python -m tools.doctor` reads them all and says what is wrong.

DVC hashes an object once, when it stores it: a damaged one is checked out without a word. This command rehashes every
object of the cache and every output in the workspace. The exit status is 1 where something is wrong. --fix deletes
damaged objects, and the files in the workspace that are copies of them, so that `dvc pull` or `dvc repro` restores
them. It deletes nothing else.
"""

import argparse
import hashlib
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ruamel.yaml import YAML
from tqdm import tqdm

from ddpm.utils.errors import DdpmError, one_sentence
from tools import run

DVC = (sys.executable, "-m", "dvc")
# Kinds of change, as `dvc data status` names them and as this command does.
KINDS = {
    "modified": "changed",
    "deleted": "missing",
    "added": "not part of the recorded output",
    "not_in_cache": "not in the cache (`dvc fetch` restores it from a remote, `dvc commit` from the workspace)",
}


def rehash(paths: Iterable[Path], what: str) -> dict[Path, str]:
    """The MD5 of each file's bytes, "" for one that cannot be read."""

    def md5(path: Path) -> str:
        with suppress(OSError), path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        return ""

    paths = list(paths)
    with ThreadPoolExecutor() as pool:
        digests = tqdm(pool.map(md5, paths), total=len(paths), desc=what, unit="file", disable=None)
        return dict(zip(paths, digests, strict=True))


def read_cache(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Every object by its name, which is its MD5 (and .dir for a list of files), and the actual MD5 of damaged ones."""
    objects = {path.parent.name + path.name: path for path in sorted(folder.glob("files/md5/??/*"))}
    objects = {name: path for name, path in objects.items() if re.fullmatch(r"[0-9a-f]{32}(\.dir)?", name)}
    actual = dict(zip(objects, rehash(objects.values(), "cache").values(), strict=True))
    return objects, {name: digest for name, digest in actual.items() if digest != name.removesuffix(".dir")}


def owners(intact: dict[str, Path]) -> dict[str, list[str]]:
    """The outputs, and the files in them, that dvc.lock and .dvc files record, by the name of their object."""
    found = defaultdict(list)
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "*dvc.lock", "*.dvc")
    for file in map(Path, filter(None, listed.split("\0"))):
        recorded = YAML(typ="safe", pure=True).load(file) or {} if file.is_file() else {}
        for out in (out for stage in (recorded, *recorded.get("stages", {}).values()) for out in stage.get("outs", ())):
            path, name = file.parent / out["path"], str(out.get("md5"))
            found[name].append(str(path))
            for entry in json.loads(intact[name].read_bytes()) if name.endswith(".dir") and name in intact else ():
                found[entry["md5"]].append(str(path / entry["relpath"]))
    return found


def examine(fix: bool) -> int:
    """Print all that is wrong; returns how many things are. Raises DdpmError."""
    if not Path(".dvc").is_dir():
        raise DdpmError("there is no .dvc folder here: run this in the folder that holds dvc.yaml.")
    cache = Path(os.path.relpath(run(*DVC, "cache", "dir").strip()))
    objects, damaged = read_cache(cache)
    recorded = owners({name: path for name, path in objects.items() if name not in damaged})
    # Without its memory of the files that it has hashed before, DVC hashes them all.
    with TemporaryDirectory(prefix="doctor-") as empty:
        status = json.loads(run(*DVC, "data", "status", "--granular", "--json", DVC_SITE_CACHE_DIR=empty))
    listed, wrong = status.get("uncommitted", {}) | status, []
    # Those of folders end in a slash and come first.
    changed = {kind: sorted(listed.get(kind, []), key=lambda path: not path.endswith("/")) for kind in KINDS}
    for name, digest in damaged.items():
        actual = f"its bytes have the MD5 {digest}" if digest else "it cannot be read"
        wrong.append(f"damaged: {objects[name]} ({actual}), which is {some(recorded[name]) or 'of an earlier run'}")
    wrong += [f"{KINDS[kind]}: {some(paths)}" for kind, paths in changed.items() if paths]
    print(f"{len(wrong) or 'nothing'} wrong", *wrong, sep="\n")
    if damaged and fix:
        modified = rehash(filter(Path.is_file, map(Path, changed["modified"])), "workspace")
        copies = [path for path, digest in modified.items() if digest in damaged.values()]
        for path in (*(objects[name] for name in damaged), *copies):
            path.unlink()
            print(f"deleted {path}")
    if damaged:
        first = "now" if fix else "`python -m tools.doctor --fix` deletes what is damaged; then"
        print(f"{first} `dvc pull` restores it from a remote, or `dvc repro` computes it again")
    print(f"{cache} holds {len(objects):,} objects")
    return len(wrong)


def some(names: list[str], shown: int = 5) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown:,} more" if len(names) > shown else "")


def main() -> None:
    """Run; the exit status is 1 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.doctor", description=__doc__)
    parser.add_argument("--fix", action="store_true", help="delete damaged objects of the cache")
    with one_sentence():
        sys.exit(1 if examine(parser.parse_args().fix) else 0)


if __name__ == "__main__":
    main()
