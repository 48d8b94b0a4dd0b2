import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ddpm.utils.errors import DdpmError
from ddpm.utils.registry import Registry

SETTINGS = SimpleNamespace(eta=0.5, steps=20, name="shape")


@pytest.fixture
def shapes() -> Registry[Callable[..., object]]:
    registry: Registry[Callable[..., object]] = Registry("shape")

    @registry.register("circle")
    def circle(eta: float, label: str = "none") -> tuple[float, str]:
        return eta, label

    registry.register("square")(lambda: "square")
    return registry


def test_entries_are_found_by_name_in_their_order(shapes: Registry):
    assert list(shapes) == ["circle", "square"]
    assert "square" in shapes
    assert "line" not in shapes
    assert None not in shapes
    assert shapes["square"]() == "square"


def test_the_decorator_gives_the_entry_back():
    entry = object()
    registry: Registry[object] = Registry("thing")
    assert registry.register("it")(entry) is entry is registry["it"]


def test_an_unknown_name_is_refused_with_those_there_are(shapes: Registry):
    with pytest.raises(DdpmError, match=r"^unknown shape line: choose one of circle, square\.$"):
        _ = shapes["line"]
    with pytest.raises(DdpmError, match="unknown shape line"):
        shapes.build("line", SETTINGS)


def test_a_name_is_taken_once(shapes: Registry):
    with pytest.raises(ValueError, match="there already is a shape named circle"):
        shapes.register("circle")(print)


def test_an_entry_is_built_from_the_settings_of_its_parameters_names(shapes: Registry):
    assert shapes.build("circle", SETTINGS) == (0.5, "none")
    assert shapes.build("circle", SETTINGS, label="a", unknown=1) == (0.5, "a")
    assert shapes.build("circle", SETTINGS, eta=0.1) == (0.1, "none")
    assert shapes.build("square", SETTINGS) == "square"
    with pytest.raises(TypeError, match="eta"):
        shapes.build("circle", SimpleNamespace())


def test_a_class_is_built_likewise(shapes: Registry):
    @shapes.register("box")
    class Box:
        def __init__(self, steps: int, width: int) -> None:
            self.size = steps, width

    assert shapes.build("box", SETTINGS, width=3).size == (20, 3)


def test_the_modules_of_a_package_are_imported_when_first_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "toy_package"
    package.mkdir()
    (package / "__init__.py").write_text("from ddpm.utils.registry import Registry\nTOYS = Registry('toy', __name__)\n")
    for name in ("ball", "doll"):
        (package / f"{name}.py").write_text(f"from toy_package import TOYS\nTOYS.register('{name}')('a {name}')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        from toy_package import TOYS  # type: ignore[import-not-found]

        assert "toy_package.ball" not in sys.modules
        assert TOYS["doll"] == "a doll"
        assert sorted(TOYS) == ["ball", "doll"]
        assert "toy_package.ball" in sys.modules
        with pytest.raises(DdpmError, match="unknown toy car: choose one of ball, doll"):
            _ = TOYS["car"]
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "toy_package"]:
            del sys.modules[name]
