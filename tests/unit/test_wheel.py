"""The wheel of the library: built, installed into an empty environment, and used in another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from clones import ended, run_in


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy, as setuptools leaves its workings beside what it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(root / "ddpm", folder / "ddpm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("stages", "tools"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(root / name, folder)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run_in(folder, *pip, "wheel", ".", "--no-deps", "--no-index", "--no-build-isolation", "-w", "built")
    (found,) = (folder / "built").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel, and the packages of this environment behind it."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python))
    run_in(folder, *pip, "install", "--no-deps", "--no-index", str(wheel))
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_the_wheel_holds_the_library_with_its_weights_and_no_part_of_the_pipeline(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"ddpm"}
    for name in (
        "py.typed",
        "pretrained/mnist.safetensors",
        "pretrained/mnist.md",
        "evaluation/weights/mnist_classifier.safetensors",
        "export/page/index.html",
        "export/page/scripts/worker.js",
        "report/templates/run.html",
    ):
        assert f"ddpm/{name}" in names
    assert sum(info.compress_size for info in zipfile.ZipFile(wheel).infolist()) < 6e6


def test_what_the_library_imports_is_named_as_a_dependency(root: Path):
    imported = set()
    for path in (root / "ddpm").rglob("*.py"):
        lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
        imported |= {words[1].split(".")[0] for words in lines if len(words) > 1 and words[0] in ("import", "from")}
    packages = {"PIL": "pillow", "ruamel": "ruamel.yaml", "pytorch_fid": "pytorch-fid"}
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    checked = 0
    for name in sorted(imported - {"ddpm"} - set(sys.stdlib_module_names)):
        package = packages.get(name, name)
        try:
            distribution(package)
        except ModuleNotFoundError:
            continue  # a word of a docstring
        assert f'    "{package}>=' in text, package
        checked += 1
    assert checked >= 12


def test_the_wheel_samples_in_any_folder(python: Path, tmp_path: Path):
    code = "import ddpm; print(ddpm.__file__); print(ddpm.load().sample(2, labels=7, steps=3).shape)"
    done = ended(tmp_path, str(python), "-c", code)
    assert done.returncode == 0, done.stderr
    place, shape = done.stdout.split("\n", 1)
    assert Path(place).is_relative_to(python.parents[1])
    assert shape == "(2, 1, 28, 28)\n"
    said = run_in(tmp_path, str(python), "-m", "ddpm", "sample", "--count", "2", "--steps", "3")
    assert "2 images in digits.png" in said
    assert (tmp_path / "digits.png").is_file()


def test_the_repository_uses_its_own_code_though_a_copy_is_installed(python: Path, root: Path):
    code = "import ddpm.api, stages.runner; print(ddpm.api.__file__, stages.runner.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert all(Path(path).is_relative_to(root) for path in done.stdout.split())
