"""The licence of every package that requirements.txt locks: `python -m tools.licences` writes docs/licences.md.

Each package names its licence itself, in the metadata that it is installed with. A package that is locked for other
systems than this one keeps the line that it has in docs/licences.md; `--also FOLDER` reads it from a folder that
`pip install --target FOLDER` filled.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from importlib.metadata import PackageMetadata, distributions
from pathlib import Path

from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile, one_sentence
from ddpm.utils.files import atomic_path

LOCK = Path("requirements.txt")
PAGE = Path("docs/licences.md")
# These name no licence; their publisher's page does.
KNOWN = {"cuda-toolkit": "LicenseRef-NVIDIA-Proprietary"}
Package = tuple[str, str]  # name, as package indexes compare it, and version

HEAD = """# Licences of the installed packages

Every package that `requirements.txt` locks, with the licence that it names itself. `python -m tools.licences` writes
this page. They are installed beside this project, not part of it.

| package | version | licence |
|---|---|---|
"""


def normal(name: str) -> str:
    """The name as package indexes compare it: ``Ruamel.yaml`` and ``ruamel_yaml`` are one."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(path: Path) -> list[Package]:
    """The packages that a requirements file pins, sorted. Raises MissingFile or DamagedFile."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is missing: `make lock` writes it") from error
    found = re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)", text, flags=re.MULTILINE)
    if not found:
        raise DamagedFile(f"{path} pins no package: `make lock` writes it")
    return sorted((normal(name), version) for name, version in found)


def licence(metadata: PackageMetadata) -> str | None:
    """What a package says of its licence, None if nothing: the SPDX expression, a short name, or the classifiers."""
    values = metadata.json
    if expression := values.get("license_expression"):
        return str(expression)
    named = str(values.get("license") or "").strip()
    # Some have the whole text of the licence in the place of its name.
    if named and "\n" not in named and len(named) < 60 and named not in ("UNKNOWN", "Dual License"):
        return named.replace("|", "or")  # which would end a cell of the table
    classifiers = values.get("classifier", [])
    names = [str(item).split(" :: ")[-1] for item in classifiers if str(item).startswith("License ::")]
    return " or ".join(names) or KNOWN.get(normal(str(values["name"])))


def licences(*folders: Path) -> dict[Package, str | None]:
    """The licence of every package that is installed here, and in ``folders``."""
    path = [*map(str, folders), *sys.path]
    return {(normal(found.name), found.version): licence(found.metadata) for found in distributions(path=path)}


def written(page: Path) -> dict[Package, str]:
    """The licences that a page names; none if there is no page."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (\S+) \| (.+) \|$", text, flags=re.MULTILINE)
    return {(name, version): named for name, version, named in rows}


def table(packages: list[Package], known: Mapping[Package, str | None]) -> str:
    """The page. Raises DdpmError for a package whose licence is not known."""
    unknown = [f"{name} {version}" for name, version in packages if not known.get((name, version))]
    if unknown:
        raise DdpmError(
            f"the licence of {', '.join(unknown)} is not known: install what requirements.txt locks, or name a folder "
            "with it by --also; where the package itself names none, add it to KNOWN in tools/licences.py."
        )
    return HEAD + "".join(f"| {name} | {version} | {known[name, version]} |\n" for name, version in packages)


def main() -> None:
    """Run; what the user can mend ends it with one sentence and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.licences", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--also", metavar="FOLDER", type=Path, nargs="*", default=[])
    asked = parser.parse_args()
    with one_sentence():
        page = table(locked(LOCK), {**written(PAGE), **licences(*asked.also)})
        with atomic_path(PAGE) as temporary:
            temporary.write_text(page, encoding="utf-8")
    print(f"{PAGE}: {page.count(chr(10)) - HEAD.count(chr(10))} packages")


if __name__ == "__main__":
    main()
