import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ddpm.config import Config, TrainConfig
from ddpm.data.image_set import ImageSpec
from ddpm.models.build import build_network
from ddpm.training.muon import Muon
from ddpm.training.optimizers import LR_DECAYS, OPTIMIZERS, Optimizer, lr_factor
from ddpm.utils.errors import DdpmError


def make(network: nn.Module, config: TrainConfig) -> Optimizer:
    return Optimizer(config.optimizer, network, config)


class Net(nn.Module):
    """A first layer, two hidden ones and a last one, named as the optimizer expects."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv_in = nn.Conv2d(2, 4, 3)
        self.hidden = nn.Conv2d(4, 6, 3)
        self.dense = nn.Linear(5, 7)
        self.conv_out = nn.Conv2d(6, 2, 3)

    def fill_gradients(self, seed: int) -> None:
        """Random gradients, in the memory order of the weights."""
        generator = torch.Generator().manual_seed(seed)
        for weight in self.parameters():
            gradient = torch.randn(weight.shape, generator=generator)
            weight.grad = torch.empty_like(weight, requires_grad=False).copy_(gradient)


@pytest.fixture
def settings(configure: Callable[..., Config]) -> Callable[..., TrainConfig]:
    """The section train with some values changed."""
    return lambda **changes: configure({f"train.{key}": value for key, value in changes.items()}).train


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_the_other_weights_move_as_torchs_adamw_moves_them(settings: Callable[..., TrainConfig], optimizer: str):
    config = settings(optimizer=optimizer, lr=0.03, weight_decay=0.1, adam_beta2=0.97)
    network, plain = Net(), Net()
    ours = make(network, config)
    reference = torch.optim.AdamW(plain.parameters(), lr=0.03, betas=(0.9, 0.97), weight_decay=0.1)
    for seed in range(4):
        for module in (network, plain):
            module.fill_gradients(seed)
        ours.step(1.0)
        reference.step()
    expected = weights_of(plain)
    by_muon = {"hidden.weight", "dense.weight"} if optimizer == "muon" else set()
    for name, weight in network.named_parameters():
        if name in by_muon:
            assert not torch.allclose(weight, expected[name], atol=1e-4)
        else:
            torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-5, atol=1e-6)


def test_hidden_weights_move_as_muon_moves_them(settings: Callable[..., TrainConfig]):
    network, plain = Net(), Net()
    hidden = [plain.hidden.weight, plain.dense.weight]
    ours = make(network, settings(optimizer="muon", lr=0.03, weight_decay=0.1))
    reference = Muon(hidden, 0.03, 0.1)
    for seed in range(3):
        for module in (network, plain):
            module.fill_gradients(seed)
        ours.step(1.0)
        reference.step()
    assert torch.equal(network.hidden.weight, plain.hidden.weight)
    assert torch.equal(network.dense.weight, plain.dense.weight)


def test_first_and_last_layers_biases_and_norms_are_adamws(configure: Callable[..., Config]):
    config = configure({"train.weight_decay": 0.0, "train.lr": 0.01})
    by_optimizer = {}
    for name in ("muon", "adamw"):
        torch.manual_seed(0)
        network = build_network(config.model, ImageSpec(28, 1, 10))
        for weight in network.parameters():
            weight.grad = torch.randn(weight.shape)
        make(network, config.train.model_copy(update={"optimizer": name})).step(1.0)
        by_optimizer[name] = weights_of(network)
    for name, weight in by_optimizer["muon"].items():
        hidden = weight.ndim >= 2 and name.split(".")[0] not in ("conv_in", "conv_out", "label_embedding")
        assert torch.equal(weight, by_optimizer["adamw"][name]) != hidden, name


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_the_factor_scales_the_learning_rate(settings: Callable[..., TrainConfig], optimizer: str):
    moved = []
    for lr, factor in ((0.04, 0.25), (0.01, 1.0)):
        network = Net()
        network.fill_gradients(0)
        make(network, settings(optimizer=optimizer, lr=lr)).step(factor)
        moved.append(weights_of(network))
    for name, weight in moved[0].items():
        assert torch.equal(weight, moved[1][name])


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_gradients_are_dropped_after_a_step(settings: Callable[..., TrainConfig], optimizer: str):
    network = Net()
    network.fill_gradients(0)
    make(network, settings(optimizer=optimizer)).step(1.0)
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_an_optimizer_continues_from_its_state_to_the_same_bits(
    settings: Callable[..., TrainConfig], optimizer: str, order: torch.memory_format
):
    config = settings(optimizer=optimizer)
    whole, part = Net().to(memory_format=order), Net().to(memory_format=order)
    ours, theirs = make(whole, config), make(part, config)
    for seed in range(6):
        for module, stepper in ((whole, ours), (part, theirs)):
            module.fill_gradients(seed)
            stepper.step(1.0)
        if seed == 2:
            # As restored from a checkpoint: in the usual order of memory.
            state = {
                name: value.clone(memory_format=torch.contiguous_format) for name, value in theirs.state_dict().items()
            }
            assert all(isinstance(value, Tensor) for value in state.values())
            theirs = make(part, config)
            theirs.load_state_dict(state)
    expected = weights_of(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in part.named_parameters())


def test_the_learning_rate_warms_up_linearly():
    assert [lr_factor(step, 100, 4, "none") for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


@pytest.mark.parametrize(
    ("decay", "middle", "last"),
    [("none", 1.0, 1.0), ("linear", 0.5, 0.01), ("cosine", 0.5, 0.5 * (1 + math.cos(math.pi * 0.99)))],
)
def test_the_learning_rate_decays_from_its_peak_towards_the_end(decay: str, middle: float, last: float):
    total, warmup = 110, 10
    assert lr_factor(10, total, warmup, decay) == 1.0
    assert lr_factor(60, total, warmup, decay) == pytest.approx(middle)
    assert lr_factor(109, total, warmup, decay) == pytest.approx(last)


@pytest.mark.parametrize("decay", list(LR_DECAYS))
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 5), (5, 5), (7, 3), (3, 100)])
def test_the_learning_rate_is_never_zero_or_above_its_peak(decay: str, total: int, warmup: int):
    factors = [lr_factor(step, total, warmup, decay) for step in range(total)]
    assert all(0 < factor <= 1 for factor in factors)


def test_an_unknown_name_is_refused_with_those_there_are(settings: Callable[..., TrainConfig]):
    with pytest.raises(DdpmError, match=r"^unknown optimizer sgd: choose one of adamw, muon\.$"):
        Optimizer("sgd", Net(), settings())
    with pytest.raises(DdpmError, match=r"^unknown learning rate decay step: choose one of cosine, linear, none\.$"):
        lr_factor(5, 10, 0, "step")
