"""What MkDocs calls as it builds the site: see mkdocs.yml."""

import html
import json
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.site import api, links, reference

ROOT = Path(__file__).parents[2]
STYLE = "site.css"
# A fence of the language math, and $`…`$: what Git hosts show as formulas.
_MATHS = re.compile(r'<div class="formula">(?P<block>.*?)</div>|\$<code>(?P<inline>[^<]*)</code>\$', re.DOTALL)


_modules: dict[str, api.Module] = {}
_names = links.Names({}, {}, set())


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Read the sources; add the pages that do not lie in docs/: of other folders, and the reference."""
    global _modules, _names
    modules, text = api.modules(ROOT), (ROOT / "params.yaml").read_text(encoding="utf-8")
    _modules = {module.name: module for module in modules}
    parameters = {parameter.name for parameter in reference.parameters(text)}
    _names = links.Names({module.path: module for module in modules}, api.anchors(modules), parameters)
    pages = {page: (ROOT / source).read_text(encoding="utf-8") for source, page in links.ELSEWHERE.items()}
    pages |= api.pages(modules) | {
        reference.PARAMETERS: reference.parameter_page(ROOT),
        reference.STAGES: reference.stage_page(ROOT),
        reference.COMMANDS_PAGE: reference.command_page(ROOT),
        links.ELSEWHERE["docs/tour.ipynb"]: notebook(ROOT / "docs/tour.ipynb"),
        STYLE: (Path(__file__).parent / STYLE).read_text(encoding="utf-8"),
    }
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Links of the repository become those of the site; a page that is a tab of its own has no menu beside it."""
    if page.parent is None:
        page.meta["hide"] = ["navigation"]
    if page.file.src_uri.startswith("reference/"):
        return markdown
    try:
        return links.rewrite(markdown, page.file.src_uri, _names)
    except links.BrokenLink as error:
        raise PluginError(str(error)) from error


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Formulas become MathML, names become links."""

    def url(target: str) -> str:
        file = files.get_file_from_path(target)
        assert file is not None, target
        return file.url_relative_to(page.file)

    content = _MATHS.sub(_mathml, content)
    # On a page of the API the docstrings of each module have its own names.
    parts = re.split(r"(?=<h2 id=)", content) if page.file.src_uri.startswith(api.FOLDER) else [content]
    return "".join(links.annotate(part, _module_of(part), _names, url) for part in parts)


def notebook(path: Path) -> str:
    """A notebook as Markdown: the comment that begins a cell as text, the rest as code."""
    lines = ["# The tour", "", "The cells of `docs/tour.ipynb`; opened as a notebook, they show their pictures."]
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        words, _, code = source.partition("\n")
        lines += ["", words.removeprefix("# "), "", "```python", code.strip(), "```"]
    return "\n".join(lines) + "\n"


def _module_of(part: str) -> api.Module | None:
    name = re.match(r'<h2 id="([\w.]+)"', part)
    return _modules.get(name[1]) if name else None


def _mathml(found: re.Match[str]) -> str:
    if found["inline"]:
        return convert(html.unescape(found["inline"]))
    return f'<div class="formula">{convert(html.unescape(found["block"]), display="block")}</div>'
