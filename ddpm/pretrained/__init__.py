"""Trained models that come with the package: NAME.safetensors, and its model card NAME.md beside it."""

from pathlib import Path

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The models there are."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def path_of(name: str | Path) -> Path:
    """The file of a model that comes with the package, for its name; else the path that ``name`` is."""
    return FOLDER / f"{name}.safetensors" if str(name) in names() else Path(name)
