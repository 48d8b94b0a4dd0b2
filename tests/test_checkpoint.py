import json
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddpm.config import Config
from ddpm.diffusion.schedule import cosine_schedule, linear_schedule
from ddpm.errors import DamagedFile, DdpmError, MissingFile
from ddpm.model.checkpoint import (
    Checkpoint,
    build_network,
    build_schedule,
    flops_per_image,
    load_checkpoint,
    restore_network,
    save_checkpoint,
)


@pytest.fixture
def checkpoint(tiny: Callable[..., Config]) -> Checkpoint:
    config = tiny()
    torch.manual_seed(0)
    network = build_network(config.model)
    ema = {name: torch.randn_like(weight) for name, weight in network.state_dict().items()}
    facts = {"step": 7, "val_loss": 0.1 + 0.2, "log": [{"loss": 1e-5}], "best_val_loss": float("inf")}
    rng = {"t": torch.Generator().manual_seed(3).get_state()}
    return Checkpoint(config.model, config.diffusion, 28, [0.1] * 10, facts, {"ema": ema, "rng": rng})


@pytest.fixture
def saved(tmp_path: Path, checkpoint: Checkpoint) -> Path:
    save_checkpoint(tmp_path / "model.safetensors", checkpoint)
    return tmp_path / "model.safetensors"


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let the system refuse to write files longer than this, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_comes_back_bit_for_bit(saved: Path, checkpoint: Checkpoint):
    found = load_checkpoint(saved)
    assert replace(found, tensors={}) == replace(checkpoint, tensors={})
    assert found.tensors.keys() == checkpoint.tensors.keys()
    for group, tensors in checkpoint.tensors.items():
        assert found.tensors[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found.tensors[group][name].dtype == tensor.dtype
            assert torch.equal(found.tensors[group][name], tensor)


def test_the_restored_network_holds_the_average(saved: Path, checkpoint: Checkpoint):
    network = restore_network(load_checkpoint(saved), str(saved))
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, checkpoint.tensors["ema"][name])


def test_equal_checkpoints_are_equal_bytes_in_every_process(saved: Path, root: Path, tmp_path: Path):
    again = tmp_path / "again.safetensors"
    copy = (
        "import sys; from pathlib import Path; from ddpm.model.checkpoint import load_checkpoint, save_checkpoint; "
        "save_checkpoint(Path(sys.argv[2]), load_checkpoint(Path(sys.argv[1])))"
    )
    environment = {"PYTHONPATH": str(root), "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", copy, saved, again], env=environment, check=True)
    assert again.read_bytes() == saved.read_bytes()
    save_checkpoint(again, load_checkpoint(again))
    assert again.read_bytes() == saved.read_bytes()


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(MissingFile, match=r"nowhere\.safetensors"):
        load_checkpoint(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_damaged(saved: Path, share: float):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DamagedFile, match=r"model\.safetensors"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "content",
    [
        b"garbage" * 1000,
        b"\xff" * 100,
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 27) + b'{"__metadata__":{"ddpm":""}}'[:27],
        struct.pack("<Q", 31) + b'{"__metadata__":{"ddpm":"[1]"}}',
        struct.pack("<Q", 32) + b'{"__metadata__":{"ddpm":"null"}}',
    ],
    ids=["text", "all ones", "no metadata", "cut metadata", "metadata of a list", "metadata of nothing"],
)
def test_other_content_is_damaged(saved: Path, content: bytes):
    saved.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"model\.safetensors"):
        load_checkpoint(saved)


def test_no_flipped_byte_of_the_header_escapes_as_another_error(saved: Path):
    content = bytearray(saved.read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    refused = []
    for place in [*range(8), *range(8, 8 + length, 61)]:
        flipped = bytearray(content)
        flipped[place] ^= 0x11
        saved.write_bytes(flipped)
        try:
            restore_network(load_checkpoint(saved), str(saved))
        except DdpmError as error:
            refused.append(str(error))
    assert len(refused) > 30
    assert all("model.safetensors" in message for message in refused)


def test_a_flipped_header_is_damaged(saved: Path):
    content = bytearray(saved.read_bytes())
    content[8] ^= 0xFF
    saved.write_bytes(content)
    with pytest.raises(DamagedFile, match=r"model\.safetensors"):
        load_checkpoint(saved)


def test_a_pickle_is_refused(saved: Path):
    torch.save({"ema": {"conv_in.weight": torch.zeros(3)}}, saved)
    with pytest.raises(DamagedFile, match=r"model\.safetensors"):
        load_checkpoint(saved)


def test_settings_of_another_version_are_told_from_damage(saved: Path):
    with saved.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(json.loads(file.read(length))["__metadata__"]["ddpm"])
    header["model"]["flux_capacitor"] = 1
    save_file(load_file(saved), saved, metadata={"ddpm": json.dumps(header)})
    with pytest.raises(DdpmError, match=r"another version.*unknown key flux_capacitor") as caught:
        load_checkpoint(saved)
    assert not isinstance(caught.value, DamagedFile)


@pytest.mark.parametrize("change", ["wider", "missing", "extra"])
def test_weights_of_another_architecture_are_damaged(checkpoint: Checkpoint, change: str):
    ema = dict(checkpoint.tensors["ema"])
    model = checkpoint.model
    if change == "wider":
        model = model.model_copy(update={"base_channels": 16})
    elif change == "missing":
        del ema["conv_in.bias"]
    else:
        ema["conv_in.spare"] = torch.zeros(1)
    with pytest.raises(DamagedFile, match=r"here\.safetensors.*another architecture"):
        restore_network(replace(checkpoint, model=model, tensors={"ema": ema}), "here.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(checkpoint: Checkpoint, value: float):
    checkpoint.tensors["ema"]["norm_out.bias"][0] = value
    with pytest.raises(DdpmError, match=r"here\.safetensors.*not finite.*train\.lr"):
        restore_network(checkpoint, "here.safetensors")


def test_a_write_that_fails_leaves_the_old_checkpoint(saved: Path, checkpoint: Checkpoint):
    before = saved.read_bytes()
    with files_of_at_most(4096), pytest.raises(OSError):
        save_checkpoint(saved, replace(checkpoint, facts={}))
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_the_schedule_is_the_one_in_the_settings(configure: Callable[..., Config]):
    assert torch.equal(build_schedule(configure().diffusion).beta, cosine_schedule(1000).beta)
    linear = configure({"diffusion.schedule": "linear", "diffusion.beta_end": 0.03}).diffusion
    assert torch.equal(build_schedule(linear).beta, linear_schedule(1000, 1e-4, 0.03).beta)


def test_counting_operations_needs_no_memory_for_the_network(configure: Callable[..., Config]):
    # 40,000 channels would be terabytes of weights.
    huge = configure({"model.base_channels": 40_000, "model.attention": False}).model
    assert flops_per_image(huge, 28) > 1e13
