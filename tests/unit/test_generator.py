import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from ddpm.config import Config
from ddpm.data.image_set import ImageSpec, denormalize
from ddpm.diffusion.denoiser import Denoiser
from ddpm.diffusion.guidance import UNGUIDED, Guidance
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.objective import Predict
from ddpm.diffusion.process import TARGETS
from ddpm.diffusion.schedule import Schedule, cosine
from ddpm.models.build import build_network
from ddpm.models.checkpoint import Checkpoint
from ddpm.models.conditioning import Conditioning
from ddpm.models.networks import NULL_LABEL
from ddpm.sampling.batches import sample_batches, sample_replicates, write_images
from ddpm.sampling.generator import Generator, make_generator
from ddpm.sampling.labels import balanced_labels
from ddpm.sampling.trajectory import MAX_FRAMES
from ddpm.utils.errors import DdpmError
from ddpm.utils.images import read_pngs
from ddpm.utils.runtime import Runtime

SAMPLERS = [{"generate.sampler": "ddpm"}, {"generate.sampler": "ddpm", "generate.variance": "large"}]
SAMPLERS += [{"generate.sampler": "ddim", "generate.eta": eta} for eta in (0.0, 1.0)]
SAMPLERS += [{"generate.sampler": "dpmpp_2m", "generate.eta": eta} for eta in (0.0, 1.0)]
SAMPLERS += [{"generate.sampler": "dpmpp_2s", "generate.eta": eta} for eta in (0.0, 1.0)]
SAMPLERS += [{"generate.sampler": "unipc"}, {"generate.sampler": "flow_heun"}]
SAMPLERS += [{"generate.sampler": "heun"}, {"generate.sampler": "dpmpp_2m", "generate.spacing": "log_snr"}]
NAMES = ["ddpm small", "ddpm large", "ddim 0", "ddim 1", "dpmpp 0", "dpmpp 1", "2S 0", "2S 1", "unipc", "flow_heun"]
NAMES += ["heun", "log-SNR"]
SPEC = ImageSpec(28, 1, 10)


def write(
    generator: Generator, folder: Path, batch_size: int | str, workers: int, kept: Path | None = None
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """`write_images`, its batches kept nowhere for long unless a folder is given."""
    with TemporaryDirectory() as scratch:
        return write_images(generator, folder, workers, batch_size, kept or Path(scratch))


def pixelwise(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """A prediction of x_0 that treats every pixel alone: its result has the same bits in every batch."""
    return torch.tanh(x_t * (1 + 0.01 * t[:, None, None, None]))


@pytest.fixture
def generator(configure: Callable[..., Config]) -> Callable[..., Generator]:
    """Of images of 8 × 8 pixels by a simple prediction of x_0, with some settings changed."""

    def make(
        changes: dict[str, object] | None = None, predict: Predict = pixelwise, timesteps: int = 100, channels: int = 1
    ) -> Generator:
        small = {
            "generate.autoguidance": 1.0,
            "generate.num_images": 23,
            "generate.trajectories": 4,
            "generate.steps": 6,
            "generate.output_size": 8,
        }
        config = configure(small, changes or {}).generate
        schedule = Schedule(cosine(timesteps), torch.arange(timesteps))
        denoiser = Denoiser(predict, TARGETS["x_0"], schedule, clip=False)
        return Generator(
            denoiser, Conditioning.by_class([]), config, ImageSpec(8, channels, 0), 3407, torch.device("cpu")
        )

    return make


def class_generator(config: Config, cpu: Runtime) -> Generator:
    """Of images of 28 × 28 pixels and ten classes by a U-Net, guided by another, all of whose weights are in use."""
    torch.manual_seed(0)
    groups = {}
    for group in ("ema", "guide"):
        groups[group] = dict(build_network(config.model, SPEC).requires_grad_(False).named_parameters())
        for weight in groups[group].values():
            if not weight.any():
                weight.normal_(std=0.05)
    checkpoint = Checkpoint(config.model, config.diffusion, SPEC, Conditioning.by_class([0.1] * 10), {}, groups)
    return make_generator(checkpoint, "the checkpoint", config.generate, config.seed, cpu)


@pytest.fixture(scope="module")
def network_generator(tiny: Callable[..., Config], cpu: Runtime) -> Callable[..., Generator]:
    return lambda changes: class_generator(tiny({"generate.steps": 8}, changes), cpu)


@pytest.mark.parametrize("changes", SAMPLERS, ids=NAMES)
def test_an_image_does_not_depend_on_the_batch_it_is_sampled_in(
    network_generator: Callable[..., Generator], changes: dict[str, object]
):
    generator = network_generator(changes)
    together = denormalize(generator.sample(range(1, 501))).astype(int)
    assert together.std() > 20
    batches = {1: [[1], [8], [500]], 7: [range(1, 8), range(494, 501)], 64: [range(1, 65), range(200, 264)]}
    # As two devices would share them.
    batches[250] = [range(1, 501, 2), range(2, 501, 2)]
    for parts in batches.values():
        difference = np.concatenate(
            [np.abs(denormalize(generator.sample(numbers)) - together[np.array(numbers) - 1]) for numbers in parts]
        )
        assert difference.max() <= 1
        assert (difference == 0).mean() >= 0.999


class Killed(BaseException):
    """The end of the process, as far as the sampling can tell."""


@pytest.mark.parametrize("calls", [1, 7, 12, 30])
def test_sampling_resumes_after_the_last_finished_batch(
    generator: Callable[..., Generator], tmp_path: Path, calls: int
):
    made = []

    def predict(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        made.append(t)
        if len(made) == calls:
            raise Killed
        return pixelwise(x_t, t, labels)

    for name in ("whole", "killed", "kept"):
        (tmp_path / name).mkdir()
    _, expected = write(generator(), tmp_path / "whole", 5, 2)
    with pytest.raises(Killed):
        write(generator(predict=predict), tmp_path / "killed", 5, 2, tmp_path / "kept")
    cost, trajectory = write(generator(predict=predict), tmp_path / "killed", 5, 2, tmp_path / "kept")
    # Five batches of six steps; those of the batch that was cut short are made again.
    assert len(made) == 30 + (calls - 1) % 6 + 1
    assert cost["generate_seconds"] > 0
    assert {name: array.tobytes() for name, array in trajectory.items()} == {
        name: array.tobytes() for name, array in expected.items()
    }
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


def test_batches_that_are_all_there_are_not_sampled_again(generator: Callable[..., Generator], tmp_path: Path):
    def refuse(*_: object) -> Tensor:
        raise AssertionError("sampled again")

    for name in ("first", "second", "kept"):
        (tmp_path / name).mkdir()
    write(generator(), tmp_path / "first", 5, 2, tmp_path / "kept")
    write(generator(predict=refuse), tmp_path / "second", 8, 2, tmp_path / "kept")
    assert np.array_equal(read_pngs(tmp_path / "first", 1), read_pngs(tmp_path / "second", 1))


def test_a_damaged_batch_names_the_folder_to_delete(generator: Callable[..., Generator], tmp_path: Path):
    write(generator(), tmp_path, 5, 2, tmp_path / "kept")
    (tmp_path / "kept" / "batch_00000006.npz").write_bytes(b"half")
    with pytest.raises(DdpmError, match=r"batch_00000006\.npz is damaged .*delete the folder .*kept to start"):
        write(generator(), tmp_path, 5, 2, tmp_path / "kept")


def test_replicates_and_seeds_and_numbers_have_images_of_their_own(generator: Callable[..., Generator]):
    first = generator()
    others = first.changed(replicate=1), replace(first, seed=1)
    images = torch.cat([each.sample([1, 2]) for each in (first, *others)])
    assert len(images.flatten(1).unique(dim=0)) == 6
    assert torch.equal(first.sample([1, 2]), images[:2])


def test_replicates_are_the_images_of_the_next_replicates(generator: Callable[..., Generator], tmp_path: Path):
    ours = generator({"generate.replicate": 4})
    found = sample_replicates(ours, 2, 10, tmp_path)
    assert sorted(found) == ["replicate_5", "replicate_6"]
    for replicate in (5, 6):
        expected = denormalize(ours.changed(replicate=replicate).sample(range(1, 24)))
        assert np.array_equal(found[f"replicate_{replicate}"], expected)


def test_clipping_keeps_every_prediction_in_the_range_of_images(network_generator: Callable[..., Generator]):
    x_t, labels = torch.randn(2, 1, 28, 28) * 3, torch.tensor([3, 4])
    clipped, free = (
        network_generator({}).changed(clip=clip).guided.conditioned(labels)(x_t, 90) for clip in (True, False)
    )
    assert free.abs().max() > 1
    assert torch.equal(clipped, free.clamp(-1, 1))


@pytest.mark.parametrize("batch_size", [1, 5, 23, 100, "auto"])
def test_all_images_are_written_whatever_the_batch_size(
    generator: Callable[..., Generator], tmp_path: Path, batch_size: int | str
):
    cost, _ = write(generator(), tmp_path, batch_size, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number:05d}.png" for number in range(1, 24)]
    assert np.array_equal(read_pngs(tmp_path, 1), denormalize(generator().sample(range(1, 24))))
    assert cost["generate_batch_size"] == (min(batch_size, 23) if isinstance(batch_size, int) else 23)


def test_colour_images_are_written_in_colour(generator: Callable[..., Generator], tmp_path: Path):
    ours = generator(channels=3)
    _, trajectory = write(ours, tmp_path, 10, 1)
    written = read_pngs(tmp_path, 1)
    assert written.shape == (23, 3, 8, 8)
    assert np.array_equal(written, denormalize(ours.sample(range(1, 24))))
    assert trajectory["x_t"].shape == (7, 4, 3, 8, 8)


def test_more_images_begin_with_the_same_ones(generator: Callable[..., Generator], tmp_path: Path):
    for count in (9, 14):
        (tmp_path / str(count)).mkdir()
        write(generator({"generate.num_images": count}), tmp_path / str(count), 4, 1)
    for number in range(1, 10):
        name = f"{number:05d}.png"
        assert (tmp_path / "9" / name).read_bytes() == (tmp_path / "14" / name).read_bytes()


def test_output_size_is_that_of_the_files(generator: Callable[..., Generator], tmp_path: Path):
    write(generator({"generate.output_size": 20}), tmp_path, 10, 1)
    assert read_pngs(tmp_path, 1).shape == (23, 1, 20, 20)


@pytest.mark.parametrize("fits", [1, 3, 8])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["allocating", "recording a graph", "a convolution", "cuBLAS"],
)
def test_a_batch_that_does_not_fit_is_halved_and_the_images_stay_the_same(
    generator: Callable[..., Generator], tmp_path: Path, fits: int, error: Exception
):
    sizes = []

    def predict(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        # The first steps still fit, as when another program takes memory meanwhile.
        if len(x_t) > fits and t[0] < 50:
            raise error
        sizes.append(len(x_t))
        return pixelwise(x_t, t, labels)

    cost, trajectory = write(generator(predict=predict), tmp_path, 16, 2)
    _, undisturbed = write(generator(), tmp_path, 16, 2)
    assert {name: array.tobytes() for name, array in trajectory.items()} == {
        name: array.tobytes() for name, array in undisturbed.items()
    }
    assert np.array_equal(read_pngs(tmp_path, 1), denormalize(generator().sample(range(1, 24))))
    assert len(list(tmp_path.iterdir())) == 23
    assert cost["generate_batch_size"] <= fits < 2 * cost["generate_batch_size"]
    assert max(sizes) == 16


class SmallPool:
    """In place of a `Pool` of two processes in which batches of four fit: some of those that do not are under way."""

    processes = 2

    def __init__(self, generator: Generator) -> None:
        self.generator, self.asked = generator, list[tuple[int, int]]()

    def submit(self, task: Callable[..., None], config: object, first: int, size: int, *rest: object) -> Future[None]:
        self.asked.append((first, size))
        future: Future[None] = Future()
        if size <= 4:
            future.set_result(task(self.generator, config, first, size, *rest))
        elif first == 1:
            future.set_exception(torch.OutOfMemoryError("CUDA out of memory"))
        return future


def test_a_batch_that_does_not_fit_in_a_pool_is_halved_and_shared_again(
    generator: Callable[..., Generator], tmp_path: Path
):
    (tmp_path / "images").mkdir()
    pool = SmallPool(ours := generator())
    cost, _ = write_images(ours, tmp_path / "images", 2, 8, tmp_path / "kept", pool)  # type: ignore[arg-type]
    assert pool.asked == [(1, 8), (9, 8), (17, 8), *((first, 4) for first in range(1, 24, 4))]
    assert cost["generate_batch_size"] == 4
    assert np.array_equal(read_pngs(tmp_path / "images", 1), denormalize(ours.sample(range(1, 24))))


def test_what_processes_sampled_together_counts_as_that_when_one_goes_on_alone(
    generator: Callable[..., Generator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = itertools.count(0, 10)
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    ours, kept = generator(), tmp_path / "kept"
    pool: Any = SmallPool(ours)
    alone = [batch.seconds for batch in sample_batches(ours, 4, kept / "alone")]
    together = [batch.seconds for batch in sample_batches(ours, 4, kept / "together", pool=pool)]
    again = [batch.seconds for batch in sample_batches(ours, 4, kept / "together")]
    assert together == again == [seconds / 2 for seconds in alone]


def test_a_single_image_that_does_not_fit_is_an_error(generator: Callable[..., Generator], tmp_path: Path):
    def predict(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        write(generator(predict=predict), tmp_path, 16, 2)


def test_a_png_that_cannot_be_written_ends_the_run(generator: Callable[..., Generator], tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        write(generator(), tmp_path / "nowhere", 5, 2)


@pytest.mark.parametrize("changes", SAMPLERS, ids=NAMES)
def test_the_trajectory_leads_from_noise_to_the_generated_images(
    generator: Callable[..., Generator], tmp_path: Path, changes: dict[str, object]
):
    ours = generator(changes)
    _, trajectory = write(ours, tmp_path, 3, 1)
    assert trajectory["t"].tolist() == [*ours.steps.times.flip(0).tolist(), -1]
    assert trajectory["x_t"].shape == trajectory["x_0"].shape == (7, 4, 1, 8, 8)
    assert trajectory["x_t"].dtype == trajectory["x_0"].dtype == np.uint8
    noise = ImageNoise(3407, 0, range(1, 5), (1, 8, 8), torch.device("cpu"))()
    assert np.array_equal(trajectory["x_t"][0], denormalize(noise))
    assert np.array_equal(trajectory["x_0"][0], denormalize(pixelwise(noise, torch.tensor([99]), None)))
    assert np.array_equal(trajectory["x_t"][-1], trajectory["x_0"][-1])
    assert np.array_equal(trajectory["x_t"][-1], read_pngs(tmp_path, 1)[:4])


def test_a_long_trajectory_is_shown_at_evenly_spread_moments(generator: Callable[..., Generator], tmp_path: Path):
    _, trajectory = write(generator({"generate.steps": 1000}, timesteps=1000), tmp_path, 23, 1)
    assert len(trajectory["t"]) == len(trajectory["x_t"]) == MAX_FRAMES
    assert (trajectory["t"][0], trajectory["t"][-1]) == (999, -1)
    assert np.abs(np.diff(trajectory["t"]) + 10).max() <= 1


def test_more_steps_than_the_checkpoint_has_are_an_error(generator: Callable[..., Generator]):
    with pytest.raises(DdpmError, match=r"generate\.steps=101 exceeds the 100 timesteps of the checkpoint"):
        generator({"generate.steps": 101}).sample([1])


def test_labels_come_as_often_as_their_frequencies_in_any_run_of_numbers():
    frequencies = [0.1, 0.0, 0.6, 0.3]
    for first in (1, 500):
        counts = np.bincount(balanced_labels(range(first, first + 1000), frequencies), minlength=4)
        assert np.abs(counts - 1000 * np.array(frequencies)).max() <= 4
    assert balanced_labels([7], frequencies) == balanced_labels(range(1, 10), frequencies)[6]


def test_images_are_of_the_chosen_classes_alone(network_generator: Callable[..., Generator]):
    labels = network_generator({"generate.classes": [3, 8]}).labels(range(1, 101))
    assert labels is not None
    assert sorted(np.bincount(labels)[[3, 8]].tolist()) == pytest.approx([50, 50], abs=2)
    assert set(labels.tolist()) == {3, 8}


@pytest.mark.parametrize(("classes", "clusters"), [(10, 7), (10, 1), (0, 7), (0, 1)])
def test_the_table_of_labels_has_class_and_cluster_where_they_are_given(
    generator: Callable[..., Generator], classes: int, clusters: int
):
    given = Conditioning(classes, torch.full((max(1, classes), clusters), 1.0))
    ours = replace(generator({}), conditioning=given)
    columns, rows = ours.label_table(range(1, 31))
    labels = ours.labels(range(1, 31))
    if labels is None:
        assert (tuple(columns), rows) == (("image", "label"), [])
        return
    table = dict(zip(columns, np.array(rows).T, strict=True))
    assert list(table) == ["image", *["label"][:classes], *["cluster"][: clusters - 1]]
    assert table["image"].tolist() == list(range(1, 31))
    zero = np.zeros(30, np.int64)
    assert np.array_equal(table.get("label", zero) * clusters + table.get("cluster", zero), labels)


def test_a_number_is_the_name_of_a_class_first(network_generator: Callable[..., Generator]):
    ours = network_generator({"generate.classes": [2, "3", 1]})
    numbered, padded = (
        replace(ours, spec=replace(ours.spec, class_names=tuple(f"{number:0{width}}" for number in range(1, 11))))
        for width in (1, 2)
    )
    for generator, expected in ((ours, {1, 2, 3}), (numbered, {0, 1, 2}), (padded, {0, 1, 2})):
        assert set(generator.class_labels(range(1, 101)).tolist()) == expected


def test_classes_that_the_network_does_not_know_are_an_error(generator: Callable[..., Generator]):
    ours = generator({"generate.classes": [3]})
    with pytest.raises(DdpmError, match=r"generate\.classes=\[3\], but this network knows no class labels"):
        ours.sample([1])
    with pytest.raises(DdpmError, match=r"generate\.classes=\[3\]: the network knows the class labels 0 to 1"):
        replace(ours, conditioning=Conditioning.by_class([0.5, 0.5])).sample([1])


def test_labels_decide_the_image_and_guidance_goes_along_the_difference(network_generator: Callable[..., Generator]):
    x_t = torch.randn(4, 1, 28, 28)
    labels, null = torch.tensor([0, 1, 2, 3]), torch.full((4,), NULL_LABEL)

    def predict(guidance: float, labels: Tensor) -> Tensor:
        everywhere = {"generate.guidance_interval": [0.0, 1e9]}
        alone = {"generate.clip": False, "generate.autoguidance": 1.0, "generate.guidance_rescale": 0.0}
        generator = network_generator({"generate.guidance": guidance} | alone | everywhere)
        return generator.guided.conditioned(labels)(x_t, 50)

    of_label, of_null = predict(1.0, labels), predict(1.0, null)
    assert (of_label - of_null).abs().max() > 1e-3
    for guidance in (0.0, 0.5, 2.0):
        expected = of_null + guidance * (of_label - of_null)
        torch.testing.assert_close(predict(guidance, labels), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", SAMPLERS, ids=NAMES)
@pytest.mark.parametrize("guided", [(), ("guidance",), ("autoguidance",), ("guidance", "autoguidance")])
def test_nfe_is_the_number_of_evaluations_that_the_networks_make(
    tiny: Callable[..., Config], cpu: Runtime, changes: dict[str, object], guided: Sequence[str]
):
    scales = {f"generate.{key}": 2.0 if key in guided else 1.0 for key in ("guidance", "autoguidance")}
    intervals = {"generate.guidance_interval": [1.0, 5.0], "generate.autoguidance_interval": [0.3, 5.0]}
    config = tiny(changes, {"generate.steps": 7}, scales, intervals)
    generator = class_generator(config, cpu)
    calls: list[Tensor] = []

    def counted(predict: Predict) -> Predict:
        return lambda x_t, t, labels: calls.append(t) or predict(x_t, t, labels)  # type: ignore[func-returns-value]

    denoiser = generator.denoiser
    assert denoiser.guide
    denoiser = replace(denoiser, predict=counted(denoiser.predict), guide=counted(denoiser.guide))
    generator = replace(generator, denoiser=denoiser)
    generator.sample([1, 2])
    once = 13 if config.generate.sampler in ("heun", "flow_heun") else 7
    assert len(calls) == generator.nfe
    # Each of the two is active within its interval alone, so at some of the steps.
    assert once + len(guided) <= len(calls) < once * (1 + len(guided)) or (len(calls) == once and not guided)


def test_autoguidance_goes_away_from_the_guide(network_generator: Callable[..., Generator]):
    x_t, labels = torch.randn(4, 1, 28, 28), torch.tensor([0, 1, 2, 3])

    def predict(autoguidance: float, guidance: float = 1.0) -> Tensor:
        everywhere = {f"generate.{key}_interval": [0.0, 1e9] for key in ("guidance", "autoguidance")}
        scales = {"generate.guidance": guidance, "generate.autoguidance": autoguidance}
        plain = {"generate.clip": False, "generate.guidance_rescale": 0.0}
        return network_generator(everywhere | scales | plain).guided.conditioned(labels)(x_t, 50)

    ours, of_guide = predict(1.0), predict(0.0)
    assert (ours - of_guide).abs().max() > 1e-3
    torch.testing.assert_close(predict(2.5), of_guide + 2.5 * (ours - of_guide), rtol=1e-4, atol=1e-5)
    both = predict(1.5, 1.2) - ours
    torch.testing.assert_close(both, predict(1.5) - ours + predict(1.0, 1.2) - ours, rtol=1e-3, atol=1e-4)


def test_autoguidance_without_a_guide_is_an_error(generator: Callable[..., Generator]):
    with pytest.raises(DdpmError, match=r"generate\.autoguidance=1\.5 needs a guide.*train\.guide_fraction"):
        generator({"generate.autoguidance": 1.5}).sample([1])


def test_a_learned_variance_needs_a_network_that_predicts_it(network_generator: Callable[..., Generator]):
    plain = network_generator({})
    with pytest.raises(DdpmError, match=r"generate\.variance=learned, but this network predicts no variance"):
        plain.changed(variance="learned").sample([1])
    learned = network_generator({"model.learned_variance": True, "generate.variance": "learned"})
    images = learned.sample(range(1, 5))
    assert images.shape == (4, 1, 28, 28)
    assert not torch.allclose(images, learned.changed(variance="small").sample(range(1, 5)))


def test_a_sampling_run_with_self_conditioning_begins_without_x_0_and_gives_each_step_the_last_one(
    network_generator: Callable[..., Generator],
):
    generator, met = network_generator({"model.self_conditioning": True, "generate.guidance": 1.0}), []

    def watched(given: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        met.append(given[:, 1:])
        return predict(given, t, labels)

    predict, seen = generator.denoiser.predict, []
    generator = replace(generator, denoiser=replace(generator.denoiser, predict=watched))
    for _ in range(2):
        generator.sample(range(1, 5), lambda _, __, x_0: seen.append(x_0))
    assert len(met) == 16
    for run in (0, 8):
        assert not met[run].any()
        for step in range(1, 8):
            # `on_step` is called once more with the result.
            assert torch.equal(met[run + step], seen[run // 8 * 9 + step - 1])


def test_guidance_is_active_within_its_interval_of_noise_over_signal():
    alpha_bar = torch.tensor([0.9, 0.5, 0.2, 0.01], dtype=torch.float64)  # σ = 1/3, 1, 2, 9.95
    assert Guidance(1.5, (0.5, 2.5)).is_active(alpha_bar).tolist() == [False, True, True, False]
    assert Guidance(1.5).is_active(alpha_bar).tolist() == [True] * 4
    assert UNGUIDED.is_active(alpha_bar).tolist() == [False] * 4


def test_guided_sampling_compiles_once_for_network_and_guide_with_and_without_label(
    tiny: Callable[..., Config], cpu: Runtime, monkeypatch: pytest.MonkeyPatch
):
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(Runtime, "compile", lambda _, function: torch.compile(function, backend=counter, dynamic=False))
    torch._dynamo.reset()
    guided = {"generate.guidance": 1.5, "generate.autoguidance": 1.3, "generate.steps": 6}
    class_generator(tiny(guided), cpu).sample(range(1, 5))
    assert counter.frame_count == 1
