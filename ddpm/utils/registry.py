"""Named choices: a schedule, a target, a sampler, a network … is one entry, and its parameters name its settings."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from ddpm.utils.errors import DdpmError

T = TypeVar("T")


class Registry(Generic[T]):
    """The entries of one kind by name.

    kind: what an entry is, for messages ("sampler"). package: a package whose modules each register their entries, as
    `ddpm.models.networks`; they are imported when the names are first asked for. None where one module holds them all.
    """

    def __init__(self, kind: str, package: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds an entry. Raises ValueError where the name is taken by another one."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"there already is a {self.kind} named {name}")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """The entry. Raises DdpmError, with the names there are, for an unknown one."""
        if name not in self:
            raise DdpmError(f"unknown {self.kind} {name}: choose one of {', '.join(self)}.")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of registration."""
        if self._package:
            package, self._package = importlib.import_module(self._package), None
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{package.__name__}.{module.name}")
        return iter(list(self._entries))

    def build(self, name: str, settings: object, **given: Any) -> Any:  # noqa: ANN401
        """Call the entry: each of its parameters is one of ``given``, or else the setting of the same name.

        ``ddim(eta)`` is so called with ``settings.eta``: a parameter names the key of params.yaml that it reads. One
        that is neither keeps its default value. Raises TypeError where it has none.
        """
        entry = self[name]
        assert callable(entry)
        return call(entry, settings, **given)


def call(entry: Callable[..., Any], settings: object, **given: Any) -> Any:  # noqa: ANN401
    """``entry`` called with those of ``given``, and of the settings, that its parameters name: see `Registry.build`."""
    keys = inspect.signature(entry).parameters
    known = {key: getattr(settings, key) for key in keys if key not in given and hasattr(settings, key)}
    return entry(**{key: given[key] for key in keys if key in given} | known)
