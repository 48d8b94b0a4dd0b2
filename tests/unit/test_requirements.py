"""What is installed: every version pinned, every file's hash known, every licence named, no import unaccounted for."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from ddpm.utils.errors import DdpmError, MissingFile
from tools.licences import LOCK, PAGE, licences, locked, normal, table, written

REPOSITORY = Path(__file__).parents[1]
OURS = ("ddpm", "stages", "tools", "presets", "benchmarks")
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,-]+\])?==(?P<version>[^\s;*]+)(?: ; (?P<marker>[^\\]+))?")


def requirements(path: Path) -> list[str]:
    """The requirements of a file, one with all its hashes a line."""
    lines = path.read_text().replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


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
    lines = requirements(REPOSITORY / LOCK)
    assert len(lines) > 100
    for line in lines:
        requirement, *hashes = line.split(" --hash=")
        assert REQUIREMENT.fullmatch(requirement.strip()), requirement
        assert hashes, line
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", found.strip()) for found in hashes), requirement


def test_the_lock_names_neither_a_host_nor_a_folder_of_some_machine():
    assert re.findall(r"://|--\w+-url|--find-links|(?<!\w)/\w+/", (REPOSITORY / LOCK).read_text()) == []


def test_each_direct_requirement_is_locked_at_its_version():
    lines = requirements(REPOSITORY / "requirements.in")
    assert all(REQUIREMENT.fullmatch(line) for line in lines)
    assert len(direct()) == len(lines)
    assert set(direct()) <= set(locked(REPOSITORY / LOCK))


def test_what_is_installed_is_what_is_locked():
    versions = {}
    for name, version in locked(REPOSITORY / LOCK):
        versions.setdefault(name, set()).add(version)
    installed = dict(licences())
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
    plugins = {"dvc-s3", "dvc-ssh"}  # dvc imports them where a remote's address asks for it
    assert {name for name, _ in direct()} - used - commands - plugins == set()


def test_the_page_of_licences_is_what_the_packages_say():
    page = REPOSITORY / PAGE
    known = written(page)
    for package in locked(REPOSITORY / LOCK):
        assert known[package].strip(), package
    assert table(locked(REPOSITORY / LOCK), {**known, **licences()}) == page.read_text()


def test_an_unknown_licence_is_an_error_that_names_the_package(tmp_path: Path):
    with pytest.raises(DdpmError, match=r"some-package 1\.0"):
        table([("some-package", "1.0")], {("some-package", "2.0"): "MIT"})
    with pytest.raises(MissingFile, match="make lock"):
        locked(tmp_path / "requirements.txt")


def test_a_name_is_read_with_extras_markers_and_hashes(tmp_path: Path):
    lock = tmp_path / "requirements.txt"
    lock.write_text(
        "# comment==1\nRuamel.yaml==0.1 \\\n    --hash=sha256:00\nmoto[server]==5.2 ; python_full_version < '3.12'\n"
    )
    assert locked(lock) == [("moto", "5.2"), ("ruamel-yaml", "0.1")]
