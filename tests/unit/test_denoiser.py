from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.diffusion.denoiser import CLIPPINGS, Denoiser
from ddpm.diffusion.guidance import Guidance, rescaled
from ddpm.diffusion.process import TARGETS
from ddpm.diffusion.schedule import Schedule, cosine

SCHEDULE = Schedule(cosine(100), torch.arange(100))


def test_dynamic_clipping_is_that_of_imagen(rng: np.random.Generator):
    x_0 = rng.normal(size=(6, 3, 8, 8)) * np.linspace(0.1, 3, 6)[:, None, None, None]
    s = np.maximum(np.quantile(np.abs(x_0).reshape(6, -1), 0.995, axis=1), 1.0)[:, None, None, None]
    assert (s == 1).any()
    assert (s > 2).any()
    found = CLIPPINGS["dynamic"](torch.from_numpy(x_0))
    np.testing.assert_allclose(found, np.clip(x_0, -s, s) / s, rtol=1e-12)


@pytest.mark.parametrize(("clip", "expected"), [(False, 3.0), (True, 1.0), ("static", 1.0), ("dynamic", 1.0)])
def test_a_prediction_is_clipped_as_asked(clip: bool | str, expected: float):
    denoiser = Denoiser(lambda x_t, *_: torch.full_like(x_t, 3.0), TARGETS["x_0"], SCHEDULE, clip)
    assert denoiser(torch.zeros(2, 1, 4, 4), 50).unique().tolist() == [expected]


@pytest.mark.parametrize("fraction", [0.0, 0.7, 1.0])
def test_rescaling_is_that_of_equations_15_and_16(fraction: float, rng: np.random.Generator):
    guided, prediction = rng.normal(size=(4, 1, 5, 5)) * 3 + 1, rng.normal(size=(4, 1, 5, 5))
    ratio = prediction.std(axis=(1, 2, 3), ddof=1) / guided.std(axis=(1, 2, 3), ddof=1)
    expected = fraction * guided * ratio[:, None, None, None] + (1 - fraction) * guided
    found = rescaled(torch.from_numpy(guided), torch.from_numpy(prediction), fraction)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    if fraction == 1.0:
        np.testing.assert_allclose(found.std((1, 2, 3)), torch.from_numpy(prediction).std((1, 2, 3)), rtol=1e-12)


def test_what_guidance_adds_is_rescaled_and_nothing_without_it():
    def predict(x_t: Tensor, _: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return x_t * (1 + labels[:, None, None, None])

    x_t, labels = torch.randn(3, 1, 6, 6), torch.tensor([1, 2, 3])
    given = {"predict": predict, "target": TARGETS["x_0"], "schedule": SCHEDULE, "clip": False, "labels": labels}
    plain = Denoiser(**given)(x_t, 50)
    guided = Denoiser(**given, guidance=Guidance(3.0))(x_t, 50)
    whole = Denoiser(**given, guidance=Guidance(3.0), rescale=1.0)(x_t, 50)
    torch.testing.assert_close(guided, 3 * plain)
    torch.testing.assert_close(whole, plain)
    assert torch.equal(Denoiser(**given, rescale=1.0)(x_t, 50), plain)


def test_self_conditioning_gives_the_network_its_last_x_0_within_one_sampling_run():
    met: list[Tensor] = []

    def predict(given: Tensor, *_: Tensor | None) -> Tensor:
        met.append(given)
        return given[:, :1] * 2

    denoiser = Denoiser(predict, TARGETS["x_0"], SCHEDULE, clip=True, self_conditioning=True)
    x_t = torch.randn(2, 1, 4, 4)
    for each in (denoiser, denoiser.remembering(), denoiser.remembering()):
        first = each(x_t, 60)
        each(x_t / 2, 40)
        assert met[-2].shape == met[-1].shape == (2, 2, 4, 4)
        assert not met[-2][:, 1:].any()
        assert torch.equal(met[-1][:, 1:], first if each is not denoiser else torch.zeros_like(first))
    unclipped = replace(denoiser, clip=False).remembering()
    assert unclipped(x_t, 60).abs().max() > 1
    unclipped(x_t, 40)
    assert torch.equal(met[-1][:, 1:], (2 * x_t).clamp(-1, 1))  # as in training


def test_a_learned_variance_is_split_from_the_prediction():
    def predict(x_t: Tensor, *_: Tensor | None) -> Tensor:
        return torch.cat([x_t * 0.5, torch.full_like(x_t, -0.5)], 1)

    denoiser = Denoiser(predict, TARGETS["x_0"], SCHEDULE, clip=False, learned_variance=True)
    x_t = torch.randn(2, 3, 4, 4)
    x_0, fraction = denoiser.with_fraction(x_t, 50)
    assert torch.equal(x_0, x_t * 0.5)
    assert fraction.shape == x_t.shape
    assert fraction.unique().tolist() == [0.25]
    assert torch.equal(denoiser(x_t, 50), x_0)


@pytest.mark.parametrize("target", list(TARGETS))
def test_every_target_gives_samplers_the_same_x_0(target: str):
    x_0, eps, t = torch.rand(2, 1, 4, 4) * 2 - 1, torch.randn(2, 1, 4, 4), 60
    levels = SCHEDULE.alpha_bar[t].float(), SCHEDULE.alpha_bar_prev[t].float()
    x_t = levels[0].sqrt() * x_0 + (1 - levels[0]).sqrt() * eps
    prediction = TARGETS[target].of(x_0, levels[0], eps, levels[1])
    denoiser = Denoiser(lambda *_: prediction, TARGETS[target], SCHEDULE, clip=False)
    torch.testing.assert_close(denoiser(x_t, t), x_0, rtol=1e-3, atol=1e-4)


def test_of_images_at_times_of_their_own_each_is_denoised_and_guided_as_alone():
    def predict(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return x_t * (0.1 + labels[:, None, None, None] + t[:, None, None, None] / 100)

    def guide(x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return predict(x_t, t, labels) * 0.5

    x_t, labels, times = torch.randn(3, 1, 6, 6), torch.tensor([1, 2, 3]), torch.tensor([5, 50, 90])
    intervals = {"guidance": Guidance(3.0, (0.5, 2.0)), "autoguidance": Guidance(2.0, (2.0, 99.0)), "guide": guide}
    denoiser = Denoiser(predict, TARGETS["v"], SCHEDULE, False, labels=labels, **intervals)
    alone = [denoiser.conditioned(labels[[i]])(x_t[[i]], int(times[i])) for i in range(3)]
    torch.testing.assert_close(denoiser(x_t, times), torch.cat(alone))
    plain = Denoiser(predict, TARGETS["v"], SCHEDULE, False, labels=labels)(x_t, times)
    assert [torch.equal(a, b) for a, b in zip(denoiser(x_t, times), plain, strict=True)] == [True, False, False]
