"""A page in a real browser, which reaches nothing but the server of its own files."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright
from serving import in_background

from ddpm.export.browser_runtime import fetch_runtime
from ddpm.export.serve import page_server
from ddpm.utils.errors import DdpmError
from tools.screenshots import BROWSERS

PATIENCE = 120_000  # milliseconds: the machine may be busy with other tests


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium: that of the system, or playwright's own. Skips the test where there is neither."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        except Error as error:
            if path:  # one that is there and does not start is no reason to skip
                raise
            pytest.skip(f"no browser: install Debian's chromium ({str(error).splitlines()[0]})")
        yield browser
        browser.close()


def page_runtime() -> Path:
    """The browsers' ONNX Runtime; skips the test where it was never fetched and there is no network."""
    try:
        return fetch_runtime()
    except DdpmError as error:
        pytest.skip(str(error))


class Visit:
    """A page that is open, what it complained of, and what it wanted from elsewhere."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.complaints, self.elsewhere = page, [], []
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith((address, "blob:", "data:")) or self.elsewhere.append(request.url),
        )
        page.goto(address)

    def status(self, state: str = "ready") -> str:
        """What the page says once it is in that state."""
        self.page.wait_for_selector(f'#status[data-state="{state}"]')
        return self.page.inner_text("#status .words")

    def submit(self, kind: str) -> str:
        """Ask for pictures and wait for them; returns what the page says then."""
        self.page.click(f"#form-{kind} .primary")
        self.page.wait_for_selector(f"#below-{kind}:not([hidden])")
        return self.status()

    def choose(self, kind: str, **values: Any) -> None:  # noqa: ANN401
        """Fill in a form: radio buttons and menus by name, sliders by their position, texts."""
        for name, value in values.items():
            field = self.page.locator(f'#form-{kind} [name="{name.replace("_", "-")}"]')
            kind_of = field.first.evaluate("field => field.type")
            if kind_of == "radio":
                self.page.check(f'#form-{kind} [name="{name.replace("_", "-")}"][value="{value}"]', force=True)
            elif kind_of == "select-one":
                field.select_option(str(value))
            else:
                field.evaluate(
                    "(field, value) => { field.value = value; field.dispatchEvent(new Event('input')); }", str(value)
                )

    def images(self, kind: str) -> np.ndarray:
        """The pictures that are shown, uint8 [n, h, w]."""
        pixels = self.page.evaluate(
            """kind => [...document.querySelectorAll(`#pictures-${kind} canvas`)].map(canvas => {
                const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
                return [...data].filter((_, i) => i % 4 === 0);
            })""",
            kind,
        )
        side = round(len(pixels[0]) ** 0.5)
        return np.array(pixels, np.uint8).reshape(len(pixels), side, side)

    def names(self, kind: str) -> list[str]:
        """What a screen reader calls the pictures."""
        return self.page.eval_on_selector_all(f"#pictures-{kind} button", "all => all.map(one => one.ariaLabel)")


def serving(folder: Path) -> AbstractContextManager[str]:
    """The address of the page in a folder."""
    return in_background(page_server(folder, 0))


@contextmanager
def visit(browser: Browser, folder: Path, **options: Any) -> Iterator[Visit]:  # noqa: ANN401
    """Serve the folder of a page and open it; at the end it must have complained of nothing and stayed at home."""
    with serving(folder) as address:
        context = browser.new_context(**options)
        visited = Visit(context.new_page(), address)
        yield visited
        context.close()
    assert visited.complaints == [], "\n".join(visited.complaints)
    assert visited.elsewhere == []
