"""Where the files of the repository stand on the site, and the links and names on a page that lead to them.

Links in README.md and docs/ are those of the repository, relative to the file, so that they hold on a Git host too. On
the site a link to a Python file of the library leads to its part of the API; of ``[`q_sample`](../ddpm/…/process.py)``
to that function. What stands in `code` and is a parameter, a module or a name of the library becomes a link, too.
"""

import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass

from tools.site.api import Module, resolve
from tools.site.reference import COMMANDS_PAGE, PARAMETERS, STAGES

# The pages that do not lie in docs/, by their place in the repository.
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "ddpm/pretrained/mnist.md": "models/mnist.md",
    "ddpm/pretrained/mnist_unconditional.md": "models/mnist_unconditional.md",
    "docs/tour.ipynb": "tour.md",
    "params.yaml": PARAMETERS,
    "dvc.yaml": STAGES,
}
_LINK = re.compile(
    r"(?P<code>```.*?```|`[^`\n]*`(?!\]\())|(?:\[`(?P<name>[\w.]+)`)?\]\((?P<target>[^)\s]+)\)", re.DOTALL
)
_SPAN = re.compile(r"<(a|pre|h1|h2|h3|h4)\b.*?</\1>|<code>([^<]+)</code>", re.DOTALL)


class BrokenLink(ValueError):
    """A link to what is not there."""


@dataclass(frozen=True)
class Names:
    """What a page may name. library: the modules by their path. api: the page of each name. parameters: the keys."""

    library: dict[str, Module]
    api: dict[str, str]
    parameters: set[str]


def source_of(page: str) -> str:
    """The file in the repository of a page of the site."""
    return next((source for source, found in ELSEWHERE.items() if found == page), f"docs/{page}")


def page_of(source: str) -> str | None:
    """The page or file of the site for one of the repository; None for what is not on it."""
    if source in ELSEWHERE:
        return ELSEWHERE[source]
    return source.removeprefix("docs/") if source.startswith("docs/") else None


def rewrite(markdown: str, page: str, names: Names) -> str:
    """The Markdown of a page with links of the repository as those of the site. Raises BrokenLink."""
    folder, file = posixpath.dirname(page), source_of(page)

    def replaced(match: re.Match[str]) -> str:
        name, target = match["name"], match["target"]
        if match["code"] or re.match(r"\w+:|#", target):
            return match[0]
        path, hash_, anchor = target.partition("#")
        source = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
        found = page_of(source)
        if module := names.library.get(source):
            anchor, hash_ = f"{module.name}.{name}" if name else module.name, "#"
            found = names.api.get(anchor)
            if found is None:
                raise BrokenLink(f"{file}: {source} defines no {name}")
        if found is None:
            raise BrokenLink(f"{file}: {target} is not on the site; name the file as `code` instead of a link")
        url = f"{posixpath.relpath(found, folder or '.')}{hash_}{anchor}"
        return f"[`{name}`]({url})" if name else f"]({url})"

    return _LINK.sub(replaced, markdown)


def annotate(content: str, module: Module | None, names: Names, url: Callable[[str], str]) -> str:
    """The HTML of a page with links on the names in it.

    module: whose docstrings it shows. url: of a page of the site, seen from this one.
    """

    def linked(match: re.Match[str]) -> str:
        target = match[2] and _target(match[2], module, names)
        return f'<a class="name" href="{url(target[0])}#{target[1]}">{match[0]}</a>' if target else match[0]

    return _SPAN.sub(linked, content)


def _target(text: str, module: Module | None, names: Names) -> tuple[str, str] | None:
    """The page and the anchor of what a text in `code` names."""
    key = re.match(r"(\w+\.\w+)(?:: .*|=.*)?$", text)
    if key and key[1] in names.parameters:
        return PARAMETERS, key[1]
    if command := re.match(r"python -m ddpm (\w+)(?: |$)", text):
        return COMMANDS_PAGE, f"python-m-ddpm-{command[1]}"
    if text in names.library:
        text = names.library[text].name
    name = resolve(text.removesuffix("()"), module, names.api)
    return (names.api[name], name) if name else None
