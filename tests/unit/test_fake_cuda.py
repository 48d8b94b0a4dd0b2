"""The code as it runs on a CUDA device, without one: tensors that have a device and a shape, but no values.

Such a tensor takes part in an operation only with others of its device, and raises where its value is asked for. Once
the setting up is over, so does a copy to the device that would wait for it. A training step or a sampler that passes
neither mixes devices nor waits for the GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpm.config import Config
from ddpm.data.image_set import ImageSet, ImageSpec
from ddpm.diffusion.denoiser import Denoiser
from ddpm.diffusion.guidance import Guidance
from ddpm.diffusion.likelihood import Likelihood
from ddpm.diffusion.noise import ImageNoise, normal_table
from ddpm.diffusion.process import TARGETS
from ddpm.diffusion.samplers import SAMPLERS
from ddpm.diffusion.schedule import build_schedule, even_times, respace
from ddpm.evaluation.features.classifier import ClassifierExtractor, classifier_of, load_classifier
from ddpm.evaluation.features.inception import InceptionExtractor
from ddpm.evaluation.train_classifier import train as train_classifier
from ddpm.models.build import build_network
from ddpm.training.loop import train
from ddpm.training.ranks import Ranks
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe
from ddpm.utils.runtime import Runtime

CUDA = torch.device("cuda", 0)


# Copies, and what copies the places that it is given.
WAITING = ("_to_copy", "copy_", "index", "index_put_")


class FakeCuda(TorchDispatchMode):
    """What touches the CUDA device has no values; what stays on the CPU is computed.

    hurries: whether a copy from the CPU to the device must not wait for it.
    """

    hurries = False

    def __init__(self) -> None:
        super().__init__()
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        given = tree_leaves((args, kwargs))
        if any(isinstance(part, FakeTensor) or (isinstance(part, torch.device) and part == CUDA) for part in given):
            if self.hurries and func._opname in WAITING and not (kwargs or {}).get("non_blocking", args[-1] is True):
                assert all(isinstance(part, FakeTensor) for part in given if isinstance(part, torch.Tensor)), func
            with self._mode:
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def put_there(_: Runtime, network: torch.nn.Module) -> torch.nn.Module:
    """In place of `Runtime.prepare`: `Module.to` cannot replace weights by such tensors."""
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(weight.detach().to(CUDA)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(CUDA))
    return network


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    monkeypatch.setattr("torch.cuda._lazy_init", lambda: None)  # else it looks for a driver
    monkeypatch.setattr(Runtime, "prepare", put_there)
    normal_table.cache_clear()
    with FakeCuda() as mode:
        yield mode


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(CUDA, torch.bfloat16, compiled=False)


def test_a_value_on_the_device_cannot_be_asked_for(fake: FakeCuda):
    there = torch.ones(3, device=CUDA)
    with pytest.raises(DataDependentOutputException):
        there.sum().item()
    with pytest.raises(RuntimeError, match="device"):
        _ = there + torch.ones(3)


def test_a_copy_to_the_device_that_waits_for_it_is_found(fake: FakeCuda):
    here = torch.ones(3)
    there = here.to(CUDA)
    fake.hurries = True
    for hasty in (here.to(CUDA, non_blocking=True), there.clone(), there.double(), there * torch.tensor(2.0)):
        assert hasty.device == CUDA
    there.copy_(here, True)
    for waits in (lambda: here.to(CUDA), lambda: there.copy_(here), lambda: there[torch.arange(2)]):
        with pytest.raises(AssertionError, match="aten"):
            waits()


class Unwatched:
    """In place of `Monitor`, which waits for the device from time to time."""

    progress, first_step = nullcontext(), 0

    def __init__(self, fake: FakeCuda, state: Any, *_: object) -> None:  # noqa: ANN401
        self.state, self.steps, fake.hurries = state, 0, True

    def after_step(self, *_: object, **__: object) -> None:
        self.steps += 1

    def finish(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"state": self.state, "steps": self.steps}, {}


IDEAS = {
    "muon": {"train.optimizer": "muon"},
    "adamw": {"train.optimizer": "adamw"},
    "dit, learned variance, self-conditioning, offset noise, times by their losses": {
        "model.network": "dit",
        "model.learned_variance": True,
        "model.self_conditioning": True,
        "train.offset_noise": 0.1,
        "train.time_density": "loss_aware",
    },
}


@pytest.mark.parametrize("ideas", IDEAS.values(), ids=IDEAS.keys())
def test_training_steps_stay_on_the_device_and_never_wait_for_it(
    fake: FakeCuda,
    runtime: Runtime,
    digits: ImageSet,
    tiny: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ideas: dict[str, object],
):
    monkeypatch.setattr("ddpm.training.loop.Monitor", partial(Unwatched, fake))
    normal_table(CUDA)
    losses: list[torch.Tensor] = []
    # The backward pass itself takes a driver; its devices are those of the forward pass.
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: losses.append(loss))
    settings = {"model.attention": True, "model.clusters": 1, "train.shards": 2}
    config = tiny(settings | ideas | {"train.log_every": 10**6})
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    images = digits.take(np.arange(256))
    found, _ = train(recipe, images, images, runtime, RunFolder(tmp_path, tmp_path / "kept"), 1e9)
    assert 2 * found["steps"] == 2 * recipe.steps(256) == len(losses) > 4
    assert all(loss.device == CUDA and loss.requires_grad for loss in losses)
    assert all(weight.device == CUDA for weight in found["state"].network.parameters())
    assert all(average.device == CUDA for average in found["state"].ema.state_dict().values())


def test_ranks_on_cuda_devices_compile_side_by_side(
    fake: FakeCuda,
    runtime: Runtime,
    digits: ImageSet,
    tiny: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("ddpm.training.loop.Monitor", partial(Unwatched, fake))
    normal_table(CUDA)
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: None)
    monkeypatch.setattr(Runtime, "compile", lambda _, function: function)
    alone: list[bool] = []
    monkeypatch.setattr(Ranks, "first_alone", lambda _, *, wanted: nullcontext(alone.append(wanted)))
    config = tiny({"train.log_every": 10**6})
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    images, folder = digits.take(np.arange(256)), RunFolder(tmp_path, tmp_path / "kept")
    train(recipe, images, images, replace(runtime, compiled=True), folder, 1e9)
    assert alone == recipe.steps(256) * [False]


PLAIN: dict[str, Any] = {"clip": True}
GUIDED: dict[str, Any] = {
    "clip": "dynamic",
    "guidance": Guidance(2.0, (0.0, 1e9)),
    "autoguidance": Guidance(1.5, (0.0, 1e9)),
    "rescale": 0.7,
    "learned_variance": True,
    "self_conditioning": True,
}


@pytest.mark.parametrize("settings", [PLAIN, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_every_sampler_stays_on_the_device_and_never_waits_for_it(
    fake: FakeCuda, runtime: Runtime, tiny: Callable[..., Config], sampler: str, settings: dict[str, Any]
):
    ideas = {"model.learned_variance": True, "model.self_conditioning": True, "generate.variance": "learned"}
    config = tiny({"generate.sampler": sampler, "model.attention": True} | (ideas if settings is GUIDED else {}))
    networks = [runtime.predictor(runtime.prepare(build_network(config.model, ImageSpec(28, 1, 10)))) for _ in range(2)]
    schedule = build_schedule(config.diffusion)
    labels = torch.zeros(4, dtype=torch.int64, device=CUDA)
    denoiser = Denoiser(networks[0], TARGETS["v"], schedule, guide=networks[1], labels=labels, **settings).remembering()
    noise = ImageNoise(0, 0, range(1, 5), (1, 28, 28), CUDA)
    steps = respace(schedule, even_times(schedule, 4))
    x_T = noise()
    fake.hurries = True
    x_0 = SAMPLERS.build(sampler, config.generate)(denoiser, x_T, steps, noise)
    assert x_0.device == CUDA
    assert x_0.shape == (4, 1, 28, 28)


def test_the_likelihood_waits_for_the_device_only_at_the_end_of_a_batch(
    fake: FakeCuda, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
):
    schedule = build_schedule(SimpleNamespace(schedule="cosine", timesteps=20, beta_start=1e-4, beta_end=0.02))
    normal_table(CUDA)
    images = torch.zeros(8, 1, 28, 28, dtype=torch.uint8, device=CUDA)
    read: list[str] = []
    move = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: read.append("read") or move(tensor))
    labels = torch.zeros(8, dtype=torch.int64, device=CUDA)
    denoiser = Denoiser(lambda x_t, *_: torch.cat([x_t, x_t], 1), TARGETS["x_0"], schedule, True, learned_variance=True)
    likelihood = Likelihood(denoiser.conditioned, images, labels, schedule, 5, 0, learned=True)
    fake.hurries = True
    found = Likelihood.terms.__wrapped__(likelihood, 0)  # without inference mode, in which such tensors cannot be
    assert likelihood.batches == 1
    assert len(found) == likelihood.groups == 4
    assert len(read) == len(found[0]) == 7  # with the learned variance and the labels


def read_as_zeros(tensor: torch.Tensor) -> torch.Tensor:
    """In place of `Tensor.cpu`."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def test_features_are_computed_on_the_device_and_read_once_a_batch(
    fake: FakeCuda, runtime: Runtime, digits: ImageSet, monkeypatch: pytest.MonkeyPatch
):
    read: list[torch.device] = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: read.append(tensor.device) or read_as_zeros(tensor))
    network = runtime.prepare(load_classifier(torch.device("cpu")))
    extractor = ClassifierExtractor(network, digits.spec, "", CUDA)  # type: ignore[arg-type]
    # Without inference mode, in which such tensors cannot be; here and below.
    monkeypatch.setattr(ClassifierExtractor, "embed", ClassifierExtractor.embed.__wrapped__)
    found = extractor.features(digits.images[:2500], "test")
    assert found.values.shape == (2500, 128)
    assert found.probabilities.shape == (2500, 10)
    assert read == 4 * [CUDA]  # features and probabilities of two batches


def test_a_classifier_is_trained_on_the_device_and_rarely_waits_for_it(
    fake: FakeCuda, digits: ImageSet, monkeypatch: pytest.MonkeyPatch
):
    network, losses = classifier_of(digits.spec), []

    def moved(module: torch.nn.Module, where: object = None, **_: object) -> torch.nn.Module:
        if where == CUDA:
            put_there(SimpleNamespace(), module)  # type: ignore[arg-type]
            fake.hurries = True
        return module

    def backward(loss: torch.Tensor) -> None:
        losses.append(loss)
        for weight in network.parameters():
            weight.grad = torch.zeros_like(weight)

    monkeypatch.setattr(torch.nn.Module, "to", moved)
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    images, labels = digits.images[:900], digits.labels[:900]
    # In float32: without a driver, autocast would warn that it is off.
    train_classifier(lambda: network, images, labels, 1, epochs=2, device=CUDA, precision=torch.float32)
    assert len(losses) == 18  # every 20th would be read
    assert all(loss.device == CUDA and loss.requires_grad for loss in losses)


def test_inception_is_computed_on_the_device_and_read_once_a_batch(
    fake: FakeCuda, runtime: Runtime, digits: ImageSet, monkeypatch: pytest.MonkeyPatch
):
    read: list[torch.device] = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: read.append(tensor.device) or read_as_zeros(tensor))
    # pytorch-fid's network returns a list of maps.
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3, stride=2))
    extractor = object.__new__(InceptionExtractor)
    extractor.network, extractor.device = runtime.prepare(network), CUDA
    monkeypatch.setattr(extractor.network, "forward", lambda images: [network[0](images)])
    found = InceptionExtractor._embed.__wrapped__(extractor, digits.images[:20])
    assert found.shape == (20, 64)
    assert read == [CUDA]
