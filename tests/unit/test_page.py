"""The page in a browser, with a small network that is no trained one: what it computes must be what Python does."""

import socket
import struct
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import PATIENCE, Visit, chromium, page_runtime, serving, visit
from PIL import Image
from playwright.sync_api import Browser

from ddpm.api import Model
from ddpm.config import Config
from ddpm.data.image_set import ImageSpec, denormalize
from ddpm.diffusion.editing import mixed, slerp
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.samplers import ddim
from ddpm.export.denoise import Exported, export
from ddpm.export.page import RESAMPLINGS, write_page
from ddpm.export.serve import page_server
from ddpm.export.write import write_export
from ddpm.models.build import build_network
from ddpm.models.checkpoint import Checkpoint
from ddpm.models.conditioning import Conditioning
from ddpm.sampling.generator import make_generator
from ddpm.utils.errors import DdpmError, MissingFile
from ddpm.utils.files import read_json
from ddpm.utils.runtime import Runtime

SPEC = ImageSpec(28, 1, 10)
SEED = 2**53 + 5  # which no number of JavaScript is
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


@pytest.fixture(scope="module")
def model(tiny: Callable[..., Config], cpu: Runtime) -> Model:
    """A network of ten classes with three clusters each, guided towards the class and away from another network."""
    guided = {"generate.guidance": 1.5, "generate.autoguidance": 1.3, "generate.steps": 10, "model.clusters": 3}
    config = tiny({"model.initialization": "xavier"}, guided)
    torch.manual_seed(0)
    weights = {group: build_network(config.model, SPEC).state_dict() for group in ("ema", "guide")}
    frequencies = torch.rand(10, 3, dtype=torch.float64)
    conditioning = Conditioning(10, frequencies / frequencies.sum(), torch.rand(10, 3, 196))
    checkpoint = Checkpoint(config.model, config.diffusion, SPEC, conditioning, {}, weights)
    return Model(make_generator(checkpoint, "it", config.generate, SEED, cpu), checkpoint)


@pytest.fixture(scope="module")
def site(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    write_page(folder, model.checkpoint, "it", model.generator.config, SEED, page_runtime())
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def opened(browser: Browser, site: Path) -> Iterator[Visit]:
    with visit(browser, site) as visited:
        assert visited.status() == "Ready."
        yield visited


@pytest.fixture
def page(opened: Visit) -> Visit:
    """The page as it is at first."""
    opened.page.reload()
    opened.status()
    return opened


def largest_difference(found: np.ndarray, expected: np.ndarray) -> int:
    assert expected.std() > 20
    return int(np.abs(found.astype(int) - expected[:, 0].astype(int)).max())


@pytest.mark.parametrize("label", [-1, 7])
def test_pictures_are_python_s_of_the_same_seed(page: Visit, model: Model, label: int):
    page.choose("sample", count=9, **{"class": label})
    assert page.page.input_value("#sample-seed") == str(SEED)
    assert page.submit("sample").startswith("9 pictures in ")
    expected = model.sample(9, labels=None if label < 0 else label, seed=SEED)
    assert isinstance(expected, np.ndarray)
    assert largest_difference(page.images("sample"), expected) <= 1
    classes = model.generator.class_labels(range(1, 10)) if label < 0 else [label] * 9
    assert page.names("sample") == [f"Picture {row + 1} of 9, class {found}" for row, found in enumerate(classes)]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_other_settings_are_python_s_too(page: Visit, model: Model, sampler: str):
    assert page.page.input_value("#sample-sampler") == "ddpm"
    page.choose("sample", count=4, seed=12, guidance=2.5, steps=0, sampler=sampler, **{"class": 3})
    assert page.page.inner_text('label[for="sample-steps"] output') == "5"
    page.submit("sample")
    expected = model.sample(4, labels=3, seed=12, guidance=2.5, steps=5, sampler=sampler)
    assert isinstance(expected, np.ndarray)
    assert largest_difference(page.images("sample"), expected) <= 1


def test_the_steps_can_be_watched_again(page: Visit, model: Model):
    page.choose("sample", count=4)
    page.submit("sample")
    frames = model.trajectory(4, seed=SEED)
    for view, name in (("noisy", "x_t"), ("guess", "x_0")):
        page.page.check(f'[name="view"][value="{view}"]', force=True)
        for step in (0, 6, 10):
            page.page.locator("#replay-step").fill(str(step))
            assert page.page.inner_text('label[for="replay-step"] output') == f"{step} of 10"
            assert largest_difference(page.images("sample"), frames[name][step]) <= 1


def stroke(page: Visit) -> None:
    """Draw a line with the mouse."""
    page.page.click("#tab-complete")
    box = page.page.locator("#pad").bounding_box()
    assert box
    page.page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.6 * box["height"], steps=4)
    page.page.mouse.up()


def drawn(page: Visit) -> np.ndarray:
    """Where the pad is white: bool [28, 28]."""
    pixels = page.page.evaluate(
        """() => {
            const pad = document.getElementById("pad"), side = pad.width / 28;
            const { data } = pad.getContext("2d").getImageData(0, 0, pad.width, pad.height);
            const middle = (place) => Math.floor((place + 0.5) * side);
            const at = (i) => 4 * (middle(Math.floor(i / 28)) * pad.width + middle(i % 28));
            return Array.from({ length: 784 }, (_, i) => data[at(i)]);
        }"""
    )
    return np.array(pixels).reshape(28, 28) == 255


@pytest.mark.parametrize(("label", "place", "steps"), [(-1, 2, 15), (4, 0, 5)])
def test_a_drawing_is_completed_as_by_python_and_kept(page: Visit, model: Model, label: int, place: int, steps: int):
    page.choose("sample", steps=place)  # which is that of the other forms, too
    stroke(page)
    known = drawn(page)
    assert 20 < known.sum() < 60
    assert known[17, 20]
    assert not known[5, 5]
    page.choose("complete", count=4, seed=8, **{"class": label})
    page.submit("complete")
    found = page.images("complete")
    assert (found[:, known] == 255).all()
    image = (255 * known).astype(np.uint8)
    given = {"labels": None if label < 0 else label, "count": 4, "seed": 8, "steps": steps}
    expected = model.inpaint(image, ~known, resamplings=RESAMPLINGS, **given)
    assert isinstance(expected, np.ndarray)
    assert largest_difference(found, expected) <= 1


@pytest.mark.parametrize("label", [-1, 4])
def test_where_nothing_is_drawn_the_labels_are_those_of_samples_as_by_python(page: Visit, model: Model, label: int):
    page.choose("sample", steps=2)
    page.page.click("#tab-complete")
    page.choose("complete", count=4, seed=8, **{"class": label})
    page.submit("complete")
    nothing, everywhere = np.zeros((28, 28), np.uint8), np.ones((28, 28), bool)
    given = None if label < 0 else label
    walk = {"steps": 15, "resamplings": RESAMPLINGS}
    expected = model.inpaint(nothing, everywhere, labels=given, count=4, seed=8, **walk)
    assert isinstance(expected, np.ndarray)
    assert largest_difference(page.images("complete"), expected) <= 1


def test_the_guidance_of_the_run_is_shown_to_two_digits(page: Visit):
    slider = page.page.locator("#sample-guidance")
    slider.fill("1.45")
    assert page.page.inner_text('label[for="sample-guidance"] output') == "1.45"


def test_any_guidance_and_seed_of_a_run_can_be_sampled(browser: Browser, model: Model, tmp_path: Path):
    for guidance, seed in ((6.0, 2**63 - 1), (0.5, 0), (1.33, 1)):
        folder = tmp_path / str(seed)
        settings = model.generator.config.model_copy(update={"guidance": guidance})
        write_page(folder, model.checkpoint, "it", settings, seed, page_runtime())
        with visit(browser, folder) as visited:
            visited.status()
            assert float(visited.page.input_value("#sample-guidance")) == guidance
            assert visited.page.evaluate("[...document.forms].every(form => form.checkValidity())")
            visited.choose("sample", count=1, steps=0)
            visited.submit("sample")


def test_a_picture_is_chosen_erased_in_part_and_completed(page: Visit):
    page.choose("sample", count=4)
    page.submit("sample")
    chosen = page.images("sample")[2]
    page.page.click('#pictures-sample button[aria-label^="Picture 3"]')
    assert page.page.locator("#panel-complete").is_visible()
    assert page.status().startswith("Erase a part")
    page.page.click("#form-complete .primary")
    assert page.status() == "Nothing is left to fill in: erase a part first."
    page.page.keyboard.press("Shift+Tab")  # the pad has the focus again by itself
    page.page.focus("#pad")
    page.page.keyboard.press("Space")
    page.choose("complete", count=1)
    page.submit("complete")
    (found,) = page.images("complete")
    distance = np.hypot(*(np.indices((28, 28)) - 13.5))
    assert (found == chosen)[distance > 3].all()
    assert not (found == chosen)[distance < 1.5].all()


def test_the_mouse_erases_what_it_drew(page: Visit):
    stroke(page)
    assert drawn(page).any()
    page.choose("complete", tool="erase")
    stroke(page)
    assert not drawn(page).any()


def test_the_keyboard_alone_draws(page: Visit):
    page.page.focus("#tab-sample")
    page.page.keyboard.press("ArrowRight")
    assert page.page.evaluate("document.activeElement.id") == "tab-complete"
    while page.page.evaluate("document.activeElement.id") != "pad":
        page.page.keyboard.press("Tab")
    assert not drawn(page).any()
    page.page.keyboard.press("Space")
    for _ in range(5):
        page.page.keyboard.press("Shift+ArrowRight")
    assert drawn(page)[14, 14:19].all()
    before = drawn(page).sum()
    page.page.keyboard.press("x")
    assert page.page.input_value('[name="tool"]:checked') == "erase"
    page.page.keyboard.press("Space")
    assert drawn(page).sum() < before
    page.page.click("#clear")
    assert not drawn(page).any()


def test_a_blend_goes_from_one_picture_to_the_other(page: Visit, model: Model):
    page.page.click("#tab-blend")
    page.choose("blend", from_seed=3, to_seed=4, to=9, count=5, **{"from": 2})
    page.submit("blend")
    generator = model.generator
    ends = [ImageNoise(seed, 0, [1], SPEC.shape, torch.device("cpu"))() for seed in (3, 4)]
    fraction = torch.linspace(0, 1, 5).view(-1, 1, 1, 1)
    labels = [
        replace(generator, config=generator.config.model_copy(update={"classes": (c,)})).labels([1]) for c in (2, 9)
    ]
    one, other = (
        generator.guided.conditioned(torch.tensor([int(label[0])] * 5)) for label in labels if label is not None
    )
    x_T = slerp(ends[0], ends[1], fraction)
    expected = denormalize(ddim()(mixed(one, other, fraction), x_T, generator.steps, lambda: x_T))
    assert largest_difference(page.images("blend"), expected) <= 1


def test_stopping_leaves_the_page_ready(page: Visit):
    page.choose("sample", count=64, steps=8)
    page.page.click("#form-sample .primary")
    page.page.click('#status[data-state="working"] button')
    assert page.status() == "Stopped."
    page.choose("sample", count=1, steps=0)
    assert page.submit("sample").startswith("One picture in ")


def test_the_pictures_are_saved(page: Visit, tmp_path: Path):
    page.choose("sample", count=4)
    page.submit("sample")
    with page.page.expect_download() as download:
        page.page.click("#below-sample .save")
    assert download.value.suggested_filename == f"pictures-seed-{SEED}.png"
    download.value.save_as(tmp_path / "saved.png")
    with Image.open(tmp_path / "saved.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape == (232, 232)
    for row, expected in enumerate(page.images("sample")):
        top, left = 120 * (row // 2), 120 * (row % 2)
        assert np.array_equal(pixels[top : top + 112, left : left + 112], expected.repeat(4, 0).repeat(4, 1))


def test_a_seed_that_is_no_number_is_refused_by_the_form(page: Visit):
    for seed, valid in (("many", False), (str(2**63), False), (str(10**18 - 1), True)):  # below 2⁶³, as in Python
        page.choose("sample", seed=seed)
        assert page.page.evaluate("document.getElementById('sample-seed').validity.valid") == valid
    page.choose("sample", seed="many")
    page.page.click("#form-sample .primary")
    assert page.status() == "Ready."


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_all_fits_and_a_finger_draws(browser: Browser, site: Path, scheme: str):
    with visit(browser, site, color_scheme=scheme, **PHONE) as visited:
        visited.status()
        ground = visited.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) > 384) == (scheme == "light")
        for name in ("sample", "complete", "blend"):
            visited.page.tap(f"#tab-{name}")
            assert visited.page.evaluate("document.documentElement.scrollWidth") <= 390
        visited.page.tap("#tab-complete")
        box = visited.page.locator("#pad").bounding_box()
        assert box
        visited.page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert drawn(visited)[13:15, 13:15].all()
        finger = visited.page.context.new_cdp_session(visited.page)
        for kind, places in (("Start", [(0.2, 0.7)]), ("Move", [(0.5, 0.7)]), ("Move", [(0.8, 0.7)]), ("End", [])):
            points = [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in places]
            finger.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
        assert drawn(visited)[19, 7:22].all()
        assert visited.page.evaluate("window.scrollY") == 0


def test_everything_that_can_be_used_has_a_name(page: Visit):
    unnamed = page.page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, canvas[tabindex], fieldset")].filter(part => {
            const within = part.tagName === "BUTTON" ? part : part.labels?.[0] ?? part.querySelector("legend");
            return !part.ariaLabel && !within?.textContent.trim();
        }).map(part => part.outerHTML)"""
    )
    assert unnamed == []


def test_colour_images_of_another_size_without_classes_have_a_page_too(
    browser: Browser, tiny: Callable[..., Config], cpu: Runtime, tmp_path: Path
):
    unguided = {"generate.guidance": 1.0, "generate.autoguidance": 1.0}
    config = tiny({"model.initialization": "xavier", "model.classes": 0, "generate.steps": 5}, unguided)
    torch.manual_seed(0)
    weights = {"ema": build_network(config.model, spec := ImageSpec(16, 3, 0)).state_dict()}
    checkpoint = Checkpoint(config.model, config.diffusion, spec, Conditioning.by_class([]), {}, weights)
    model = Model(make_generator(checkpoint, "it", config.generate, 1, cpu), checkpoint)
    write_page(tmp_path, checkpoint, "it", config.generate, 1, page_runtime())
    with visit(browser, tmp_path) as visited:
        visited.status()
        assert not visited.page.locator("#form-sample .classes").is_visible()
        visited.choose("sample", count=4)
        visited.submit("sample")
        expected = model.sample(4, seed=1)
        assert isinstance(expected, np.ndarray)
        assert largest_difference(visited.images("sample"), expected) <= 1
        assert visited.names("sample")[0] == "Picture 1 of 4"
        stroke(visited)
        visited.submit("complete")
        assert (visited.images("complete")[:, 8, 9] == 255).all()
        visited.page.click("#tab-blend")
        assert visited.submit("blend").startswith("10 pictures in ")


def test_without_a_trained_null_label_there_is_neither_guidance_nor_completing_without_a_class(
    browser: Browser, model: Model, tmp_path: Path
):
    checkpoint = replace(model.checkpoint, metadata={"null_label": False})
    write_page(tmp_path, checkpoint, "it", model.generator.config, SEED, page_runtime())
    assert read_json(tmp_path / "model.json")["settings"]["guidance"] == 1.0 < model.generator.config.guidance
    with visit(browser, tmp_path) as visited:
        visited.status()
        assert not visited.page.locator("#sample-guidance").is_visible()
        assert visited.page.inner_text("#form-sample .classes").split()[1:] == ["Any", *"0123456789"]
        visited.page.click("#tab-complete")
        assert visited.page.inner_text("#form-complete .classes").split()[1:] == [*"0123456789"]
        assert visited.page.is_checked("#form-complete-class-0")


def test_beside_the_onnx_files_the_page_takes_those(
    model: Model, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written: list[str] = []

    def noted(path: Path, *given: Any, **more: Any) -> Exported:  # noqa: ANN401
        written.append(path.name)
        return export(path, *given, **more)

    monkeypatch.setattr("ddpm.export.page.export", noted)
    write_export(tmp_path, model.checkpoint, "it", ["torch", "onnx"], "required", model.generator.config, SEED)
    assert not written
    files = [path for path in sorted(site.rglob("*.*")) if path.is_file()]
    assert {site / "denoise.onnx", site / "guide.onnx"} <= set(files)
    for file in files:
        assert (tmp_path / "page" / file.relative_to(site)).read_bytes() == file.read_bytes(), file


def test_a_file_that_is_missing_is_named(browser: Browser, site: Path, tmp_path: Path):
    for path in site.rglob("*.*"):
        if path.is_file() and path.name != "guide.onnx":
            (tmp_path / path.relative_to(site)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path.relative_to(site)).write_bytes(path.read_bytes())
    with serving(tmp_path) as address:
        visited = Visit(browser.new_page(), address)
        said = visited.status("error")
    assert said == "The network could not be loaded: guide.onnx could not be loaded (status 404)."
    assert visited.page.inner_text("#status button") == "Try again"


def test_opened_as_a_file_the_page_says_what_to_do(browser: Browser, site: Path):
    opened = browser.new_page()
    opened.set_default_timeout(PATIENCE)
    opened.goto((site / "index.html").as_uri())
    opened.wait_for_selector('#status[data-state="error"]')
    assert opened.inner_text("#status").endswith("Serve its folder: python -m ddpm page")
    opened.close()


def test_the_server_says_what_each_file_is(site: Path):
    with serving(site) as address:
        kinds = {}
        for name in (
            "",
            "scripts/main.js",
            "runtime/ort.wasm.min.mjs",
            "runtime/ort-wasm-simd-threaded.wasm",
            "model.json",
        ):
            with urllib.request.urlopen(address + name) as answer:
                kinds[name] = answer.headers["Content-Type"]
    assert list(kinds.values()) == [
        "text/html; charset=utf-8",
        *["text/javascript"] * 2,
        "application/wasm",
        "application/json",
    ]


def test_a_browser_that_goes_away_in_the_middle_of_a_file_is_no_error(site: Path, capfd: pytest.CaptureFixture[str]):
    with serving(site) as address, socket.socket() as browser:
        browser.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        browser.connect(("127.0.0.1", int(address.rsplit(":", 1)[1].strip("/"))))
        file = max((path for path in site.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        browser.sendall(f"GET /{file.relative_to(site)} HTTP/1.0\r\n\r\n".encode())
        browser.recv(100)
        browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
        browser.close()
        time.sleep(0.5)
    assert capfd.readouterr().err == ""


def test_a_folder_without_a_page_and_a_used_port_are_mistakes(site: Path, tmp_path: Path):
    with pytest.raises(MissingFile, match=r"index\.html is missing"):
        page_server(tmp_path, 0)
    with page_server(site, 0) as server, pytest.raises(DdpmError, match=r"port \d+ cannot be used .*--port"):
        page_server(site, server.server_port)
    with pytest.raises(DdpmError, match=r"port 80000 cannot be used .there are 0 to 65535.*--port"):
        page_server(site, 80_000)
