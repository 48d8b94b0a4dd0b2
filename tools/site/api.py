"""Pages of the Python API, from the sources as they stand: nothing is imported, signatures keep their lines."""

import ast
import html
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LIBRARY = Path("ddpm")
FOLDER = "reference/api"
# What Markdown would read as markup in the words of a docstring; in code it stays.
_MARKUP = str.maketrans({"<": "&lt;", "[": "&#91;", "*": "&#42;", "$": "&#36;", "|": "&#124;"})
_CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)

Definition = ast.FunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Entry:
    """A public class, function, method or property. name: in full. signature and source: its lines. depth: 0 or 1."""

    name: str
    signature: str
    docstring: str
    source: str
    line: int
    depth: int


@dataclass(frozen=True)
class Module:
    """A module. path: in the repository. names: what it imports from the library, by the names that it has here."""

    name: str
    path: str
    docstring: str
    entries: list[Entry]
    names: dict[str, str] = field(default_factory=dict)


def modules(root: Path) -> list[Module]:
    """All modules of the library that lies in ``root``, by name; its commands have a page of their own."""
    paths = [path.relative_to(root) for path in sorted((root / LIBRARY).rglob("*.py"))]
    return [_module(root / path, path) for path in paths if not {"commands", "__main__.py"} & {*path.parts}]


def page_of(module: str) -> str:
    """The page on which a module stands: one for each sub-package, one for the modules beside them."""
    package = module.split(".")[1:2]
    alone = not package or (not (Path(__file__).parents[2] / LIBRARY / package[0]).is_dir())
    return f"{FOLDER}/{'ddpm' if alone else package[0]}.md"


def anchors(library: list[Module]) -> dict[str, str]:
    """The page of every module and entry by its full name, which is its anchor there."""
    names = [name for module in library for name in (module.name, *(entry.name for entry in module.entries))]
    pages = {module.name: page_of(module.name) for module in library}
    return {name: next(pages[part] for part in _parents(name) if part in pages) for name in names}


def pages(library: list[Module]) -> dict[str, str]:
    """The Markdown of every page."""
    found: dict[str, list[str]] = {}
    for module in library:
        if module.docstring or module.entries:
            found.setdefault(page_of(module.name), []).append(_markdown(module))
    return {page: f"# {_title(page)}\n\n" + "\n\n".join(parts) + "\n" for page, parts in found.items()}


def resolve(name: str, module: Module | None, known: dict[str, str]) -> str | None:
    """The full name that a docstring of ``module`` means by ``name``, or None."""
    if name in known and name.startswith("ddpm"):
        return name
    if module is None:
        return None
    head, _, rest = name.partition(".")
    full = f"{module.names.get(head, f'{module.name}.{head}')}{rest and '.' + rest}"
    if full in known:
        return full
    methods = [entry.name for entry in module.entries if entry.name.endswith(f".{name}")]
    return methods[0] if len(methods) == 1 else None


def _title(page: str) -> str:
    name = Path(page).stem
    return "ddpm" if name == "ddpm" else f"ddpm.{name}"


def _parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(len(parts), 0, -1))


def _module(path: Path, relative: Path) -> Module:
    text = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
    names = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddpm")
        for alias in node.names
    }
    entries = [entry for node in tree.body for entry in _entries(node, name, lines)]
    return Module(name, relative.as_posix(), ast.get_docstring(tree) or "", entries, names)


def _entries(node: ast.stmt, parent: str, lines: list[str], depth: int = 0) -> Iterator[Entry]:
    """A public definition and, of a class, its public methods."""
    if not isinstance(node, ast.FunctionDef | ast.ClassDef) or (node.name.startswith("_") and node.name != "__call__"):
        return
    docstring = ast.get_docstring(node) or ""
    if node.name == "__call__" and not docstring:
        return
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    source = inspect.cleandoc("\n".join(lines[first - 1 : node.end_lineno]))
    yield Entry(f"{parent}.{node.name}", _signature(node, first, lines), docstring, source, node.lineno, depth)
    if isinstance(node, ast.ClassDef):
        for member in node.body:
            yield from _entries(member, f"{parent}.{node.name}", lines, depth + 1)


def _signature(node: Definition, first: int, lines: list[str]) -> str:
    """The lines before the body; of a class also its fields."""
    head = lines[first - 1 : max(node.body[0].lineno - 1, node.lineno)]
    if isinstance(node, ast.ClassDef):
        fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
        head += [line for part in fields for line in lines[part.lineno - 1 : part.end_lineno]]
    return inspect.cleandoc("\n".join(head)).rstrip()


def _markdown(module: Module) -> str:
    parts = [f"## {module.name} {{ #{module.name} }}", f"`{module.path}`", as_markdown(module.docstring)]
    for entry in module.entries:
        level, short = "#" * (3 + entry.depth), entry.name.removeprefix(f"{module.name}.")
        parts += [
            f"{level} {short.replace('_', chr(92) + '_')} {{ #{entry.name} }}",
            _fenced(entry.signature),
            as_markdown(entry.docstring),
        ]
        if not entry.depth:
            summary = f"{html.escape(module.path)}, line {entry.line}"
            details = '<details class="source" data-search-exclude markdown>'
            parts.append(f"{details}\n<summary>{summary}</summary>\n\n{_fenced(entry.source)}\n\n</details>")
    return "\n\n".join(filter(None, parts))


def as_markdown(docstring: str) -> str:
    """A docstring as Markdown: its code and indented blocks as they are, of the rest nothing is markup."""
    lines = []
    for line in docstring.splitlines():
        if line.startswith("    "):
            lines.append(line)
            continue
        parts = _CODE.split(line)
        parts[::2] = [part.translate(_MARKUP) for part in parts[::2]]
        lines.append("".join(parts))
    return "\n".join(lines)


def _fenced(code: str) -> str:
    return f"```python\n{code}\n```"
