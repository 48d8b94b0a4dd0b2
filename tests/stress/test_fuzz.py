"""Random damage to every kind of file from outside: it is named in one sentence, or what is read is right."""

import gzip
import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from clones import SETTINGS
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm.config import Config, load_config, parse_config
from ddpm.data.idx import decompress, parse_idx, read_idx
from ddpm.data.image_set import ImageSet, read_image_set, write_image_set
from ddpm.data.load import load_images
from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile
from ddpm.utils.images import read_pngs
from presets.__main__ import merge

Parameters = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def small_floats() -> None:
    """The generator of examples needs numbers that a stage, run in this process by another test, sets to zero."""
    torch.set_flush_denormal(False)


def fuzz(examples: int) -> settings:
    """The same examples in every run, whatever the speed of the machine."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@st.composite
def harms(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Some flipped bytes, then perhaps a cut or bytes more."""
    flips = draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=2))
    cut = draw(st.none() | st.floats(0, 1))
    more = draw(st.sampled_from([b"", b"", b"\0", b"more"]))

    def harm(content: bytes) -> bytes:
        changed = bytearray(content)
        for place, bits in flips if content else ():
            changed[int(place * len(content))] ^= bits
        return bytes(changed if cut is None else changed[: int(cut * len(content))]) + more

    return harm


def in_one_line(error: Exception, name: str) -> str:
    message = str(error)
    assert len(message.splitlines()) == 1
    assert len(message) < 20_000
    assert name in message
    return message


def idx(kind: int, shape: tuple[int, ...], values: bytes) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + values


def is_right(found: np.ndarray, content: bytes) -> bool:
    """Whether IDX bytes say just this array."""
    return found.dtype == np.uint8 and idx(8, found.shape, found.tobytes()) == content


@fuzz(300)
@given(content=st.binary(max_size=60) | st.binary(max_size=60).map(lambda rest: b"\0\0\x08" + rest))
@example(content=b"\0\0\x08\x64" + b"\0\0\0\1" * 100 + b"x")
@example(content=b"\0\0\x08\x04" + bytes(4) + b"\xff" * 12)
def test_any_bytes_are_an_idx_array_or_damaged(content: bytes):
    try:
        assert is_right(parse_idx(content, "digits"), content)
    except DamagedFile as error:
        in_one_line(error, "digits")


@fuzz(300)
@given(
    kind=st.just(8) | st.integers(0, 255),
    shape=st.lists(st.integers(0, 4) | st.integers(0, 2**32 - 1), max_size=5).map(tuple),
    values=st.binary(max_size=64),
    packed=st.booleans(),
    harm=harms(),
)
def test_a_harmed_idx_file_is_damaged_or_read_as_it_is(
    tmp_path: Path, kind: int, shape: tuple[int, ...], values: bytes, packed: bool, harm: Callable[[bytes], bytes]
):
    original = idx(kind, shape, values)
    path = tmp_path / "digits"
    path.write_bytes(harm(gzip.compress(original, mtime=0) if packed else original))
    try:
        found = read_idx(path)
    except DamagedFile as error:
        in_one_line(error, "digits")
    else:
        assert is_right(found, original if path.read_bytes().startswith(b"\x1f\x8b") else path.read_bytes())


@fuzz(300)
@given(content=st.binary(max_size=300), harm=harms())
def test_a_harmed_gzip_file_is_damaged_or_unpacked_right(content: bytes, harm: Callable[[bytes], bytes]):
    harmed = harm(gzip.compress(content, mtime=0))
    try:
        found = decompress(harmed, "digits.gz")
    except DamagedFile as error:
        in_one_line(error, "digits.gz")
    else:
        assert found == (content if harmed.startswith(b"\x1f\x8b") else harmed)


def test_a_promise_of_terabytes_takes_no_memory():
    tracemalloc.start()
    try:
        for shape in ((2**32 - 1,) * 3, (2**31, 2**10), (2**32 - 1,) * 255):
            with pytest.raises(DamagedFile, match="does not hold what its header says"):
                parse_idx(idx(8, shape, bytes(1000)))
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2**31, 2**63, 10**30, 10**400])
    | st.floats()
    | st.sampled_from(
        ["", "1e-05", "0x10", "auto", "off", "all", "none", "cpu", "cuda:07", "a\nb", "a\0b", "\ud800", "²"]
    )
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def dotted(values: dict[str, Any]) -> list[str]:
    """The keys of all parameters."""
    return [
        f"{section}.{key}" if key else section
        for section, inner in values.items()
        for key in (inner if isinstance(inner, dict) else [""])
    ]


@fuzz(600)
@given(data=st.data())
def test_any_value_at_any_key_is_accepted_or_its_key_is_named(
    tmp_path: Path, parameters: Parameters, data: st.DataObject
):
    key = data.draw(st.sampled_from(dotted(parameters())))
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(parameters({key: data.draw(VALUES)})))
    try:
        assert isinstance(load_config(path), Config)
    except DdpmError as error:
        message = in_one_line(error, str(path))
        assert key in message or key.split(".")[-1] in message


@fuzz(150)
@given(data=st.data())
def test_many_changes_at_once_are_accepted_or_refused_in_one_line(
    tmp_path: Path, parameters: Parameters, data: st.DataObject
):
    values = parameters()
    sections = [values, *(part for part in values.values() if isinstance(part, dict))]
    for _ in range(data.draw(st.integers(1, 6))):
        section = data.draw(st.sampled_from(sections))
        key = data.draw(st.sampled_from([*section, "surplus"]) | st.text(max_size=5) | st.integers() | st.none())
        if data.draw(st.booleans()):
            section.pop(key, None)
        else:
            section[key] = data.draw(VALUES)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    try:
        assert isinstance(load_config(path), Config)
    except DdpmError as error:
        in_one_line(error, str(path))


YAML_PARTS = [
    "!!python/object/apply:os.system ['touch marker']",
    "!!binary x",
    "!!float x",
    "!!int x",
    "!!timestamp x",
    "!!set {1, 2}",
    "!!omap [a: 1]",
    "2001-99-99",
    "2001-02-03 04:05:99",
    "0x" + "f" * 5000,
    "9" * 5000,
    "1_0",
    "0o8",
    "&a [*a]",
    "&a",
    "*a",
    "<<: *a",
    "<<: 1",
    "? [1, 2]",
    "? {a: 1}",
    "%YAML 1.1",
    "---",
    "...",
    "[" * 900,
    "{" * 900,
    "- " * 900,
    "|",
    ">",
    "'",
    '"\\ud800"',
    "\t",
    "\x00",
    "\x85",
    "\ufeff",
    "😀",
    "seed: 1",
    "train:",
    "  lr: 0x1",
    "@",
    "`",
    "key: : :",
]


@pytest.mark.filterwarnings("ignore:[^a]*found duplicate anchor")
@fuzz(200)
@given(data=st.data())
def test_any_text_in_the_parameter_file_is_accepted_or_refused_in_one_line(tmp_path: Path, data: st.DataObject):
    lines = SETTINGS.read_text().splitlines()[: data.draw(st.sampled_from([12, 1000]))]
    for _ in range(data.draw(st.integers(1, 3))):
        place, text = data.draw(st.integers(0, len(lines) - 1)), data.draw(st.sampled_from(YAML_PARTS))
        within = data.draw(st.booleans())
        lines[place : place + 1] = [lines[place].split(":")[0] + ": " + text] if within else [lines[place], text]
    path = tmp_path / "params.yaml"
    path.write_text("\n".join(lines))
    try:
        assert isinstance(load_config(path), Config)
    except DdpmError as error:
        in_one_line(error, str(path))


@pytest.mark.parametrize("part", YAML_PARTS, ids=[part[:20] for part in YAML_PARTS])
def test_one_piece_of_odd_yaml_as_a_value_is_accepted_or_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
):
    monkeypatch.chdir(tmp_path)
    content = SETTINGS.read_text()
    for number, odd in enumerate((content.replace("3407", part, 1), content + "\nsurplus: " + part, part)):
        path = tmp_path / f"{number}.yaml"
        path.write_text(odd)
        try:
            assert isinstance(load_config(path), Config)
        except DdpmError as error:
            in_one_line(error, str(path))
    assert not (tmp_path / "marker").exists()


@fuzz(100)
@given(content=st.binary(max_size=40), place=st.floats(0, 1))
def test_any_bytes_in_the_parameter_file_are_accepted_or_refused_in_one_line(
    tmp_path: Path, content: bytes, place: float
):
    whole = SETTINGS.read_bytes()[:400]
    path = tmp_path / "params.yaml"
    path.write_bytes(whole[: int(place * len(whole))] + content)
    try:
        assert isinstance(load_config(path), Config)
    except DdpmError as error:
        in_one_line(error, str(path))


def test_aliases_that_stand_for_billions_of_values_are_refused_at_once(tmp_path: Path):
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    content = SETTINGS.read_text().replace("3407", "*a11", 1)
    path = tmp_path / "params.yaml"
    path.write_text("\n".join([*bomb, content]))
    started = time.process_time()
    with pytest.raises(DdpmError, match=r"seed = .*unknown key a0") as caught:
        load_config(path)
    in_one_line(caught.value, str(path))
    assert time.process_time() - started < 5


@fuzz(200)
@given(data=st.data())
def test_any_preset_is_merged_or_refused_in_one_line(parameters: Parameters, data: st.DataObject):
    values = parameters()
    keys = [*values, *(key.split(".")[-1] for key in dotted(values))]
    names = st.sampled_from(keys) | st.text("aé_ ", max_size=3) | st.none()
    changes = data.draw(st.dictionaries(names, VALUES | st.dictionaries(names, VALUES, max_size=3), max_size=3))
    try:
        merge(values, changes, "odd.yaml")
        assert isinstance(parse_config(values, "odd.yaml"), Config)
    except DdpmError as error:
        in_one_line(error, "odd.yaml")


def as_png(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, **{"format": "PNG"} | options)
    return file.getvalue()


def grey_png(pixels: np.ndarray) -> bytes:
    return as_png(Image.fromarray(pixels))


def bomb_png(_: np.ndarray) -> bytes:
    """A header that promises 10¹⁰ pixels."""
    content = bytearray(as_png(Image.new("1", (1, 1))))
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def transparent_png(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels).convert("RGBA")
    image.putalpha(254)
    return as_png(image)


# Each makes a file of uint8 pixels [h, w]; these are read as what they show …
READABLE: dict[str, Callable[[np.ndarray], bytes]] = {
    "grey": grey_png,
    "RGB": lambda pixels: as_png(Image.fromarray(pixels).convert("RGB")),
    "16 bit": lambda pixels: grey_png(pixels * np.uint16(257)),
    "16 bit, less": lambda pixels: grey_png(np.maximum(pixels * np.uint16(257), 100) - np.uint16(100)),
    "16 bit, more": lambda pixels: grey_png(np.minimum(pixels * np.uint16(257), 65400) + np.uint16(100)),
    "palette": lambda pixels: as_png(Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)),
    "opaque alpha": lambda pixels: as_png(Image.fromarray(pixels).convert("RGBA")),
    "grey with opaque alpha": lambda pixels: as_png(Image.fromarray(pixels).convert("LA")),
    "interlaced": lambda pixels: as_png(Image.fromarray(pixels), optimize=True),
}
# … and these are refused.
REFUSED: dict[str, Callable[[np.ndarray], bytes]] = {
    "transparent": transparent_png,
    "one transparent grey": lambda pixels: as_png(Image.fromarray(pixels), transparency=int(pixels[0, 0])),
    "16 bit with a transparent grey": lambda pixels: as_png(
        Image.fromarray(pixels * np.uint16(257)), transparency=int(pixels[0, 0])
    ),
    "JPEG": lambda pixels: as_png(Image.fromarray(pixels), format="JPEG"),
    "CMYK JPEG": lambda pixels: as_png(Image.fromarray(pixels).convert("CMYK"), format="JPEG"),
    "TIFF": lambda pixels: as_png(Image.fromarray(pixels), format="TIFF"),
    "animation": lambda pixels: as_png(
        Image.fromarray(pixels), save_all=True, append_images=[Image.fromarray(255 - pixels)]
    ),
    "bomb": bomb_png,
    "empty": lambda _: b"",
    "text": lambda _: b"not an image",
    "PostScript": lambda _: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\nshowpage\n",
}


@pytest.mark.parametrize("kind", READABLE)
def test_every_png_that_shows_an_image_is_read_as_it_looks(tmp_path: Path, rng: np.random.Generator, kind: str):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    (tmp_path / "a.png").write_bytes(READABLE[kind](pixels))
    found = read_pngs(tmp_path, 1)
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels[None, None])


def test_a_one_bit_png_is_black_and_white(tmp_path: Path, rng: np.random.Generator):
    ink = rng.random((9, 7)) < 0.5
    (tmp_path / "a.png").write_bytes(as_png(Image.fromarray(ink)))
    assert np.array_equal(read_pngs(tmp_path, 1)[0, 0], ink * 255)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_single_opaque_png_is_named(tmp_path: Path, rng: np.random.Generator, kind: str):
    pixels = rng.integers(256, size=(6, 6), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(grey_png(pixels))
    (tmp_path / "b.png").write_bytes(REFUSED[kind](pixels))
    with pytest.raises(DamagedFile) as caught:
        load_images(tmp_path, 2)
    in_one_line(caught.value, "b.png")


def test_a_folder_or_a_dead_link_called_png_is_named(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.png").symlink_to("nowhere")
    for name in ("a", "b"):
        with pytest.raises(DamagedFile, match=r"x\.png"):
            read_pngs(tmp_path / name, 1)


@fuzz(250)
@given(
    kinds=st.lists(st.sampled_from([*READABLE, *READABLE, *REFUSED]), min_size=1, max_size=3),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    harm=harms(),
    other_size=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_folder_of_harmed_pngs_is_damaged_or_read_right(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[str],
    size: tuple[int, int],
    harm: Callable[[bytes], bytes],
    other_size: bool,
    seed: int,
):
    folder = tmp_path_factory.mktemp("pngs")
    images = np.random.default_rng(seed).integers(256, size=(len(kinds), *size), dtype=np.uint8)
    for i, kind in enumerate(kinds):
        pixels = images[i] if i or not other_size else images[i].repeat(2, 0)
        content = (READABLE | REFUSED)[kind](pixels)
        (folder / f"{i}.png").write_bytes(harm(content) if i == 0 else content)
    (folder / "notes.txt").write_text("not an image")
    try:
        found = load_images(folder, 2)
    except DamagedFile as error:
        in_one_line(error, str(folder))
    else:
        expected = images if found.shape[2:] == size else images.repeat(2, 1)
        assert np.array_equal(found, expected[:, None])


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@fuzz(250)
@given(
    kind=st.sampled_from(
        ["u1", "i1", "i4", "u8", "?", "f2", "f4", "f8", "g", "c8", "U3", "S2", "M8[s]", "m8[s]", "O", "u1,f4", ">f4"]
    ),
    shape=st.lists(st.integers(0, 4), max_size=5),
    name=st.sampled_from(["images", "arr_0", "other"]),
    harm=harms(),
)
def test_a_harmed_npz_of_any_array_is_damaged_or_read_right(
    tmp_path: Path, kind: str, shape: list[int], name: str, harm: Callable[[bytes], bytes]
):
    path = tmp_path / "images.npz"
    ones = np.ones(shape, kind)
    path.write_bytes(harm(npz(**{name: ones})))
    try:
        found = load_images(path, 1)
    except DamagedFile as error:
        in_one_line(error, str(path))
    else:
        assert found.dtype == np.uint8
        assert found.ndim == 4
        assert found.shape[1] in (1, 3)
        assert (found == (1 if kind == "u1" else 255)).all()


@fuzz(150)
@given(
    content=st.binary(max_size=60) | st.binary(max_size=60).map(lambda rest: b"PK\x03\x04" + rest),
    name=st.sampled_from(["x.npz", "x"]),
)
def test_any_file_of_images_is_damaged_or_read_right(tmp_path: Path, content: bytes, name: str):
    (tmp_path / name).write_bytes(content)
    try:
        assert load_images(tmp_path / name, 1).dtype == np.uint8
    except DamagedFile as error:
        in_one_line(error, name)


@fuzz(150)
@given(harm=harms())
def test_a_harmed_split_is_damaged_or_read_right(tmp_path: Path, harm: Callable[[bytes], bytes]):
    path = tmp_path / "train.npz"
    split = ImageSet(np.arange(18, dtype=np.uint8).reshape(2, 1, 3, 3), np.array([1, 2]), np.array([5, 7]), 3)
    write_image_set(path, split)
    path.write_bytes(harm(path.read_bytes()))
    try:
        found = read_image_set(path)
    except (DamagedFile, MissingFile) as error:
        in_one_line(error, str(path))
    else:
        assert found.classes == split.classes
        assert all(
            np.array_equal(getattr(found, name), getattr(split, name)) for name in ("images", "labels", "indices")
        )
