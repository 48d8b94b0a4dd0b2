import errno
import hashlib
import json
import os
import pickle
import random
import re
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from ddpm.config import Config, ModelConfig
from ddpm.data.image_set import ImageSpec
from ddpm.models.build import build_network, conditioning_labels, flops_per_image
from ddpm.models.checkpoint import (
    Checkpoint,
    load_checkpoint,
    restore_network,
    save_checkpoint,
)
from ddpm.models.conditioning import Conditioning
from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile

SPEC = ImageSpec(size=12, channels=3, classes=4, name="seasons", class_names=("spring", "summer", "autumn", "winter"))


@pytest.fixture
def checkpoint(tiny: Callable[..., Config]) -> Checkpoint:
    config = tiny({"model.clusters": 2})
    torch.manual_seed(0)
    network = build_network(config.model, SPEC)
    ema = {name: torch.randn_like(weight) for name, weight in network.state_dict().items()}
    metadata = {"step": 7, "val_loss": 0.1 + 0.2, "log": [{"loss": 1e-5}], "best_val_loss": float("inf")}
    rng = {"t": torch.Generator().manual_seed(3).get_state()}
    labels = Conditioning(4, torch.rand(4, 2, dtype=torch.float64), torch.rand(4, 2, 3 * 12**2))
    return Checkpoint(config.model, config.diffusion, SPEC, labels, metadata, {"ema": ema, "rng": rng})


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


def test_a_checkpoint_is_read_as_written_bit_for_bit(saved: Path, checkpoint: Checkpoint):
    found = load_checkpoint(saved)
    labels = checkpoint.conditioning
    assert replace(found, tensors={}, conditioning=labels) == replace(checkpoint, tensors={})
    assert found.conditioning.classes == labels.classes
    assert found.tensors.keys() == checkpoint.tensors.keys()
    written = checkpoint.tensors | {"labels": labels.tensors()}
    read = found.tensors | {"labels": found.conditioning.tensors()}
    for group, tensors in written.items():
        assert read[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert read[group][name].dtype == tensor.dtype
            assert torch.equal(read[group][name], tensor)


def test_the_restored_network_holds_the_average(saved: Path, checkpoint: Checkpoint):
    network = restore_network(load_checkpoint(saved), str(saved))
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, checkpoint.tensors["ema"][name])


def test_equal_checkpoints_are_equal_bytes_in_every_process(saved: Path, root: Path, tmp_path: Path):
    again = tmp_path / "again.safetensors"
    copy = (
        "import sys; from pathlib import Path; from ddpm.models.checkpoint import load_checkpoint, save_checkpoint; "
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


def test_a_folder_is_called_one(tmp_path: Path):
    with pytest.raises(DdpmError, match=f"^{re.escape(str(tmp_path))} is a folder: name a file\\.$"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999, 0.99999])
def test_a_truncated_file_is_damaged(saved: Path, fraction: float):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(fraction * len(content))])
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


def test_every_flipped_byte_is_noticed(saved: Path):
    content = saved.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    dice = random.Random(0)
    places = [*range(300), *dice.sample(range(8 + length), 300), *dice.sample(range(8 + length, len(content)), 300)]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= dice.randrange(1, 256)
        saved.write_bytes(flipped)
        with pytest.raises(DamagedFile, match=r"model\.safetensors"):
            load_checkpoint(saved)
    saved.write_bytes(content)
    load_checkpoint(saved)


def test_a_flipped_weight_and_a_flipped_setting_fail_the_checksum(saved: Path):
    content = saved.read_bytes()
    for changed in (content[:-1] + bytes([content[-1] ^ 1]), content.replace(b"cosine", b"linear", 1)):
        assert changed != content
        saved.write_bytes(changed)
        with pytest.raises(DamagedFile, match=r"is damaged \(its SHA-256 does not match\)$"):
            load_checkpoint(saved)


def test_a_checkpoint_without_a_checksum_is_refused(saved: Path, checkpoint: Checkpoint):
    header = {"model": checkpoint.model.model_dump(), "diffusion": checkpoint.diffusion.model_dump()}
    header |= {"spec": {"size": 12, "channels": 3, "classes": 4}, "classes": 0, "metadata": {}}
    save_file(load_file(saved), saved, metadata={"ddpm": json.dumps(header)})
    with pytest.raises(DamagedFile, match=r"model\.safetensors holds no SHA-256 of itself.*older version$"):
        load_checkpoint(saved)


def forge(path: Path, header: dict[str, Any], tensors: dict[str, Tensor | None]) -> None:
    """Exchange keys of the header, and tensors (None: none), and write the digest that fits."""
    with safe_open(path, "pt") as file:
        settings = json.loads(file.metadata()["ddpm"]) | header | {"sha256": "0" * 64}
    kept = {name: tensor for name, tensor in (load_file(path) | tensors).items() if tensor is not None}
    content = save(kept, {"ddpm": json.dumps(settings)})
    path.write_bytes(content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode(), 1))


def test_a_forged_digest_is_right(saved: Path):
    forge(saved, {"metadata": {"step": 8}}, {})
    assert load_checkpoint(saved).metadata == {"step": 8}


IMAGES = {"size": 12, "channels": 3, "classes": 4}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"spec": IMAGES | {"size": 10**9}}, "spec.size = 1000000000: "),
        ({"spec": IMAGES | {"size": "12"}}, "spec.size = '12': "),
        ({"spec": IMAGES | {"size": True}}, "spec.size = true: "),
        ({"spec": IMAGES | {"channels": 2}}, "spec.channels = 2: "),
        ({"spec": IMAGES | {"classes": 10**12}}, "spec.classes = 1000000000000: "),
        ({"spec": IMAGES | {"class_names": [1, 2, 3, 4]}}, "spec.class_names = 1: "),
        ({"spec": IMAGES | {"class_names": ["a", "b"]}}, "2 class names, 2 of them different, for 4 classes"),
        ({"spec": 5}, "spec = 5: "),
        ({"classes": 10**12}, "its labels are not those of its network"),
        ({"classes": float("inf")}, "classes = inf: "),
        ({"metadata": 5}, "metadata = 5: "),
        ({"metadata": {"sampling": 5}}, "metadata.sampling is no section with keys"),
        ({"model": []}, "model = "),
        ({"diffusion": None}, "diffusion = null: "),
    ],
)
def test_a_well_formed_file_of_impossible_settings_is_damaged(saved: Path, header: dict[str, Any], reason: str):
    forge(saved, header, {})
    with pytest.raises(DamagedFile, match=re.escape(reason)) as caught:
        load_checkpoint(saved)
    assert str(saved) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"frequencies": torch.full((4, 3), 1 / 12, dtype=torch.float64)}, "not those of its network"),
        ({"frequencies": torch.zeros(4, 2, dtype=torch.float64)}, "frequencies of its labels"),
        ({"frequencies": torch.full((4, 2), -1.0, dtype=torch.float64)}, "frequencies of its labels"),
        ({"frequencies": torch.full((4, 2), torch.nan, dtype=torch.float64)}, "frequencies of its labels"),
        ({"frequencies": torch.ones(4, 2, dtype=torch.int64)}, "frequencies of its labels"),
        ({"frequencies": None}, "frequencies"),
        ({"centroids": None}, "not those of its network"),
        ({"centroids": torch.zeros(4, 2, 9)}, "not those of its network"),
        ({"centroids": torch.full((4, 2, 432), torch.inf)}, "means of its clusters"),
        ({"centroids": torch.zeros(4, 2, 432, dtype=torch.int64)}, "means of its clusters"),
        ({"more": torch.zeros(1)}, "more"),
    ],
)
def test_a_well_formed_file_of_impossible_labels_is_damaged(
    saved: Path, tensors: dict[str, Tensor | None], reason: str
):
    forge(saved, {}, {f"labels/{name}": tensor for name, tensor in tensors.items()})
    with pytest.raises(DamagedFile, match=rf"model\.safetensors.*{reason}"):
        load_checkpoint(saved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_tensors_of_every_kind_are_read_as_written(saved: Path, checkpoint: Checkpoint, dtype: torch.dtype):
    kinds = {"many": torch.arange(6).to(dtype).view(2, 3).T, "one": torch.ones((), dtype=dtype)}
    kinds["none"] = torch.zeros(0, 3, dtype=dtype)
    save_checkpoint(saved, replace(checkpoint, tensors={"ema": kinds}))
    found = load_checkpoint(saved).tensors["ema"]
    assert found.keys() == kinds.keys()
    for name, tensor in kinds.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)


def test_the_order_of_tensors_and_groups_is_no_part_of_a_checkpoint(saved: Path, checkpoint: Checkpoint):
    content = saved.read_bytes()
    turned = {group: dict(reversed(named.items())) for group, named in reversed(checkpoint.tensors.items())}
    save_checkpoint(saved, replace(checkpoint, tensors=turned))
    assert saved.read_bytes() == content


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_checkpoint_is_read_onto_a_cuda_device(saved: Path, checkpoint: Checkpoint):
    for name, tensor in load_checkpoint(saved, "cuda").tensors["ema"].items():
        assert tensor.is_cuda
        assert torch.equal(tensor.cpu(), checkpoint.tensors["ema"][name])


class Malice:
    """What a pickle can do to the one who loads it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.mark,)


def test_a_pickle_is_refused_and_its_code_not_run(saved: Path, tmp_path: Path):
    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(Malice(mark)))
    assert mark.exists()
    mark.unlink()
    for write in (torch.save, lambda harm, path: path.write_bytes(pickle.dumps(harm))):
        write({"ema": {"conv_in.weight": torch.zeros(3), "more": Malice(mark)}}, saved)
        with pytest.raises(DamagedFile, match=r"model\.safetensors"):
            load_checkpoint(saved)
    assert not mark.exists()


def test_settings_of_another_version_are_not_called_damaged(saved: Path, checkpoint: Checkpoint):
    class LaterModel(ModelConfig):
        flux_capacitor: int = 1

    save_checkpoint(saved, replace(checkpoint, model=LaterModel(**checkpoint.model.model_dump())))
    with pytest.raises(DdpmError, match=r"another version.*unknown key flux_capacitor") as caught:
        load_checkpoint(saved)
    assert not isinstance(caught.value, DamagedFile)


def test_a_checkpoint_of_before_a_setting_has_the_value_that_changes_nothing(saved: Path, checkpoint: Checkpoint):
    content = saved.read_bytes()
    for key in ("learned_variance", "self_conditioning", "shift", "zero_terminal_snr"):
        assert key.encode() not in content
    assert load_checkpoint(saved).model == checkpoint.model
    assert load_checkpoint(saved).diffusion == checkpoint.diffusion


def test_a_setting_that_changes_something_is_kept(saved: Path, checkpoint: Checkpoint):
    model = checkpoint.model.model_copy(update={"learned_variance": True, "self_conditioning": True})
    diffusion = checkpoint.diffusion.model_copy(update={"shift": 2.0, "zero_terminal_snr": True})
    save_checkpoint(saved, replace(checkpoint, model=model, diffusion=diffusion))
    found = load_checkpoint(saved)
    assert (found.model, found.diffusion) == (model, diffusion)


@pytest.mark.parametrize("change", ["wider", "immense", "missing", "extra"])
def test_weights_of_another_architecture_are_damaged(checkpoint: Checkpoint, change: str):
    ema = dict(checkpoint.tensors["ema"])
    model = checkpoint.model
    if change == "wider":
        model = model.model_copy(update={"base_channels": 16})
    elif change == "immense":  # terabytes, were it built
        model = model.model_copy(update={"base_channels": 4096, "channel_multipliers": (64, 64)})
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
    with files_of_at_most(4096), pytest.raises(OSError) as caught:
        save_checkpoint(saved, replace(checkpoint, metadata={}))
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_full_disk_is_called_so_by_a_stage(saved: Path, root: Path, workspace: Path):
    (workspace / "disk").mkdir()
    (workspace / "stage.py").write_text(
        "from pathlib import Path\n"
        "from ddpm.models.checkpoint import load_checkpoint, save_checkpoint\n"
        "from stages.runner import run\n"
        "run(lambda _: save_checkpoint(Path('disk/best.safetensors'), load_checkpoint(Path('model.safetensors'))))\n"
    )
    script = "mount -t tmpfs -o size=64k tmpfs disk || exit 42\n$PYTHON stage.py; code=$?\nls -A disk\nexit $code"
    ended = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=workspace,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in ended.stderr or ended.returncode == 42:
        pytest.skip("no file system can be mounted here")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: disk/best.safetensors could not be written, the disk is full")
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stdout == ""


def test_a_checkpoint_is_as_readable_as_any_other_file(saved: Path):
    (saved.parent / "other").touch()
    assert saved.stat().st_mode == (saved.parent / "other").stat().st_mode


def test_the_network_has_the_channels_and_classes_of_its_images(configure: Callable[..., Config]):
    alone = {"model.clusters": 1}
    model, unconditional = configure(alone).model, configure(alone, {"model.classes": 0}).model
    x_t, t = torch.zeros(2, *SPEC.shape), torch.zeros(2, dtype=torch.int64)
    assert build_network(model, SPEC)(x_t, t, t).shape == x_t.shape
    assert conditioning_labels(model, SPEC) == 4
    assert (
        conditioning_labels(unconditional, SPEC)
        == conditioning_labels(model, replace(SPEC, classes=0, class_names=()))
        == 0
    )
    clusters = {"clusters": 7}
    assert conditioning_labels(model.model_copy(update=clusters), SPEC) == 28
    assert conditioning_labels(unconditional.model_copy(update=clusters), SPEC) == 7
    assert build_network(unconditional, SPEC).label_embedding is None


def test_counting_operations_needs_no_memory_for_the_network(configure: Callable[..., Config]):
    # 260,000 channels would be terabytes of weights.
    huge = configure({"model.base_channels": 4096, "model.channel_multipliers": [64]}).model
    assert flops_per_image(huge, SPEC) > 1e13
