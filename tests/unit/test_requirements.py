"""What is installed: every version pinned, every file's hash known, no import unaccounted for."""

import ast
import re
import sys
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

from clones import REPOSITORY

LOCK, PAGE = REPOSITORY / "requirements.txt", REPOSITORY / "docs/licences.md"
OURS = ("ddpm", "stages", "tools", "presets", "benchmarks")
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,-]+\])?==(?P<version>[^\s;*]+)(?: ; (?P<marker>[^\\]+))?")


def requirements(path: Path) -> list[str]:
    """The requirements of a file, one with all its hashes a line."""
    lines = path.read_text().replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def normal(name: str) -> str:
    """The name as package indexes compare it: ``Ruamel.yaml`` and ``ruamel_yaml`` are one."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(path: Path) -> list[tuple[str, str]]:
    """The name and version of every requirement of a file."""
    found = [REQUIREMENT.match(line) for line in requirements(path)]
    return [(normal(match["name"]), match["version"]) for match in found if match]


def direct() -> list[tuple[str, str]]:
    return locked(REPOSITORY / "requirements.in")


def imported(folder: Path) -> set[str]:
    """The top-level modules that the code of a folder imports, here or inside a function."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found


def test_every_line_is_pinned_and_hashed():
    lines = requirements(LOCK)
    assert len(lines) > 100
    for line in lines:
        requirement, *hashes = line.split(" --hash=")
        assert REQUIREMENT.fullmatch(requirement.strip()), requirement
        assert hashes, line
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", found.strip()) for found in hashes), requirement


def test_the_lock_names_neither_a_host_nor_a_folder_of_some_machine():
    assert re.findall(r"://|--\w+-url|--find-links|(?<!\w)/\w+/", (LOCK).read_text()) == []


def test_each_direct_requirement_is_locked_at_its_version():
    lines = requirements(REPOSITORY / "requirements.in")
    assert all(REQUIREMENT.fullmatch(line) for line in lines)
    assert len(direct()) == len(lines)
    assert set(direct()) <= set(locked(LOCK))


def test_what_is_installed_is_what_is_locked():
    versions = {}
    for name, version in locked(LOCK):
        versions.setdefault(name, set()).add(version)
    installed = {(normal(found.name), found.version) for found in distributions()}
    assert {name for name, _ in direct()} <= {name for name, _ in installed}
    for name, version in installed:
        if name in versions:
            assert version in versions[name], (
                f"{name} {version}: `pip install -r requirements.txt` brings the locked one"
            )


def test_every_import_is_of_a_direct_requirement():
    distributions, named = packages_distributions(), {name for name, _ in direct()}
    modules = set().union(*(imported(REPOSITORY / folder) for folder in OURS))
    assert {"torch", "numpy", "ruamel"} <= modules
    for module in modules - set(sys.stdlib_module_names) - set(OURS):
        providers = {normal(name) for name in distributions.get(module, [])}
        assert providers & named, f"{module} of {providers or 'no installed package'} is not in requirements.in"


def test_every_direct_requirement_is_used():
    modules = set().union(*(imported(REPOSITORY / folder) for folder in (*OURS, "tests")))
    distributions = packages_distributions()
    used = {normal(name) for module in modules for name in distributions.get(module, [])}
    commands = set(re.findall(r"[\w-]+", (REPOSITORY / "Makefile").read_text()))
    # dvc imports them where a remote's address asks, torch for ONNX; nbclient starts the kernel, mkdocs the theme.
    plugins = {"dvc-s3", "dvc-ssh", "onnxscript", "ipykernel", "mkdocs-material"}
    assert {name for name, _ in direct()} - used - commands - plugins == set()


def test_the_page_of_licences_names_the_locked_packages_that_are_installed():
    rows = re.findall(r"^\| (\S+) +\| (\S+) +\| (.+?) +\|$", PAGE.read_text(), flags=re.MULTILINE)
    named = {(normal(name), version) for name, version, _ in rows}
    installed = {(normal(found.name), found.version) for found in distributions()}
    assert len(named) > 100
    # The lock has two versions of some packages, for an earlier and a later Python: the page was made by one of them.
    assert named - {("name", "Version")} <= set(locked(LOCK))
    assert {name for name, _ in set(locked(LOCK)) & installed} <= {name for name, _ in named}
