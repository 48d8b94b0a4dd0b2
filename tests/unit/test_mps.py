"""The device `mps`, an Apple GPU, as far as a machine without one can show it.

In its place stands torch's device `meta`, which knows shapes, types and devices of tensors but no numbers. So a test
fails where tensors of two devices meet, or where one there is of float64, which an Apple GPU does not have.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm.config import Config
from ddpm.data.image_set import ImageSet
from ddpm.diffusion.editing import slerp
from ddpm.diffusion.likelihood import Likelihood, bits_per_dimension, log_likelihood_bound
from ddpm.diffusion.noise import normal_table
from ddpm.diffusion.samplers import SAMPLERS
from ddpm.diffusion.schedule import SPACINGS, build_schedule, respace
from ddpm.evaluation.features.classifier import MnistExtractor
from ddpm.models.checkpoint import load_checkpoint
from ddpm.sampling.batches import write_images
from ddpm.sampling.generator import make_denoiser, make_generator
from ddpm.training.loop import train
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe
from ddpm.utils.errors import DdpmError
from ddpm.utils.runtime import Runtime, choose_runtime, peak_memory_bytes, process_count

MPS, META = torch.device("mps"), torch.device("meta")
SAMPLING = {"generate.num_images": 6, "generate.trajectories": 2, "generate.steps": 3}
READS = {Tensor.cpu, Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__float__, Tensor.__int__}


class Refusing(TorchDispatchMode):
    """Refuses float64, in backward passes too."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        found = function(*args, **kwargs or {})
        for tensor in found if isinstance(found, tuple | list) else [found]:
            assert not (isinstance(tensor, Tensor) and tensor.is_meta and tensor.dtype == torch.float64), function
        return found


class Replacing(TorchFunctionMode):
    """Makes on `meta` what is asked for on `mps`; a tensor that is read holds zeros."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        first = args[0] if args else None
        reads = function in READS or (function is Tensor.to and args[1:] == (torch.device("cpu"),))
        if reads and isinstance(first, Tensor) and first.is_meta:
            return function(torch.zeros(first.shape, dtype=first.dtype), *args[1:], **kwargs or {})
        args = tuple(META if isinstance(value, torch.device) and value == MPS else value for value in args)
        kwargs = {
            key: META if isinstance(value, torch.device) and value == MPS else value
            for key, value in (kwargs or {}).items()
        }
        return function(*args, **kwargs)


@pytest.fixture
def apple(configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """The runtime on a machine with an Apple GPU."""
    assert "mps" in _get_fused_kernels_supported_devices()
    monkeypatch.setattr(import_module("torch.optim.adam"), "_device_dtype_check_for_fused", lambda *_: None)
    there = wraps(torch.backends.mps.is_available)(lambda: True)
    monkeypatch.setattr("torch.backends.mps.is_available", there)
    monkeypatch.setattr("torch.mps.synchronize", lambda: None)
    with Replacing(), Refusing():
        yield choose_runtime(configure({"runtime.device": "mps"}).runtime, 1e30)
    normal_table.cache_clear()


def test_without_an_apple_gpu_one_sentence_says_so(configure: Callable[..., Config]):
    with pytest.raises(DdpmError, match=r"^runtime\.device=mps: .* no Apple GPU .*; choose auto or cpu\.$"):
        choose_runtime(configure({"runtime.device": "mps"}).runtime, 0.0)


def test_what_is_chosen_for_it(apple: Runtime, configure: Callable[..., Config]):
    assert apple == Runtime(MPS, torch.float32, compiled=False)
    assert process_count(configure({"runtime.processes": 4}).runtime, apple, 8, 1e15) == 1
    assert apple.arithmetic()[0] == "mps"
    assert apple.describe()["device"] == "Apple GPU (mps)"
    assert peak_memory_bytes(apple) > 0
    layer = apple.prepare(torch.nn.Conv2d(4, 4, 3))
    assert layer.weight.device == META
    assert layer.weight.is_contiguous()
    assert choose_runtime(configure({"runtime.device": "auto"}).runtime, 0.0).device.type != "mps"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.attention": True, "model.dropout": 0.1, "train.optimizer": "adamw"},
        {"model.learned_variance": True},
    ],
)
def test_training_and_what_follows_it_stay_on_it_and_do_without_float64(
    apple: Runtime, tiny: Callable[..., Config], digits: ImageSet, tmp_path: Path, changes: dict[str, Any]
):
    config = tiny({"train.preview_every": 4, "model.clusters": 2}, SAMPLING, changes)
    recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
    training, validation = digits.take(np.arange(200)), digits.take(np.arange(200, 260))
    with RunFolder(tmp_path / "model", tmp_path / "kept") as folder:
        results, _ = train(recipe, training, validation, apple, folder, 0.0)
    assert results["steps"] == 8
    with RunFolder(tmp_path / "again", tmp_path / "kept") as folder:
        train(recipe, training, validation, apple, folder, 0.0)

    path = tmp_path / "model/last.safetensors"
    checkpoint = load_checkpoint(path)
    for name in SAMPLERS:
        settings = config.generate.model_copy(update={"sampler": name, "autoguidance": 1.5, "eta": 0.5})
        generator = make_generator(checkpoint, str(path), settings, config.seed, apple)
        assert generator.sample(range(1, 4)).device == META
        write_images(generator, tmp_path, 1, "auto", tmp_path / name)

    denoiser = make_denoiser(checkpoint, str(path), apple)
    images = torch.from_numpy(validation.images).to(MPS)
    labels = checkpoint.conditioning.labels(validation, MPS)
    steps = respace(denoiser.schedule, SPACINGS["even"](denoiser.schedule, 8))  # all would take half of the time
    learned = denoiser.learned_variance
    likelihood = Likelihood(denoiser.conditioned, images, labels, steps, 2, config.seed, learned)
    bits_per_dimension(likelihood, checkpoint.conditioning.frequencies.flatten().tolist())
    assert len(MnistExtractor(MPS).features(validation.images, "some").values) == 60


def test_interpolation_and_log_likelihood_do_without_float64_there(apple: Runtime):
    schedule = build_schedule(SimpleNamespace(schedule="cosine", timesteps=4))
    x_0, fraction = torch.zeros(2, 1, 3, 3, device=MPS), torch.zeros(2, 1, 1, 1, device=MPS)
    assert slerp(x_0, x_0, fraction).device == META
    bound = log_likelihood_bound(lambda x_t, t: x_t, x_0, schedule, lambda: x_0)
    assert bound.shape == (2,)
    assert bound.dtype == torch.float64


def test_the_stand_in_refuses_what_an_apple_gpu_refuses(apple: Runtime):
    there = torch.ones(2, device=MPS)
    with pytest.raises(AssertionError):
        there.double()
    with pytest.raises(RuntimeError, match="not on the expected device"):
        there + torch.ones(2)
    assert (there * torch.tensor(2.0, dtype=torch.float64)).dtype == torch.float32
