"""The pictures of pages and of the shipped model in README and docs, taken again: `python -m tools.screenshots`.

Needs a Chromium. `make pictures` calls it after a new run: the report and the comparison are of docs/results, the page
and the digits of the model that `python -m ddpm` takes.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, Page, sync_playwright

from ddpm.utils.errors import one_sentence

IMAGES, RESULTS = Path("docs/images"), Path("docs/results")
# The run of the default with a hundred clusters, that of today, and two presets.
COMPARED = ("4f3e2f9", "HEAD", str(RESULTS / "long"), str(RESULTS / "unconditional"))
SAMPLED = {  # the options of `python -m ddpm sample` that give a picture
    "digits.png": ["--columns", "16", "--scale", "2"],
    "tutorial_sevens.png": ["--classes", "7", "--count", "16", "--columns", "8", "--scale", "3"],
}
HALF_AN_EIGHT = ((0.6, 0.22), (0.4, 0.22), (0.35, 0.35), (0.45, 0.42), (0.6, 0.48))  # of the pad's sides
READY = '#status[data-state="ready"]'
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def served() -> Iterator[str]:
    """The address at which `python -m ddpm page` serves the shipped model."""
    command = [sys.executable, "-u", "-m", "ddpm", "page", "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        found = (re.search(r"http://[\w.:]+/?", line) for line in process.stdout)
        try:
            yield next(filter(None, found))[0]
        finally:
            process.terminate()


@contextmanager
def opened(browser: Browser, address: str, width: int, height: int) -> Iterator[Page]:
    """A window of that size on the page."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(address)
    yield page
    page.close()


def submitted(page: Page, kind: str) -> None:
    """Ask the page for pictures, and wait for them."""
    page.click(f"#form-{kind} .primary")
    page.wait_for_selector(f"#below-{kind}:not([hidden])")
    page.wait_for_selector(READY)


def take(browser: Browser, scratch: Path) -> None:
    """All pictures."""
    for name, options in SAMPLED.items():
        command = [sys.executable, "-m", "ddpm", "sample", *options, "--out", str(IMAGES / name)]
        subprocess.run(command, check=True)
    subprocess.run([sys.executable, "-m", "tools.compare", *COMPARED, "--html", str(scratch / "runs.html")], check=True)
    for name, page, height in (
        ("report.png", RESULTS / "default/report.html", 1250),
        ("compare.png", scratch / "runs.html", 1570),
    ):
        with opened(browser, page.resolve().as_uri(), 1080, height) as window:
            window.screenshot(path=IMAGES / name)
    with served() as address:
        with opened(browser, address, 1120, 1110) as window:
            submitted(window, "sample")
            window.screenshot(path=IMAGES / "page.png")
        with opened(browser, address, 1120, 1110) as window:
            window.wait_for_selector(READY)
            window.click("#tab-complete")
            box = window.locator("#pad").bounding_box()
            assert box
            places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in HALF_AN_EIGHT]
            window.mouse.move(*places[0])
            window.mouse.down()
            for place in places[1:]:
                window.mouse.move(*place, steps=4)
            window.mouse.up()
            window.check('#form-complete [name="class"][value="8"]', force=True)
            window.locator('#form-complete [name="count"]').select_option("4")
            submitted(window, "complete")
            window.screenshot(path=IMAGES / "page_draw.png")


def main() -> None:
    """Run; what the user can fix ends it with one sentence and exit status 1."""
    argparse.ArgumentParser(prog="python -m tools.screenshots", description=__doc__).parse_args()
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with one_sentence(), TemporaryDirectory() as scratch, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        take(browser, Path(scratch))
        browser.close()


if __name__ == "__main__":
    main()
