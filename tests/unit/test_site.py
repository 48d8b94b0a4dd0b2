"""The documentation as a site: built without a network, every link leads somewhere, nothing comes from elsewhere."""

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import chromium, visit
from clones import REPOSITORY, STAGES, Offline
from playwright.sync_api import Browser
from ruamel.yaml import YAML

import ddpm
import ddpm.diffusion
from ddpm.__main__ import COMMANDS
from ddpm.api import Model
from ddpm.config import read_yaml
from tools.site import api, links
from tools.site.reference import allowed, parameters

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
# The attributes of which a browser loads what they name.
LOADING = {
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("link", "href"),
    ("source", "src"),
    ("form", "action"),
}


class Read(HTMLParser):
    """What a page of the site refers to: its anchors, its links, what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.links, self.loads = set(), set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name"):
                self.anchors.add(value)
            elif (tag, name) in LOADING and value:
                self.loads.add(value)
            elif name == "href" and value:
                self.links.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built by the command of the Makefile, which must ask for no network."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "hook").mkdir()
    offline = Offline(folder / "hook")
    build = (sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder / "built"))
    done = offline.run(REPOSITORY, *build)
    assert done.returncode == 0, done.stderr
    assert offline.refused == []
    return folder / "built"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Read]:
    found = {path: Read(path) for path in site.rglob("*.html")}
    assert len(found) > 30
    return found


def test_every_link_and_picture_leads_somewhere(site: Path, pages: dict[Path, Read]):
    broken = []
    for path, page in pages.items():
        for link in page.links | page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if path.name == "404.html":  # it is shown at any address, so its links begin at the root
                target = site / parts.path.lstrip("/") if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            known = target in pages and (not anchor or anchor in pages[target].anchors)
            if not (known or (target.is_file() and target not in pages)):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Read]):
    loaded = {load for page in pages.values() for load in page.loads}
    assert {load for load in loaded if urlsplit(load).netloc or urlsplit(load).scheme not in ("", "data")} == set()
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_no_page_is_forgotten(pages: dict[Path, Read]):
    listed = re.findall(r": ([\w/]+\.md)", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    there = {path.relative_to(REPOSITORY / "docs").as_posix() for path in (REPOSITORY / "docs").rglob("*.md")}
    assert there - set(listed) == set(), "list it in the nav of mkdocs.yml"
    assert {page for page in listed if page.startswith(api.FOLDER)} == set(api.pages(api.modules(REPOSITORY)))


def test_every_parameter_has_its_default_and_its_meaning(site: Path, pages: dict[Path, Read]):
    page, values = site / "reference/parameters.html", read_yaml(REPOSITORY / "params.yaml")
    found = {each.name: each for each in parameters((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))}
    seed = values.pop("seed")
    keys = {f"{section}.{key}": value for section, part in values.items() for key, value in part.items()}
    assert {name for name in found if "." in name} == set(keys)
    for name, value in {"seed": seed, **keys}.items():
        assert name in pages[page].anchors
        assert YAML(typ="safe", pure=True).load(found[name].value) == value
        assert f"<code>{found[name].value}</code>" in page.read_text(encoding="utf-8")
    assert found["data.name"].comment.startswith("mnist | fashion_mnist")
    assert found["data.name"].comment.endswith("svhn | folder (your own images, see docs/your_images.md)")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 10_000}, "whole number ≥ 1, ≤ 10,000"),
        ({"anyOf": [{"const": "auto"}, {"type": "number", "exclusiveMinimum": 0}]}, "`auto` or number > 0"),
        ({"enum": ["a", True]}, "`a`, `true`"),
        ({"type": "array", "items": {"enum": ["a", "b"]}}, "list of `a`, `b`"),
    ],
)
def test_what_is_allowed_is_said_in_words(schema: dict[str, object], words: str):
    assert allowed(schema) == words


def test_the_reference_names_the_entries_of_the_registries(site: Path):
    page = (site / "reference/parameters.html").read_text(encoding="utf-8")
    row = re.search(r'<code id="generate.sampler">.*?</tr>', page, re.DOTALL)
    assert row
    for name in ("ddim", "unipc", "flow_heun"):
        assert f"<code>{name}</code>" in row[0]


def public(owner: object, module: str) -> Iterator[str]:
    for name, member in inspect.getmembers(owner):
        defined = inspect.isfunction(member) or inspect.isclass(member)
        if defined and not name.startswith("_") and member.__module__ == module:
            yield name


def test_every_public_function_is_in_the_reference(site: Path, pages: dict[Path, Read]):
    anchors = pages[site / "reference/api/ddpm.html"].anchors
    assert {f"ddpm.api.{name}" for name in ddpm.__all__} <= anchors
    methods = {name for name in vars(Model) if not name.startswith("_")} - set(Model.__dataclass_fields__)
    assert {"sample", "inpaint", "spec"} <= methods
    assert {f"ddpm.api.Model.{name}" for name in methods} <= anchors
    anchors = pages[site / "reference/api/diffusion.html"].anchors
    for info in pkgutil.iter_modules(ddpm.diffusion.__path__, "ddpm.diffusion."):
        assert {f"{info.name}.{name}" for name in public(importlib.import_module(info.name), info.name)} <= anchors


def test_every_command_and_stage_is_in_the_reference(site: Path, pages: dict[Path, Read]):
    assert set(STAGES) <= pages[site / "reference/stages.html"].anchors
    commands = site / "reference/commands.html"
    assert {f"python-m-ddpm-{name}" for name in COMMANDS} <= pages[commands].anchors
    for option in ("--erase", "--reference", "--sampler"):
        assert option in commands.read_text(encoding="utf-8")


def equations() -> list[tuple[str, str]]:
    """Each equation of the explanation with the line below it."""
    text = (REPOSITORY / "docs/explanation.md").read_text(encoding="utf-8")
    return re.findall(r"```math\n(.*?)\n```\n\n([^\n]*)", text, re.DOTALL)


@pytest.mark.parametrize(("equation", "source"), equations(), ids=lambda text: text[:30])
def test_every_equation_has_a_source_and_a_function_that_names_it(equation: str, source: str):
    named = re.findall(r"\[`([\w.]+)`\]\(\.\./(ddpm/[\w/]+)\.py\)", source)
    assert named, f"{equation}: no function"
    docstrings = ""
    for name, path in named:
        found = module = importlib.import_module(path.replace("/", "."))
        for part in name.split("."):
            found = getattr(found, part)
        docstrings += f"{inspect.getdoc(found)} {inspect.getdoc(module)}"
    places = re.findall(r"(?:eq\.|§|algorithm|table|appendix) ?[\w.]*\w(?: and \d+)?", source)
    places = places or re.findall(r"\d{4}", source)
    assert places, f"{equation}: no source"
    for place in places:
        assert place in docstrings, f"{source}: {named} do not name {place}"


def test_a_link_to_a_function_that_is_not_there_is_an_error():
    library = api.modules(REPOSITORY)
    names = links.Names({module.path: module for module in library}, api.anchors(library), set())
    good = "[`q_sample`](../ddpm/diffusion/process.py)"
    assert (
        links.rewrite(good, "use.md", names)
        == "[`q_sample`](reference/api/diffusion.md#ddpm.diffusion.process.q_sample)"
    )
    for bad in (good.replace("q_sample", "p_sample"), "[here](../ddpm/no_module.py)", "[here](../Makefile)"):
        with pytest.raises(links.BrokenLink):
            links.rewrite(bad, "use.md", names)
    for code in (f"`{good}`", f"```\n{good}\n```"):
        assert links.rewrite(code, "use.md", names) == code


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.mark.parametrize("options", [{}, PHONE], ids=["desktop", "phone"])
def test_a_browser_shows_formulas_and_finds_words_without_another_host(browser: Browser, site: Path, options: dict):
    with visit(browser, site, **options) as visited:
        page, home = visited.page, visited.page.url
        for name in ("reference/parameters", "reference/api/diffusion", "tutorial", "explanation"):
            page.goto(f"{home}{name}.html")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is too wide"
        formulas = page.locator(".formula math").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect().height)"
        )
        assert len(formulas) == len(equations())
        assert min(formulas) > 10
        page.evaluate("document.querySelector('#__search').click()")
        # Key by key: the search listens to keys, and a value that appears at once comes too late for the focus.
        page.locator(".md-search__input").press_sequentially("min_snr_gamma")
        # Results of a part of the word may be shown first; a link names the words that were found.
        page.locator(".md-search-result__link[href*='parameters.html'][href*='min_snr_gamma']").first.wait_for()
