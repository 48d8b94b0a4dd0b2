"""`ddpm.load` and what a model does, with the weights that ship: sampling, editing, measuring, and every mistake."""

import io
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clones import change
from PIL import Image

import ddpm
from benchmarks.cuda import differences
from ddpm import pretrained
from ddpm.__main__ import main
from ddpm.api import Settings
from ddpm.commands.options import read_picture
from ddpm.config import Config, GenerateConfig, load_config
from ddpm.data.image_set import ImageSet, ImageSpec, denormalize, normalize
from ddpm.diffusion.likelihood import Likelihood, bits_per_dimension
from ddpm.diffusion.process import q_sample
from ddpm.models.build import build_network
from ddpm.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ddpm.models.conditioning import Conditioning
from ddpm.sampling.conditions import labels_of_classes, nearest_labels
from ddpm.sampling.generator import make_generator
from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile
from ddpm.utils.images import to_grey
from ddpm.utils.runtime import Runtime

FAST = Settings(steps=5, autoguidance=1.0)
NAMES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
ZERO = np.zeros((28, 28), np.uint8)


@pytest.fixture(scope="module")
def model() -> ddpm.Model:
    return ddpm.load(device="cpu")


@pytest.fixture(scope="module")
def unconditional() -> ddpm.Model:
    return ddpm.load("mnist_unconditional", device="cpu")


@pytest.fixture(scope="module")
def some(test_digits: ImageSet) -> ImageSet:
    """A test digit of each class."""
    return test_digits.take(np.array([np.flatnonzero(test_digits.labels == label)[0] for label in range(10)]))


@pytest.fixture
def right() -> np.ndarray:
    """A mask of the right half."""
    return np.arange(28) >= np.full((28, 1), 14)


def near(one: Any, other: Any) -> bool:  # noqa: ANN401
    """Whether images are the same up to the rounding of matrix products of other shapes."""
    return float(np.abs(one.astype(int) - other.astype(int)).mean()) < 0.1


def test_importing_the_package_does_not_import_the_library():
    code = "import sys, ddpm; assert 'torch' not in sys.modules; assert callable(ddpm.load)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_samples_are_those_of_the_pipelines_generator(model: ddpm.Model, cpu: Runtime):
    torch.set_num_threads(1)
    config = model.generator.config.model_copy(update={"classes": (7,), **FAST})
    expected = denormalize(make_generator(model.checkpoint, "", config, 5, cpu).sample(range(1, 5)))
    assert np.array_equal(model.sample(4, labels=7, seed=5, **FAST), expected)
    all_classes = config.model_copy(update={"classes": "all"})
    expected = denormalize(make_generator(model.checkpoint, "", all_classes, 5, cpu).sample(range(1, 5)))
    assert np.array_equal(model.sample(4, seed=5, **FAST), expected)


def test_calls_from_several_threads_take_turns(model: ddpm.Model, monkeypatch: pytest.MonkeyPatch):
    within: list[int] = []
    together: list[int] = []
    own = ddpm.Model._denoiser

    def noting(*given: Any) -> Any:  # noqa: ANN401
        within.append(1)
        together.append(len(within))
        time.sleep(0.05)
        within.pop()
        return own(*given)

    monkeypatch.setattr(ddpm.Model, "_denoiser", noting)
    noise = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(lambda _: model.denoise(noise, 500, labels=7), range(6))
    assert together == [1] * 6
    assert all(torch.equal(first, other) for other in others)


def test_the_server_of_the_documents_answers_with_digits_and_says_what_is_wrong(
    model: ddpm.Model, root: Path, monkeypatch: pytest.MonkeyPatch
):
    servers: list[HTTPServer] = []

    class Server(ThreadingHTTPServer):
        """At a free port, and not for ever."""

        def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
            super().__init__((address[0], 0), handler)
            servers.append(self)

        def serve_forever(self, poll_interval: float = 0.05) -> None:
            threading.Thread(target=super().serve_forever, args=(poll_interval,), daemon=True).start()

    monkeypatch.setattr("http.server.ThreadingHTTPServer", Server)
    monkeypatch.setattr(ddpm, "load", lambda: model)
    section = (root / "docs/use.md").read_text(encoding="utf-8").partition("## As a server")[2]
    example = section.partition("```python\n")[2].partition("```")[0]
    exec(example, {})
    (server,) = servers
    address = f"http://127.0.0.1:{server.server_port}/"
    with urllib.request.urlopen(f"{address}?label=7&seed=5") as answer:
        assert answer.headers["Content-Type"] == "image/png"
        found = np.asarray(Image.open(io.BytesIO(answer.read())))
    assert np.array_equal(found, model.sample(1, labels=7, seed=5)[0, 0])
    for wrong in ("?label=12", "?seed=some"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(address + wrong)
        assert caught.value.code == 400
    server.shutdown()
    server.server_close()


def test_an_image_depends_on_its_number_alone(model: ddpm.Model, monkeypatch: pytest.MonkeyPatch):
    seven = model.sample(7, labels=[3, 1, 4, 1, 5, 9, 2], **FAST)
    assert near(model.sample(3, labels=[3, 1, 4], **FAST), seven[:3])
    monkeypatch.setattr("ddpm.api._BATCH", 2)
    assert near(model.sample(7, labels=[3, 1, 4, 1, 5, 9, 2], **FAST), seven)
    assert not near(model.sample(7, labels=[3, 1, 4, 1, 5, 9, 2], seed=1, **FAST), seven)


def test_images_come_in_three_forms(model: ddpm.Model):
    array = model.sample(2, **FAST)
    assert isinstance(array, np.ndarray)
    assert (array.shape, array.dtype) == ((2, 1, 28, 28), np.uint8)
    tensor = model.sample(2, as_="tensor", **FAST)
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(denormalize(tensor), array)
    assert (tensor.dtype, tensor.requires_grad, tensor.is_inference()) == (torch.float32, False, False)
    first = model.sample(2, as_="pil", **FAST)[0]
    assert isinstance(first, Image.Image)
    assert np.array_equal(np.asarray(first), array[0, 0])


def test_classes_may_be_named(own: Path, model: ddpm.Model):
    assert model.class_names == tuple("0123456789")
    assert np.array_equal(model.sample(2, labels=["7", 2], **FAST), model.sample(2, labels=[7, 2], **FAST))
    named = ddpm.load(own)
    assert named.class_names == NAMES
    assert named.class_labels(3, ["bag", 0, "boot"]).tolist() == [8, 0, 9]
    bag, sneaker = 8, 7
    assert np.array_equal(named.sample(2, labels="bag"), named.sample(2, labels=bag))
    assert np.array_equal(named.sample(2, labels=["bag", "sneaker"]), named.sample(2, labels=[bag, sneaker]))
    one, other = (named.interpolate(ZERO, ZERO, 2, labels=each, steps=3) for each in (("bag", 7), (8, "sneaker")))
    assert np.array_equal(one, other)
    with pytest.raises(DdpmError, match=r"no class shoe: .* labels 0 to 9, called top, .*, boot\.$"):
        named.vary(ZERO, labels="shoe")


@pytest.mark.parametrize("asked", [None, [3, 8] * 50])
def test_classes_and_clusters_are_those_that_the_images_are_conditioned_on(
    model: ddpm.Model, unconditional: ddpm.Model, asked: list[int] | None
):
    for each in (model, unconditional)[: 1 if asked else 2]:
        generator, seen = each.generator, []

        def watched(
            x_t: torch.Tensor, t: torch.Tensor, labels: torch.Tensor, seen: list[torch.Tensor] = seen
        ) -> torch.Tensor:
            seen.append(labels)
            return torch.zeros_like(x_t)

        looking = replace(each, generator=replace(generator, denoiser=replace(generator.denoiser, predict=watched)))
        looking.sample(100, labels=asked, steps=1, guidance=1, autoguidance=1)
        clusters, classes = each.cluster_labels(100, asked), each.class_labels(100, asked)
        assert clusters is not None
        first = 0 if classes is None else classes * generator.conditioning.clusters
        assert np.array_equal(first + clusters, torch.cat(seen).numpy())
        assert len(set(clusters.tolist())) > generator.conditioning.clusters // 2
    with pytest.raises(DdpmError, match="count is 2"):
        model.cluster_labels(2.5)


def test_a_number_is_the_name_of_a_class_first(
    model: ddpm.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, some: ImageSet, right: np.ndarray
):
    """Of the model that ships, each digit called by the number after it."""
    path, shipped = tmp_path / "numbered.safetensors", load_checkpoint(pretrained.FOLDER / "mnist.safetensors")
    names = tuple(map(str, range(1, 11)))
    save_checkpoint(path, replace(shipped, spec=replace(shipped.spec, class_names=names)))
    numbered = ddpm.load(path, device="cpu")
    assert numbered.class_labels(4, [2, "2", 10, "02"]).tolist() == [1, 1, 9, 1]
    assert np.array_equal(numbered.sample(2, labels=2, **FAST), model.sample(2, labels=1, **FAST))
    ends = ((numbered, (2, 9)), (model, (1, 8)))
    assert np.array_equal(*(each.interpolate(ZERO, ZERO, 2, labels=labels, steps=3) for each, labels in ends))
    # As it is typed in a shell.
    words = ("sample", "--model", str(path), "--steps", "1", "--autoguidance", "1", "--device", "cpu", "--count", "3")
    monkeypatch.setattr(sys, "argv", ["ddpm", *words, "--classes", "2", "10", "1", "--out", str(tmp_path / "a.npz")])
    main()
    assert np.load(tmp_path / "a.npz")["labels"].tolist() == [1, 9, 0]
    assert np.array_equal(np.load(tmp_path / "a.npz")["clusters"], numbered.cluster_labels(3, [2, 10, 1]))
    # What comes out of the model are numbers.
    found = numbered.classify(some.images)
    assert np.array_equal(found, some.labels)
    assert numbered.class_labels(10, found).tolist() == found.tolist()
    assert numbered.class_labels(2, found[3]).tolist() == [3, 3]
    assert numbered.class_labels(10, torch.from_numpy(found)).tolist() == found.tolist()
    painted = [each.inpaint(some.images[3:5], right, resamplings=1, **FAST) for each in (numbered, model)]
    assert np.array_equal(*painted)
    for unknown in (0, 11, "11", np.array([10])):
        with pytest.raises(DdpmError, match=r"no class (0|1[01]): this model knows the classes 1, 2, .*, 10\.$"):
            numbered.sample(1, labels=unknown)


def test_a_trajectory_ends_at_the_sample(model: ddpm.Model):
    frames = model.trajectory(2, labels=8, seed=1, **FAST)
    assert frames["x_t"].shape == frames["x_0"].shape == (6, 2, 1, 28, 28)
    assert frames["t"].tolist() == [999, 799, 599, 399, 199, -1]
    assert np.array_equal(frames["x_t"][-1], model.sample(2, labels=8, seed=1, **FAST))


def test_the_settings_are_those_of_the_checkpoint_or_of_a_file(model: ddpm.Model, tmp_path: Path, root: Path):
    assert model.settings["autoguidance"] == 1.3
    assert model.settings["steps"] == 40
    path = root / "tests/params.yaml"
    assert ddpm.load(settings=path).settings["guidance"] == load_config(path).generate.guidance != 1.0


@pytest.fixture
def own(tiny: Callable[..., Config], tmp_path: Path) -> Path:
    """A checkpoint as a run of the pipeline leaves it, without settings and here without a guide."""
    config = tiny({"diffusion.timesteps": 20, "generate.steps": 3, "train.preview_steps": 3})
    spec = ImageSpec(size=28, channels=1, classes=10, name="fashion_mnist", class_names=NAMES)
    path = tmp_path / "best.safetensors"
    conditioning = Conditioning.by_class([0.1] * 10)
    weights = {"ema": build_network(config.model, spec).state_dict()}
    save_checkpoint(path, Checkpoint(config.model, config.diffusion, spec, conditioning, {"step": 1}, weights))
    return path


def test_a_checkpoint_of_a_run_samples_without_settings(own: Path, workspace: Path):
    model = ddpm.load(own)
    assert (model.settings["autoguidance"], model.settings["steps"]) == (1.0, 20)
    assert model.sample(2).shape == (2, 1, 28, 28)
    with pytest.raises(DdpmError, match="needs a guide"):
        model.sample(1, autoguidance=2.0)
    change(workspace, {"generate.steps": 21})
    with pytest.raises(DdpmError, match="exceeds the 20 timesteps"):
        ddpm.load(str(own), settings=workspace / "params.yaml").sample(1)


def test_a_network_without_the_null_label_is_not_asked_by_it(own: Path, some: ImageSet):
    save_checkpoint(own, replace(known := load_checkpoint(own), metadata=known.metadata | {"null_label": False}))
    model = ddpm.load(own)
    assert model.settings["guidance"] == 1.0
    assert model.sample(1).shape == (1, 1, 28, 28)
    with pytest.raises(DdpmError, match=r"guidance=1\.5: .* not trained with the null label: set it to 1, or"):
        model.sample(1, guidance=1.5)
    images = some.images[:2]
    with pytest.raises(DdpmError, match=r"without class labels: .* not trained with the null label: give labels, or"):
        model.log_likelihood(images)
    assert len(model.log_likelihood(images, labels=some.labels[:2])) == 2
    x_t = torch.zeros(2, 1, 28, 28)
    with pytest.raises(DdpmError, match=r"without class labels: .* not trained with the null label: give labels, or"):
        model.denoise(x_t, 5)
    assert model.denoise(x_t, 5, labels=some.labels[:2]).shape == x_t.shape


def test_the_log_likelihood_is_the_bound_of_the_pipeline(own: Path, some: ImageSet):
    model = ddpm.load(own)
    found = model.log_likelihood(some.images, labels=some.labels)
    plain, conditioning = model.generator.denoiser, model.generator.conditioning
    assert plain.clip
    assert not model._changed({"clip": False}).guided.clip
    images, frequencies = torch.from_numpy(some.images), conditioning.frequencies.flatten().tolist()
    known = Likelihood(plain.conditioned, images, conditioning.labels(some), plain.schedule, 19, 1)
    bits = bits_per_dimension(known, frequencies)
    assert (-found / (784 * np.log(2))).mean() == pytest.approx(bits["bpd_small"], rel=0.03)  # other noise
    without = model.log_likelihood(some.images)
    assert bits["bpd_label"] * 784 * np.log(2) == pytest.approx(np.log(10))
    assert without.shape == (10,)


def test_a_label_that_no_training_image_has_in_the_end_costs_a_finite_number_of_nats(own: Path, some: ImageSet):
    known = load_checkpoint(own)
    frequencies = torch.tensor([0.0, *[1 / 9] * 9]).double()
    save_checkpoint(own, replace(known, conditioning=Conditioning.by_class(frequencies.tolist())))
    image = some.images[:1]
    found = [ddpm.load(own).log_likelihood(image, labels=label) for label in (0, 1)]
    assert np.isfinite(found).all()
    save_checkpoint(own, replace(known, conditioning=Conditioning.by_class([1 / 18, *[1 / 9] * 9])))
    assert ddpm.load(own).log_likelihood(image, labels=0) == pytest.approx(
        found[0], rel=1e-9
    )  # half as frequent as the rarest


def test_in_painting_keeps_the_other_pixels_to_the_bit(model: ddpm.Model, some: ImageSet, right: np.ndarray):
    found = model.inpaint(some.images, right, labels=some.labels, resamplings=2, **FAST)
    assert np.array_equal(found[..., :14], some.images[..., :14])
    assert not np.array_equal(found[..., 14:], some.images[..., 14:])
    one = Image.fromarray(some.images[3, 0])
    mask = Image.fromarray((right * 255).astype(np.uint8))
    several = model.inpaint(one, mask, count=3, resamplings=1, **FAST)
    assert np.array_equal(several[..., :14], np.repeat(some.images[3:4, ..., :14], 3, 0))
    assert len(np.unique(several, axis=0)) == 3
    nothing = model.inpaint(one, np.zeros((28, 28)), resamplings=1, **FAST)
    assert np.array_equal(nothing[0], some.images[3])


def test_without_a_label_the_class_is_that_of_the_visible_pixels(
    model: ddpm.Model, unconditional: ddpm.Model, some: ImageSet, right: np.ndarray
):
    few = np.zeros((28, 28), bool)
    few[:2] = True  # nothing of a digit is missing
    labelled = model.inpaint(some.images, few, labels=some.labels, resamplings=1, **FAST)
    assert np.array_equal(model.inpaint(some.images, few, resamplings=1, **FAST), labelled)
    assert not np.array_equal(model.inpaint(some.images, right, labels=None, resamplings=1, **FAST), labelled)
    assert np.array_equal(model.classify(some.images), some.labels)
    assert np.array_equal(model.classify(some.images, few), some.labels)
    plain, auto = (unconditional.inpaint(some.images, right, labels=x, resamplings=1, **FAST) for x in (None, "auto"))
    assert np.array_equal(plain, auto)


def test_many_images_are_edited_in_parts(model: ddpm.Model, some: ImageSet, monkeypatch: pytest.MonkeyPatch):
    together = model.vary(some.images, 0.6, labels=some.labels, **FAST)
    monkeypatch.setattr("ddpm.api._BATCH", 3)
    assert near(model.vary(some.images, 0.6, labels=some.labels, **FAST), together)


def test_variations_of_strength_0_are_the_images_and_of_1_fresh_samples(model: ddpm.Model, some: ImageSet):
    assert np.array_equal(model.vary(some.images, 0.0, labels=some.labels), some.images)
    of_one, of_other = (model.vary(some.images[i], 1.0, labels=4, count=2, **FAST) for i in (1, 4))
    weak = model.vary(some.images[4], 0.2, labels=4, count=2, **FAST)
    assert np.abs(weak - some.images[4].astype(float)).mean() < 6
    # At strength 1 nothing is left of the images: with the same noise and label they give the same sample.
    generator = model._changed(FAST)
    labels = model._labels(range(1, 3), np.array([4, 4]), generator)
    plain = denormalize(model._sampled(generator, range(1, 3), labels, 0, lambda *_: None))
    assert near(of_other, plain)
    assert near(of_one, plain)
    assert of_one.shape == of_other.shape


def test_of_strength_1_the_cluster_of_an_image_is_forgotten_too(unconditional: ddpm.Model, some: ImageSet):
    fresh = unconditional.sample(4, seed=1, **FAST)
    for i in (3, 8):
        assert near(unconditional.vary(some.images[i], 1.0, count=4, seed=1, **FAST), fresh)
    paths = [
        unconditional.interpolate(some.images[i], some.images[i + 1], 3, strength=1.0, seed=1, **FAST) for i in (1, 7)
    ]
    assert near(*paths)
    own = unconditional.generator.conditioning.labels(some)
    assert torch.equal(unconditional._known(some.images, None), own)
    assert not torch.equal(unconditional._known(some.images, None, False), own)


def test_where_nothing_of_an_image_is_left_it_is_of_any_class(model: ddpm.Model, some: ImageSet, right: np.ndarray):
    everything = np.ones((28, 28), bool)
    found = model.inpaint(ZERO, everything, count=8, seed=9, steps=15, resamplings=1)
    classes = model.classify(found)
    assert len(set(classes.tolist())) > 4
    assert np.mean(classes == model.class_labels(8)) > 0.7
    # Beside it, an image of which something is left is what it is alone.
    both = model.inpaint(some.images[:2], np.stack([right, everything]), resamplings=1, **FAST)
    assert near(both[:1], model.inpaint(some.images[0], right, resamplings=1, **FAST))


@pytest.mark.parametrize("form", ["RGBA", "LA", "I;16"])
def test_a_mask_of_any_mode_is_what_its_file_is_to_the_command(
    model: ddpm.Model, some: ImageSet, right: np.ndarray, tmp_path: Path, form: str
):
    grey = np.where(right, 200, 40).astype(np.uint8)
    mask = Image.fromarray(grey * np.uint16(257))
    if form != mask.mode:
        mask = Image.new(form, (28, 28), "white")
        mask.putalpha(Image.fromarray(grey))
    mask.save(tmp_path / "mask.png")
    read = to_grey(read_picture(tmp_path / "mask.png", 28))[0, 0]
    found = [model.inpaint(some.images[3], each, labels=3, resamplings=1, **FAST) for each in (mask, read, right)]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_few_steps_are_taken_again_as_well(model: ddpm.Model, some: ImageSet, right: np.ndarray):
    once, thrice = (model.inpaint(some.images[3], right, labels=3, resamplings=count, **FAST) for count in (1, 3))
    assert not np.array_equal(once, thrice)
    halves = model.inpaint(some.images[3], right, labels=3, resamplings=3, jump_length=2, **FAST)
    assert np.array_equal(thrice, halves)
    assert np.array_equal(once, model.inpaint(some.images[3], right, labels=3, resamplings=1, jump_length=9, **FAST))


def test_numbers_may_be_those_of_numpy_and_torch(model: ddpm.Model):
    assert model.class_labels(2, [torch.tensor(3), torch.tensor(1)]).tolist() == [3, 1]
    given = {"steps": np.int64(2), "autoguidance": np.float32(1.0), "clip": np.bool_(True)}
    assert np.array_equal(model.sample(1, **given), model.sample(1, steps=2, autoguidance=1.0, clip=True))


def test_interpolation_ends_at_its_ends(model: ddpm.Model, some: ImageSet):
    a, b = some.images[1], some.images[8]
    for labels, steps in ((None, 50), ((1, 8), 30)):
        found = model.interpolate(a, b, 3, labels=labels, **(FAST | Settings(steps=steps)))
        assert found.shape == (3, 1, 28, 28)
        assert np.abs(found[0] - a.astype(float)).mean() < 0.5
        assert np.abs(found[2] - b.astype(float)).mean() < 0.5
        assert not near(found[1], found[0])
    ends = model.interpolate(a, b, 2, labels=(1, 8), strength=0.3, seed=2, **FAST)
    assert np.abs(ends[0] - a.astype(float)).mean() < np.abs(ends[1] - a.astype(float)).mean()
    assert np.abs(ends[1] - b.astype(float)).mean() < 8


def test_inversion_tells_its_round_trip_error(model: ddpm.Model, unconditional: ddpm.Model, some: ImageSet):
    images = some.images[:3]
    for any_model, labels in ((model, some.labels[:3]), (unconditional, None)):
        found = any_model.invert(images, labels=labels)
        assert found.x_T.shape == (3, 1, 28, 28)
        assert 0.3 < found.x_T.std() < 1.2
        distance = np.abs(found.images.astype(float) - images).reshape(3, -1).mean(1)
        np.testing.assert_allclose(found.error, distance)
        assert found.error.max() < 0.5
    again = (model.invert(images[:1], steps=5).x_T for _ in range(2))
    assert torch.equal(*again)


def test_what_is_not_to_be_clipped_is_not(model: ddpm.Model, some: ImageSet):
    x_t = 2.0 * normalize(torch.from_numpy(some.images))
    plain = Settings(guidance=1.0, autoguidance=1.0)
    clipped, free = (model.denoise(x_t, 300, labels=some.labels, clip=clip, **plain) for clip in (True, False))
    assert free.abs().max() > 1.0
    assert torch.equal(free.clamp(-1.0, 1.0), clipped)
    with_own, without = (model.invert(some.images[:2], labels=some.labels[:2], **more).x_T for more in ({}, plain))
    assert torch.equal(with_own, without)
    assert not torch.equal(with_own, model.invert(some.images[:2], labels=some.labels[:2], clip=True).x_T)


@pytest.fixture
def with_features(tiny: Callable[..., Config], tmp_path: Path) -> ddpm.Model:
    """A network of random weights that predicts a variance and is given its last prediction."""
    config = tiny(
        {
            "diffusion.timesteps": 20,
            "generate.steps": 16,
            "model.learned_variance": True,
            "model.self_conditioning": True,
        }
    )
    spec = ImageSpec(size=28, channels=1, classes=10, name="mnist", class_names=tuple("0123456789"))
    network = build_network(config.model, spec)
    torch.manual_seed(0)
    for weight in network.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    path, conditioning = tmp_path / "features.safetensors", Conditioning.by_class([0.1] * 10)
    weights = {"ema": network.state_dict()}
    save_checkpoint(path, Checkpoint(config.model, config.diffusion, spec, conditioning, {"step": 1}, weights))
    return ddpm.load(path, device="cpu")


def test_a_network_of_few_times_is_inverted_in_as_many_and_interpolated_from_there(
    with_features: ddpm.Model, some: ImageSet
):
    a, b = some.images[1], some.images[8]
    inverted = with_features.invert(a, labels=1).images[0]
    assert near(with_features.interpolate(a, b, 2, labels=(1, 8))[0], inverted)
    with pytest.raises(DdpmError, match="steps=21 exceeds the 20 timesteps"):
        with_features.invert(a, labels=1, steps=21)


def test_in_painting_takes_the_small_variance_for_a_learned_one(
    with_features: ddpm.Model, some: ImageSet, right: np.ndarray
):
    learned, small, large = (
        with_features.inpaint(some.images[:2], right, labels=some.labels[:2], resamplings=2, steps=5, variance=variance)
        for variance in ("learned", "small", "large")
    )
    assert np.array_equal(learned, small)
    assert not np.array_equal(learned, large)


def test_between_two_labels_the_small_variance_is_taken_for_a_learned_one(with_features: ddpm.Model, some: ImageSet):
    a, b = some.images[1], some.images[8]

    def between(labels: tuple[int, int], variance: str) -> np.ndarray:
        return with_features.interpolate(a, b, 3, labels=labels, seed=1, steps=5, variance=variance)

    assert np.array_equal(between((1, 8), "learned"), between((1, 8), "small"))
    assert not np.array_equal(between((1, 1), "learned"), between((1, 1), "small"))


def test_denoising_is_one_evaluation_of_the_network(model: ddpm.Model, some: ImageSet):
    x_0 = normalize(torch.from_numpy(some.images))
    alpha_bar = model.generator.denoiser.schedule.alpha_bar[300].float()
    x_t = q_sample(x_0, alpha_bar, torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0)))
    found = model.denoise(x_t, 300, labels=some.labels, guidance=1.0, autoguidance=1.0)
    assert (found - x_0).square().mean() < 0.15 * (x_t / alpha_bar.sqrt() - x_0).square().mean()
    known = torch.from_numpy(labels_of_classes(model.generator.conditioning, range(1, 11), some.labels))
    assert torch.equal(found, model.generator.denoiser.conditioned(known)(x_t, 300))
    assert model.denoise(x_t.numpy(), 300).shape == x_t.shape


@pytest.mark.parametrize(
    "form",
    [
        lambda image: image[0, 0],
        lambda image: image[0],
        lambda image: image[0].transpose(1, 2, 0),
        lambda image: image[0, 0] / np.float32(255),
        lambda image: normalize(torch.from_numpy(image)),
        lambda image: Image.fromarray(image[0, 0]).convert("RGB"),
        lambda image: [Image.fromarray(image[0, 0])],
        lambda image: np.repeat(image, 3, 1),
        lambda image: Image.fromarray(image[0, 0] * np.uint16(257)),
        lambda image: [Image.fromarray(image[0, 0] * np.int32(257))],
    ],
    ids=["h w", "c h w", "h w c", "unit", "x_0", "RGB", "list", "colour", "16 bits", "16 bits of 32"],
)
def test_images_go_in_in_any_form(model: ddpm.Model, some: ImageSet, form: Callable[[np.ndarray], Any]):
    assert np.array_equal(model.vary(form(some.images[2:3]), 0.0), some.images[2:3])


def test_what_is_transparent_in_a_pillow_image_becomes_black(model: ddpm.Model, some: ImageSet):
    digit = some.images[2, 0]
    paper = 255 - digit
    clear = Image.new("LA", (28, 28), 255)
    clear.putalpha(Image.fromarray(digit))
    keyed, deep = Image.fromarray(paper), Image.fromarray(paper * np.uint16(257))
    keyed.info["transparency"], deep.info["transparency"] = 255, 65_535
    inner = np.where(digit == 0, 0, paper)
    for given, expected in ((clear, digit), (clear.convert("RGBA"), digit), (keyed, inner), (deep, inner)):
        assert np.array_equal(model.vary(given, 0.0)[0, 0], expected)
        assert np.array_equal(model.vary([given, clear], 0.0)[:, 0], [expected, digit])


def test_a_tensor_may_be_of_bfloat16(model: ddpm.Model):
    halves = torch.full((1, 1, 28, 28), 0.5, dtype=torch.bfloat16)
    assert np.array_equal(model.vary(halves, 0.0), np.full((1, 1, 28, 28), 128))


def test_conditions_of_whole_images_are_those_of_training(
    model: ddpm.Model, unconditional: ddpm.Model, test_digits: ImageSet
):
    some = test_digits.take(np.arange(200))
    everywhere = np.ones((200, 1, 28, 28), bool)
    for any_model, classes in ((model, some.labels), (unconditional, None)):
        conditioning = any_model.generator.conditioning
        found = nearest_labels(conditioning, some.images, everywhere, classes)
        assert torch.equal(found, conditioning.labels(some))
    assert nearest_labels(model.generator.conditioning, some.images, everywhere, None) is None


def truncated() -> Image.Image:
    """A picture whose file ends too early."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(28, 28), dtype=np.uint8)).save(content, "PNG")
    return Image.open(io.BytesIO(content.getvalue()[:300]))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda m: m.sample(2, labels=10), "there is no class 10: this model knows the class labels 0 to 9"),
        (lambda m: m.sample(2, labels="ten"), "there is no class ten: this model knows the class labels 0 to 9"),
        (lambda m: m.sample(2, labels=[1, 2, 3]), "one for each of the 2 images"),
        (lambda m: m.sample(2, labels=2.5), "there is no class 2.5"),
        (lambda m: m.sample(10**12), "a whole number from 1 to 1,000,000"),
        (lambda m: m.sample(0), "count is 0"),
        (lambda m: m.sample(2.5), "count is 2.5"),
        (lambda m: m.sample(1, seed=-1), "seed is -1"),
        (lambda m: m.sample(1, sampler="euler"), "input should be one of ddpm, ddim"),
        (lambda m: m.sample(1, steps=0), "steps = 0"),
        (lambda m: m.sample(1, steps=2000), "exceeds the 1000 timesteps"),
        (lambda m: m.sample(1, temperature=2), "unknown setting temperature"),
        (lambda m: m.sample(1, as_="jpeg", steps=2000), "choose one of numpy, pil, tensor"),  # before anything else
        (lambda m: m.vary(ZERO, 2.0, as_="jpeg"), "choose one of numpy, pil, tensor"),
        (lambda m: m.inpaint(ZERO, np.zeros((14, 14))), r"the mask has the shape \[14, 14\]; \[28, 28\]"),
        (lambda m: m.inpaint(ZERO, ZERO, resamplings=0), "resamplings is 0"),
        (lambda m: m.inpaint(ZERO, ZERO, labels=-1), "there is no class -1"),
        (lambda m: m.vary(np.zeros((32, 32), np.uint8)), "32 × 32 pixels; this model's have 28 × 28"),
        (lambda m: m.inpaint(ZERO, [[0], [0, 1]]), "the mask has the shape"),
        (lambda m: m.inpaint(ZERO, np.full((28, 28), "x")), "the mask holds values of type <U1"),
        (lambda m: m.vary([Image.new("L", (28, 28)), Image.new("L", (32, 20))]), "32 × 20 pixels; this model's have"),
        (lambda m: m.vary([]), "no list of one or more"),
        (lambda m: m.vary([ZERO, ZERO]), "numpy.stack joins arrays"),
        (lambda m: m.vary("digit.png"), "PIL.Image.open reads a file"),
        (lambda m: m.vary(None), "the image is no Pillow image"),
        (lambda m: m.vary(ZERO, 1.5), "strength is 1.5"),
        (lambda m: m.vary(ZERO, "much"), "strength is much"),
        (lambda m: m.vary(np.full((28, 28), np.nan)), "holds NaN"),
        (lambda m: m.vary(np.zeros((3, 28, 28), np.uint8), count=2), "3 are given"),
        (lambda m: m.vary(np.zeros((28, 28, 4), np.uint8)), "has an alpha channel: give the Pillow image"),
        (lambda m: m.vary(np.zeros((5, 28, 28, 2), np.uint8)), "has an alpha channel: give the Pillow image"),
        (lambda m: m.vary(np.zeros((28, 28), np.int64)), "int64; uint8 or floating point"),
        (lambda m: m.sample(1, variance="foo"), r"^variance = 'foo': [^;]*$"),
        (lambda m: m.interpolate(ZERO, np.zeros((2, 1, 28, 28))), "two single images"),
        (lambda m: m.interpolate(ZERO, ZERO, 1), "count is 1"),
        (lambda m: m.denoise(np.zeros((28, 28)), 5), r"\[n, 1, 28, 28\] is wanted"),
        (lambda m: m.denoise(np.zeros((1, 1, 28, 28)), 1000), "are 0 to 999"),
        (lambda m: m.denoise("noise", 5), "x_t is of the type str"),
        (lambda m: m.denoise(np.zeros((0, 1, 28, 28)), 5), r"shape \[0, 1, 28, 28\]"),
        (lambda m: m.denoise(np.zeros((1, 1, 28, 28), np.uint8), 5), "type torch.uint8; floating point is wanted"),
        (lambda m: m.denoise(np.zeros((1, 1, 28, 28), bool), 5), "type torch.bool"),
        (lambda m: m.denoise(np.zeros((1, 1, 28, 28), complex), 5), "type torch.complex128"),
        (lambda m: m.denoise(np.full((1, 1, 28, 28), np.nan), 5), "holds NaN or infinity"),
        (lambda m: m.classify(ZERO, np.ones((28, 28), bool)), "the mask hides all of image 0"),
        (lambda m: m.inpaint(ZERO, np.full((28, 28), 40)), "the mask holds numbers outside 0 to 1"),
        (lambda m: m.inpaint(ZERO, np.full((28, 28), np.nan)), "the mask holds numbers outside 0 to 1"),
        (lambda m: m.inpaint(ZERO, Image.new("F", (28, 28))), "the mask is a Pillow image of mode F"),
        (lambda m: m.inpaint(ZERO, ZERO, jump_length=10, steps=10), "jump_length is 10, and the steps are 10"),
        (lambda m: m.inpaint(ZERO, ZERO, jump_length=0), "jump_length is 0"),
        (lambda m: m.invert(ZERO, sampler="ddim"), "leave sampler away"),
        (lambda m: m.interpolate(ZERO, ZERO, eta=1.0, variance="large"), "leave eta, variance away"),
        (lambda m: m.interpolate(ZERO, ZERO, strength="much"), "strength needs a seed"),
        (lambda m: m.interpolate(ZERO, ZERO, strength=0.0, seed=1), "strength is 0; a number above 0"),
        (lambda m: m.vary(Image.new("F", (28, 28), 0.5), 0.0), r'Pillow image of mode F: give .* convert\("L"\)'),
        (lambda m: m.vary([Image.new("I", (28, 28), 255)], 0.0), "of mode I, of 16 bits but at most 255"),
        (lambda m: m.vary(Image.new("La", (28, 28)), 0.0), "cannot be read as RGB"),
        (lambda m: m.vary(truncated(), 0.0), "cannot be read as RGB .*truncated"),
        (lambda m: m.sample(1, seed=2**63), "a whole number from 0 to 2⁶³ − 1 is wanted"),
        (lambda m: m.sample(1, guidance=float("nan")), "guidance is nan; a finite number"),
        (lambda m: m.sample(1, labels=torch.tensor(3.0, dtype=torch.bfloat16)), "there is no class 3.0"),
        (lambda m: m.class_labels(2.5), "count is 2.5"),
        (lambda m: m.class_labels("x"), "count is x"),
        (lambda m: m.class_labels(-2), "count is -2"),
        (lambda m: m.class_labels(10**8), "a whole number from 1 to 1,000,000"),
    ],
)
def test_a_mistake_is_one_sentence(model: ddpm.Model, call: Callable[[ddpm.Model], object], reason: str):
    with pytest.raises(DdpmError, match=reason) as error:
        call(model)
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).endswith(".")


def test_a_model_without_classes_says_so(unconditional: ddpm.Model):
    with pytest.raises(DdpmError, match="knows no class labels"):
        unconditional.sample(1, labels=3)
    with pytest.raises(DdpmError, match="knows no class labels"):
        unconditional.classify(ZERO)
    assert unconditional.classes == 0
    assert unconditional.class_names == ()
    assert unconditional.class_labels(3) is None
    assert unconditional.sample(2, **FAST).shape == (2, 1, 28, 28)


class Bomb:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


def test_no_file_is_executed_and_a_damaged_one_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
):
    monkeypatch.chdir(tmp_path)
    shipped = (root / "ddpm/pretrained/mnist.safetensors").read_bytes()
    torch.save({"model": Bomb()}, tmp_path / "pickle.pt")
    flipped = bytearray(shipped)
    flipped[-1000] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(flipped)
    (tmp_path / "half.safetensors").write_bytes(shipped[: len(shipped) // 2])
    (tmp_path / "text.safetensors").write_text("no weights")
    for name in ("pickle.pt", "flipped.safetensors", "half.safetensors", "text.safetensors"):
        with pytest.raises(DamagedFile, match=name) as error:
            ddpm.load(name)
        assert len(str(error.value).splitlines()) == 1
    assert not Path("exploded").exists()
    with pytest.raises(MissingFile, match=r"nothing\.safetensors is missing"):
        ddpm.load("nothing.safetensors")


def test_wrong_settings_and_devices_are_one_sentence(tmp_path: Path):
    for text, reason in (
        (":", "no parameter file"),
        ("generate: {steps: 0}", "generate: "),
        ("seed: 1", "no parameter"),
    ):
        path = tmp_path / "params.yaml"
        path.write_text(text)
        with pytest.raises(DdpmError, match=reason):
            ddpm.load(settings=path)
    with pytest.raises(DdpmError, match="is missing"):
        ddpm.load(settings=tmp_path / "none.yaml")
    for settings, reason in (("", "cannot be read"), (tmp_path, "cannot be read"), ({"steps": 2}, "of the type dict")):
        with pytest.raises(DdpmError, match=f"{reason}.*params.yaml"):
            ddpm.load(settings=settings)
    with pytest.raises(DdpmError, match="checkpoint is of the type NoneType"):
        ddpm.load(None)
    for device in ("cuda:99", "toaster", "meta", None):
        with pytest.raises(DdpmError, match="choose auto"):
            ddpm.load(device=device)


def test_the_settings_of_a_call_are_keys_of_the_section_generate():
    assert set(Settings.__annotations__) <= set(GenerateConfig.model_fields)


def test_two_models_that_sample_otherwise_are_told_apart(model: ddpm.Model, some: ImageSet):
    other = replace(model, generator=model.generator.changed(guidance=3.0))
    found = differences(model, other, some.images[:2], some.labels[:2])
    assert found["sample"] > 1 > found["denoise"] == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_call_gives_on_a_cuda_device_what_it_gives_on_the_cpu(
    model: ddpm.Model, some: ImageSet, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # else convolutions round to 10 bits
    there = ddpm.load(device="cuda")
    assert there.device.type == "cuda"
    found = differences(model, there, some.images[:2], some.labels[:2])
    assert max(found.values()) < 1, found
    tensor = there.sample(1, as_="tensor", **FAST)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.device.type == "cuda"
    assert there.denoise(normalize(torch.from_numpy(some.images[:2])), 300).device.type == "cuda"
