from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm import sampling
from ddpm.config import Config
from ddpm.diffusion.denoiser import EVERYWHERE, is_guided, make_denoiser
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.samplers import Denoise
from ddpm.diffusion.schedule import cosine_schedule
from ddpm.models.checkpoint import build_network, build_schedule
from ddpm.models.networks.unet import WITHHELD
from ddpm.sampling.generator import MAX_FRAMES, Source, evaluations, spread_labels
from ddpm.utils.errors import DdpmError
from ddpm.utils.images import read_pngs, to_uint8
from ddpm.utils.runtime import Runtime

SAMPLERS = [{"generate.sampler": "ddpm"}, {"generate.sampler": "ddpm", "generate.variance": "large"}]
SAMPLERS += [{"generate.sampler": "ddim", "generate.eta": eta} for eta in (0.0, 1.0)]
SAMPLERS += [{"generate.sampler": "dpmpp_2m", "generate.eta": eta} for eta in (0.0, 1.0)]
SAMPLERS += [{"generate.sampler": "heun"}, {"generate.sampler": "dpmpp_2m", "generate.spacing": "log_snr"}]
NAMES = ["ddpm small", "ddpm large", "ddim 0", "ddim 1", "dpmpp 0", "dpmpp 1", "heun", "log-SNR"]


def generate(
    source: Source, folder: Path, batch_size: int | str, workers: int, kept: Path | None = None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The function of that name, its batches kept nowhere for long unless a folder is given."""
    with TemporaryDirectory() as scratch:
        return sampling.generate(source, folder, batch_size, workers, kept or Path(scratch))


def pixelwise(x_t: Tensor, t: int) -> Tensor:
    """A denoiser that treats every pixel alone: its result has the same bits in every batch."""
    return torch.tanh(x_t * (1 + 0.01 * t))


@pytest.fixture
def source(configure: Callable[..., Config]) -> Callable[..., Source]:
    """Images of 8 × 8 pixels from a simple denoiser, with some settings changed."""

    def make(changes: dict[str, object] | None = None, denoise: Denoise = pixelwise) -> Source:
        small = {"generate.num_images": 23, "generate.trajectories": 4, "generate.steps": 6, "generate.output_size": 8}
        config = configure(small, changes or {}).generate
        return Source(lambda _: denoise, [], cosine_schedule(100), config, 8, 3407, torch.device("cpu"))

    return make


@pytest.fixture(scope="module")
def network_source(tiny: Callable[..., Config], cpu: Runtime) -> Callable[..., Source]:
    """Images of 28 × 28 pixels from a U-Net whose weights are all in use."""

    def make(changes: dict[str, object]) -> Source:
        config = tiny({"generate.steps": 8}, changes)
        torch.manual_seed(0)
        network = build_network(config.model).eval().requires_grad_(False)
        for weight in network.parameters():
            if not weight.any():
                weight.normal_(std=0.05)
        schedule = build_schedule(config.diffusion)
        generate = config.generate
        denoiser = partial(
            make_denoiser,
            network,
            config.diffusion,
            schedule,
            cpu,
            generate.clip,
            generate.guidance,
            generate.guidance_interval,
        )
        shares = [1 / config.model.classes] * config.model.classes
        return Source(denoiser, shares, schedule, generate, 28, config.seed, cpu.device)

    return make


@pytest.mark.parametrize("changes", SAMPLERS, ids=NAMES)
def test_an_image_does_not_depend_on_the_batch_it_is_drawn_in(
    network_source: Callable[..., Source], changes: dict[str, object]
):
    source = network_source(changes)
    together = to_uint8(source.draw(range(1, 1001))).astype(int)
    assert together.std() > 20
    batches = {1: [[1], [8], [1000]], 7: [range(1, 8), range(994, 1001)], 64: [range(1, 65), range(500, 564)]}
    # As two devices would share them.
    batches[500] = [range(1, 1001, 2), range(2, 1001, 2)]
    for parts in batches.values():
        for numbers in parts:
            difference = np.abs(to_uint8(source.draw(numbers)) - together[np.array(numbers) - 1])
            assert difference.max() <= 1
            assert (difference == 0).mean() >= 0.999


class Killed(BaseException):
    """The end of the process, as far as the drawing can tell."""


@pytest.mark.parametrize("calls", [1, 7, 12, 30])
def test_drawing_goes_on_after_the_last_finished_batch(source: Callable[..., Source], tmp_path: Path, calls: int):
    made = []

    def denoise(x_t: Tensor, t: int) -> Tensor:
        made.append(t)
        if len(made) == calls:
            raise Killed
        return pixelwise(x_t, t)

    for name in ("whole", "killed", "kept"):
        (tmp_path / name).mkdir()
    _, expected = generate(source(), tmp_path / "whole", 5, 2)
    with pytest.raises(Killed):
        generate(source(denoise=denoise), tmp_path / "killed", 5, 2, tmp_path / "kept")
    cost, way = generate(source(denoise=denoise), tmp_path / "killed", 5, 2, tmp_path / "kept")
    # Five batches of six steps; those of the batch that was cut short are made again.
    assert len(made) == 30 + (calls - 1) % 6 + 1
    assert cost["generate_seconds"] > 0
    assert {name: array.tobytes() for name, array in way.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


def test_batches_that_are_all_there_are_not_drawn_again(source: Callable[..., Source], tmp_path: Path):
    def refuse(*_: object) -> Tensor:
        raise AssertionError("drawn again")

    for name in ("first", "second", "kept"):
        (tmp_path / name).mkdir()
    generate(source(), tmp_path / "first", 5, 2, tmp_path / "kept")
    generate(source(denoise=refuse), tmp_path / "second", 8, 2, tmp_path / "kept")
    assert np.array_equal(read_pngs(tmp_path / "first", 1), read_pngs(tmp_path / "second", 1))


def test_a_damaged_batch_names_the_folder_to_delete(source: Callable[..., Source], tmp_path: Path):
    generate(source(), tmp_path, 5, 2, tmp_path / "kept")
    (tmp_path / "kept" / "batch_00000006.npz").write_bytes(b"half")
    with pytest.raises(DdpmError, match=r"batch_00000006\.npz is damaged .*delete the folder .*kept to begin"):
        generate(source(), tmp_path, 5, 2, tmp_path / "kept")


def test_draws_and_seeds_and_numbers_have_images_of_their_own(source: Callable[..., Source]):
    first = source()
    images = torch.cat(
        [first.draw([1, 2]), source({"generate.draw": 1}).draw([1, 2]), replace(first, seed=1).draw([1, 2])]
    )
    assert len(images.flatten(1).unique(dim=0)) == 6
    assert torch.equal(first.draw([1, 2]), images[:2])


def test_clipping_keeps_every_prediction_in_the_range_of_images(
    network_source: Callable[..., Source], tiny: Callable[..., Config]
):
    x_t = torch.randn(2, 1, 28, 28) * 3
    told = torch.tensor([3, 4])
    clipped, free = (network_source({"generate.clip": clip}).make_denoiser(told)(x_t, 90) for clip in (True, False))
    assert free.abs().max() > 1
    assert torch.equal(clipped, free.clamp(-1, 1))


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100, "auto"])
def test_all_images_are_written_whatever_the_batch_size(
    source: Callable[..., Source], tmp_path: Path, batch_size: int | str
):
    cost, _ = generate(source(), tmp_path, batch_size, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number:05d}.png" for number in range(1, 24)]
    expected = to_uint8(source().draw(range(1, 24)))
    assert np.array_equal(read_pngs(tmp_path, 1)[..., 0], expected)
    assert cost["generate_batch_size"] == (min(batch_size, 23) if isinstance(batch_size, int) else 23)


def test_more_images_begin_with_the_same_ones(source: Callable[..., Source], tmp_path: Path):
    for count in (9, 14):
        (tmp_path / str(count)).mkdir()
        generate(source({"generate.num_images": count}), tmp_path / str(count), 4, 1)
    for number in range(1, 10):
        name = f"{number:05d}.png"
        assert (tmp_path / "9" / name).read_bytes() == (tmp_path / "14" / name).read_bytes()


def test_output_size_is_that_of_the_files(source: Callable[..., Source], tmp_path: Path):
    generate(source({"generate.output_size": 20}), tmp_path, 10, 1)
    assert read_pngs(tmp_path, 1).shape == (23, 20, 20, 3)


@pytest.mark.parametrize("fits", [1, 3, 8])
def test_a_batch_that_does_not_fit_is_halved_and_the_images_stay_the_same(
    source: Callable[..., Source], tmp_path: Path, fits: int
):
    sizes = []

    def denoise(x_t: Tensor, t: int) -> Tensor:
        # The first steps still fit, as when another program takes memory meanwhile.
        if len(x_t) > fits and t < 50:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(x_t))
        return pixelwise(x_t, t)

    cost, way = generate(source(denoise=denoise), tmp_path, 16, 2)
    _, undisturbed = generate(source(), tmp_path, 16, 2)
    assert {name: array.tobytes() for name, array in way.items()} == {
        name: array.tobytes() for name, array in undisturbed.items()
    }
    assert np.array_equal(read_pngs(tmp_path, 1)[..., 0], to_uint8(source().draw(range(1, 24))))
    assert len(list(tmp_path.iterdir())) == 23
    assert cost["generate_batch_size"] <= fits < 2 * cost["generate_batch_size"]
    assert max(sizes) == 16


def test_a_single_image_that_does_not_fit_is_an_error(source: Callable[..., Source], tmp_path: Path):
    def denoise(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        generate(source(denoise=denoise), tmp_path, 16, 2)


def test_a_png_that_cannot_be_written_ends_the_run(source: Callable[..., Source], tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        generate(source(), tmp_path / "nowhere", 5, 2)


@pytest.mark.parametrize("changes", SAMPLERS, ids=NAMES)
def test_the_way_leads_from_noise_to_the_generated_images(
    source: Callable[..., Source], tmp_path: Path, changes: dict[str, object]
):
    drawn = source(changes)
    _, way = generate(drawn, tmp_path, 3, 1)
    assert way["t"].tolist() == [*drawn.steps.times.flip(0).tolist(), -1]
    assert way["x_t"].shape == way["x_0"].shape == (7, 4, 8, 8)
    assert way["x_t"].dtype == way["x_0"].dtype == np.uint8
    noise = ImageNoise(3407, 0, range(1, 5), (1, 8, 8), torch.device("cpu"))()
    assert np.array_equal(way["x_t"][0], to_uint8(noise))
    assert np.array_equal(way["x_0"][0], to_uint8(pixelwise(noise, 99)))
    assert np.array_equal(way["x_t"][-1], way["x_0"][-1])
    assert np.array_equal(way["x_t"][-1], read_pngs(tmp_path, 1)[:4, ..., 0])


def test_a_long_way_is_shown_at_evenly_spread_moments(source: Callable[..., Source], tmp_path: Path):
    long = replace(source({"generate.steps": 1000}), schedule=cosine_schedule(1000))
    _, way = generate(long, tmp_path, 23, 1)
    assert len(way["t"]) == len(way["x_t"]) == MAX_FRAMES
    assert (way["t"][0], way["t"][-1]) == (999, -1)
    assert np.abs(np.diff(way["t"]) + 10).max() <= 1


def test_labels_come_as_often_as_their_shares_in_any_run_of_numbers():
    shares = [0.1, 0.0, 0.6, 0.3]
    for first in (1, 500):
        counts = np.bincount(spread_labels(range(first, first + 1000), shares), minlength=4)
        assert np.abs(counts - 1000 * np.array(shares)).max() <= 4
    assert spread_labels([7], shares) == spread_labels(range(1, 10), shares)[6]


def test_only_the_digits_asked_for_are_drawn(network_source: Callable[..., Source]):
    labels = network_source({"generate.digits": [3, 8]}).labels(range(1, 101))
    assert labels is not None
    assert sorted(np.bincount(labels)[[3, 8]].tolist()) == pytest.approx([50, 50], abs=2)
    assert set(labels.tolist()) == {3, 8}


def test_digits_that_the_network_cannot_draw_are_an_error(source: Callable[..., Source]):
    with pytest.raises(DdpmError, match=r"generate\.digits=\[3\].*trained without labels"):
        source({"generate.digits": [3]}).labels([1])
    with pytest.raises(DdpmError, match=r"labels 0 to 1"):
        replace(source({"generate.digits": [3]}), class_shares=[0.5, 0.5]).labels([1])


def test_labels_decide_the_image_and_guidance_goes_along_the_difference(network_source: Callable[..., Source]):
    x_t = torch.randn(4, 1, 28, 28)
    told, withheld = torch.tensor([0, 1, 2, 3]), torch.full((4,), WITHHELD)

    def predict(guidance: float, labels: Tensor) -> Tensor:
        everywhere = {"generate.guidance_interval": [0.0, 1e9]}
        source = network_source({"generate.clip": False, "generate.guidance": guidance} | everywhere)
        return source.make_denoiser(labels)(x_t, 50)

    told_alone, free = predict(1.0, told), predict(1.0, withheld)
    assert (told_alone - free).abs().max() > 1e-3
    for guidance in (0.0, 0.5, 2.0):
        expected = free + guidance * (told_alone - free)
        torch.testing.assert_close(predict(guidance, told), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", SAMPLERS, ids=NAMES)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_evaluations_are_those_the_network_makes(
    tiny: Callable[..., Config], cpu: Runtime, changes: dict[str, object], guidance: float
):
    config = tiny(changes, {"generate.steps": 7, "generate.guidance": guidance})
    calls = []
    network = build_network(config.model).eval()
    network.register_forward_hook(lambda *_: calls.append(1))
    schedule = build_schedule(config.diffusion)
    interval = config.generate.guidance_interval
    denoiser = partial(make_denoiser, network, config.diffusion, schedule, cpu, True, guidance, interval)
    Source(denoiser, [0.1] * 10, schedule, config.generate, 28, 1, cpu.device).draw([1, 2])
    once = 13 if config.generate.sampler == "heun" else 7
    assert len(calls) == evaluations(config.generate, schedule, 10)
    assert once < len(calls) < 2 * once if guidance != 1.0 else len(calls) == once


def test_guidance_stays_within_its_interval_of_noise_over_signal():
    alpha_bar = torch.tensor([0.9, 0.5, 0.2, 0.01], dtype=torch.float64)  # σ = 1/3, 1, 2, 9.95
    assert is_guided(alpha_bar, 1.5, (0.5, 2.5)).tolist() == [False, True, True, False]
    assert is_guided(alpha_bar, 1.5, EVERYWHERE).tolist() == [True] * 4
    assert is_guided(alpha_bar, 1.0, EVERYWHERE).tolist() == [False] * 4
