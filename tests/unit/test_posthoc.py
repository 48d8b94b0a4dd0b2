"""Averages of any length after a training: `ddpm.training.posthoc`, `python -m ddpm average`."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

import ddpm
from ddpm.__main__ import main
from ddpm.config import Config
from ddpm.data.image_set import ImageSet
from ddpm.models.checkpoint import load_checkpoint
from ddpm.training.ema import LENGTHS, PowerEma, power
from ddpm.training.loop import train
from ddpm.training.posthoc import LONGEST, averaged, coefficients, inner_products
from ddpm.training.run_folder import RunFolder
from ddpm.training.state import Recipe
from ddpm.utils.errors import DdpmError, MissingFile
from ddpm.utils.runtime import Runtime

NOT_TRACKED = (0.03, 0.07, 0.15, 0.25)


def profile(tau: float, t: float, gamma: float) -> float:
    """The density of the weights in time."""
    return (gamma + 1) * (tau / t) ** gamma / t if tau <= t else 0.0


@pytest.mark.parametrize("length", [0.01, *LENGTHS, 0.2, LONGEST])
def test_the_length_is_the_standard_deviation_of_the_profile_over_its_time(length: float):
    gamma, t = power(length), 7.0
    mass, mean, square = (quad(lambda tau, k=k: tau**k * profile(tau, t, gamma), 0, t)[0] for k in range(3))
    assert mass == pytest.approx(1, rel=1e-8)
    assert math.sqrt(square - mean**2) / t == pytest.approx(length, rel=1e-6)


def test_inner_products_are_the_integrals_of_the_products(rng: np.random.Generator):
    t, gamma, other_t, other_gamma = (
        rng.uniform(0.5, 9, 6),
        rng.uniform(0, 40, 6),
        np.array([2.0, 5.0]),
        np.array([3.0, 17.0]),
    )
    found = inner_products(t, gamma, other_t, other_gamma)
    for (i, j), value in np.ndenumerate(found):
        a, b = (t[i], gamma[i]), (other_t[j], other_gamma[j])
        expected = quad(lambda tau, a=a, b=b: profile(tau, *a) * profile(tau, *b), 0, min(a[0], b[0]), epsabs=1e-13)[0]
        assert value == pytest.approx(expected, rel=1e-7)
    np.testing.assert_allclose(inner_products(t, gamma, t, gamma), inner_products(t, gamma, t, gamma).T, rtol=1e-13)


def snapshots(parts: int, total: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Times and exponents of the averages that a training keeps."""
    t = np.repeat(np.arange(1, parts + 1) * total / parts, len(LENGTHS))
    return t, np.tile([power(length) for length in LENGTHS], parts)


@pytest.mark.parametrize("length", NOT_TRACKED)
def test_the_sum_of_profiles_is_the_least_squares_one_of_sampled_profiles(length: float):
    t, gamma = snapshots(8)
    x, distance = coefficients(t, gamma, 1.0, power(length))
    tau = (np.arange(40_000) + 0.5) / 40_000
    each, end = gamma[:, None], t[:, None]
    sampled = np.where(tau <= end, (each + 1) * (np.minimum(tau, end) / end) ** each / end, 0.0)
    wanted = (power(length) + 1) * tau ** power(length)
    expected = np.linalg.lstsq(sampled.T, wanted, rcond=None)[0] @ sampled
    expected /= expected.mean()  # so that the weights of the average add up to 1
    assert x.sum() == pytest.approx(1, abs=1e-12)
    scale = np.linalg.norm(wanted)
    assert np.linalg.norm(x @ sampled - expected) < 0.01 * scale
    assert distance == pytest.approx(np.linalg.norm(x @ sampled - wanted) / scale, abs=1e-3)


@pytest.mark.parametrize("length", LENGTHS)
def test_an_average_that_was_kept_is_found_again(length: float):
    t, gamma = snapshots(6)
    x, distance = coefficients(t, gamma, 1.0, power(length))
    np.testing.assert_allclose(x, (t == 1) & (gamma == power(length)), atol=1e-8)
    assert distance < 1e-6


def test_more_snapshots_come_nearer():
    distances = [coefficients(*snapshots(parts), 1.0, power(0.03))[1] for parts in (2, 4, 8, 16, 32)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.02 < 0.2 < distances[0]


@pytest.mark.parametrize("length", [*LENGTHS, LONGEST])
def test_the_running_average_has_the_weights_of_its_profile(length: float, rng: np.random.Generator):
    module, values = nn.Linear(1, 1, bias=False).double(), rng.normal(size=50)
    average = PowerEma(module, length)
    for value in values:
        nn.init.constant_(module.weight, value)
        average.update()
    ends = (np.arange(51) / 50) ** (power(length) + 1)  # the mass of the profile up to each step
    assert average.average[0].item() == pytest.approx(np.diff(ends) @ values, rel=1e-12)


@pytest.mark.parametrize("length", NOT_TRACKED)
def test_a_length_that_was_not_tracked_agrees_with_the_average_computed_directly(
    length: float, rng: np.random.Generator
):
    # A path towards a target with noise, as of weights: 64 of them over 3,200 steps, 32 snapshots.
    steps, parts, size = 3200, 32, 64
    module = nn.Linear(size, 1, bias=False)
    tracked, direct = [PowerEma(module, each) for each in LENGTHS], PowerEma(module, length)
    path = (
        np.linspace(1, 0, steps)[:, None] ** 2 * rng.normal(size=size)
        + np.cumsum(rng.normal(size=(steps, size)), 0) / 50
    )
    kept = []
    for step, weights in enumerate(path, 1):
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(weights)[None])
        for average in (*tracked, direct):
            average.update()
        if step % (steps // parts) == 0:
            kept += [average.average[0].numpy().copy() for average in tracked]
    x, _ = coefficients(*snapshots(parts, steps), float(steps), power(length))
    found, expected = np.tensordot(x, np.array(kept), 1), direct.average[0].numpy()
    others = [np.abs(average.average[0].numpy() - expected).max() for average in tracked]
    assert np.abs(found - expected).max() < 0.05 * min(others)


Train = Callable[[Path, int], dict[str, object]]


@pytest.fixture(scope="module")
def run(digits: ImageSet, tiny: Callable[..., Config], cpu: Runtime) -> Train:
    """Train for 20 steps on 512 digits in a folder, with so many snapshots."""

    def start(folder: Path, parts: int) -> dict[str, object]:
        config = tiny({"train.posthoc_snapshots": parts})
        recipe = Recipe(config.model, config.diffusion, config.train, config.seed)
        parts_of = digits.take(np.arange(512)), digits.take(np.arange(1000, 1064))
        with RunFolder(folder, folder / "kept") as place:
            return train(recipe, *parts_of, cpu, place, 1e9)[0]

    return start


@pytest.fixture(scope="module")
def trained(run: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training with seven snapshots."""
    folder = tmp_path_factory.mktemp("trained")
    run(folder, 7)
    return folder


def test_snapshots_are_kept_at_the_ends_of_equal_parts(trained: Path):
    names = [f"step_{math.ceil(20 * part / 7):06d}.safetensors" for part in range(1, 8)]
    assert sorted(path.name for path in (trained / "posthoc").iterdir()) == names
    last, snapshot = load_checkpoint(trained / "last.safetensors"), load_checkpoint(trained / "posthoc" / names[-1])
    assert set(snapshot.tensors) == {f"power_{length}" for length in LENGTHS}
    for name, average in snapshot.tensors.items():
        assert all(torch.equal(value, last.tensors[name][key]) for key, value in average.items())


def test_snapshots_change_nothing_else(run: Train, trained: Path, tmp_path: Path):
    run(tmp_path, 0)
    assert not (tmp_path / "posthoc").exists()
    assert (tmp_path / "best.safetensors").read_bytes() == (trained / "best.safetensors").read_bytes()


def test_the_average_of_a_length_that_was_kept_is_that_one(trained: Path):
    found, distance = averaged(trained / "last.safetensors", 0.1)
    last = load_checkpoint(trained / "last.safetensors")
    assert distance < 1e-5
    assert found.metadata == {"seed": last.metadata["seed"], "step": 20, "average_length": 0.1}
    for key, value in found.tensors["ema"].items():
        torch.testing.assert_close(value, last.tensors["power_0.1"][key], rtol=1e-5, atol=1e-6)
    assert found.tensors.keys() == {"ema", "guide"}


def test_the_command_writes_a_model_that_samples(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out, given = tmp_path / "average.safetensors", ["average", str(trained / "last.safetensors"), "--length", "0.07"]
    monkeypatch.setattr(sys, "argv", ["ddpm", *given, "--out", str(out)])
    main()
    assert capsys.readouterr().out.startswith(f"{out}: length 0.07, its profile within ")
    images = ddpm.load(out, device="cpu").sample(2, steps=2, autoguidance=1.0, guidance=1.0)
    assert images.shape == (2, 1, 28, 28)


def test_what_cannot_be_averaged_is_refused_with_one_sentence(run: Train, trained: Path, tmp_path: Path):
    for length in (0.0, -0.1, 0.3, math.nan):
        with pytest.raises(DdpmError, match=r"there is no average of length .*: name one above 0, up to 0\.2887\.$"):
            averaged(trained / "last.safetensors", length)
    with pytest.raises(MissingFile, match="posthoc holds no snapshots"):
        averaged(ddpm.pretrained.path_of("mnist"), 0.1)
    (tmp_path / "posthoc").symlink_to(trained / "posthoc")
    other = tmp_path / "other.safetensors"
    other.write_bytes(ddpm.pretrained.path_of("mnist").read_bytes())
    with pytest.raises(DdpmError, match="holds snapshots of another training than"):
        averaged(other, 0.1)
