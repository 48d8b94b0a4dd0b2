import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from clones import SETTINGS
from ruamel.yaml import YAML

from ddpm.config import Config, load_config, parse_config
from ddpm.diffusion.schedule import SCHEDULES
from ddpm.utils.errors import DamagedFile, DdpmError, MissingFile

COMMITTED = [
    "tests/params.yaml",
    *sorted(f"presets/{path.name}" for path in (Path(__file__).parents[2] / "presets").glob("*.yaml")),
]

MISTAKES = {
    "seed": 2**63,
    "data.name": "letters",
    "data.source": "",
    "split.train_fraction": 1.5,
    "model.network": "transformer",
    "data.image_size": 6,
    "model.classes": 10,
    "model.base_channels": 33,
    "model.blocks_per_level": 10**6,
    "model.channel_multipliers": [],
    "model.patch_size": 3,
    "model.attention": "yes",
    "model.dropout": 1.0,
    "model.upsampling": "bicubic",
    "diffusion.schedule": "sigmoids",
    "diffusion.timesteps": 0,
    "diffusion.beta_start": 0,
    "diffusion.beta_end": 1e-9,
    "train.epochs": 1e308,
    "train.batch_size": "64",
    "train.lr": "fast",
    "train.weight_decay": float("nan"),
    "train.grad_clip": float("inf"),
    "train.ema_decay": 1.0,
    "train.log_every": 2.5,
    "generate.num_images": -5,
    "generate.steps": -25,
    "generate.checkpoint": "best.safetensors",
    "generate.replicate": -1,
    "generate.sampler": None,
    "generate.guidance": 1e39,
    "generate.eta": 1.5,
    "generate.output_size": 4096,
    "fid.bootstrap": None,
    "fid.inception": True,
    "fid.extractors": 3,
    "fid.classifier_epochs": 0,
    "fid.swd": True,
    "visualize.snapshots": 1,
    "visualize.gif_seconds": 10_000.0,
    "runtime.device": "cuda:07",
    "runtime.generate_batch_size": 0,
    "runtime.workers": 10**9,
    "runtime.checkpoint_every_seconds": 0,
}


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[str, str], Path]:
    """A copy of params.yaml with the value of one key (by its line) written otherwise."""

    def edit(key: str, text: str) -> Path:
        content, count = re.subn(rf"(?m)^(\s*{key}:)\s*\S+", rf"\1 {text}", SETTINGS.read_text(), count=1)
        assert count == 1
        path = tmp_path / "params.yaml"
        path.write_text(content)
        return path

    return edit


def test_the_settings_are_what_params_yaml_says():
    assert load_config(SETTINGS).model_dump(mode="json") == YAML(typ="safe", pure=True).load(SETTINGS)


@pytest.mark.parametrize(("key", "value"), MISTAKES.items(), ids=MISTAKES.keys())
def test_a_wrong_value_is_named_on_one_line(parameters: Callable[..., dict[str, Any]], key: str, value: object):
    with pytest.raises(DdpmError, match=rf"^here\.yaml: {re.escape(key)} = [^\n]+\.$") as caught:
        parse_config(parameters({key: value}), "here.yaml")
    assert shown(value) in str(caught.value)
    assert not re.search(r"[Tt]uple|None|pattern|\^|Config", str(caught.value))


def shown(value: object) -> str:
    """A value as the messages write it."""
    return "null" if value is None else "true" if value is True else repr(value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.time_sampling", None, "= null: input should be one of uniform, stratified."),
        ("train.time_sampling", "uniforn", "= 'uniforn': input should be one of uniform, stratified."),
        ("model.classes", 10, "= 10: input should be 'auto' or 0."),
        ("model.channel_multipliers", 2, "= 2: input should be 'auto', or input should be a list."),
        ("model.channel_multipliers", [], "= []: input should be 'auto', or list should have at least 1 item."),
        (
            "generate.classes",
            [3, None],
            "= [3, null]: input should be 'all', or input should be a valid integer, or input should be "
            "text on one line.",
        ),
        ("generate.classes", [], "= []: input should be 'all', or list should have at least 1 item."),
        ("generate.guidance_interval", [1.0], "= [1.0]: input should be a longer list."),
        (
            "fid.extractors",
            ["mnist", "incepton"],
            "= ['mnist', 'incepton']: input should be 'auto', or input should be one of mnist, classifier, inception.",
        ),
        ("runtime.device", "gpu", "= 'gpu': input should be auto, cpu, cuda, cuda:0, cuda:1, …, mps."),
        ("data.source", "a\nb", "= 'a\\nb': input should be text on one line."),
        ("train", None, "= null: input should be a section with keys."),
    ],
)
def test_a_message_says_what_is_allowed(parameters: Callable[..., dict[str, Any]], key: str, value: object, words: str):
    with pytest.raises(DdpmError) as caught:
        parse_config(parameters({key: value}), "here.yaml")
    assert str(caught.value) == f"here.yaml: {key} {words}"


@pytest.mark.parametrize("key", ["surplus", "train.learning_rate", "model.surplus"])
def test_an_unknown_key_is_named(parameters: Callable[..., dict[str, Any]], key: str):
    with pytest.raises(DdpmError, match=rf"^here\.yaml: unknown key {re.escape(key)}\.$"):
        parse_config(parameters({key: 1}), "here.yaml")


@pytest.mark.parametrize("key", ["seed", "train", "train.lr"])
def test_a_missing_key_is_named(parameters: Callable[..., dict[str, Any]], key: str):
    values = parameters()
    section = values
    *sections, last = key.split(".")
    for name in sections:
        section = section[name]
    del section[last]
    with pytest.raises(DdpmError, match=rf"^here\.yaml: missing key {re.escape(key)}\.$"):
        parse_config(values, "here.yaml")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"diffusion.beta_start": 0.5, "diffusion.beta_end": 0.02}, r"beta_start \(0.5\).*beta_end \(0.02\)"),
        ({"generate.steps": 1001}, r"generate\.steps \(1001\).*diffusion\.timesteps \(1000\)"),
        ({"train.preview_steps": 30, "diffusion.timesteps": 25}, r"train\.preview_steps \(30\).*timesteps \(25\)"),
        ({"generate.trajectories": 20, "generate.num_images": 10}, r"trajectories \(20\).*num_images \(10\)"),
        ({"generate.guidance_interval": [4.0, 0.8]}, r"guidance_interval \(4.0, 0.8\).*lower end first"),
        (
            {"diffusion.schedule": "linear", "diffusion.beta_start": 0.5, "diffusion.beta_end": 0.5},
            r"the linear schedule leaves nothing of the image after 1000 timesteps: lower diffusion\.beta_end",
        ),
        ({"model.norm_groups": 3}, r"norm_groups \(3\) must divide the \d+ channels of every level"),
        (
            {"model.norm_groups": 32, "model.base_channels": 16, "model.channel_multipliers": [2, 4]},
            r"norm_groups \(32\) must divide the 16 channels",
        ),
        ({"generate.classes": [3], "model.classes": 0}, r"generate\.classes \(\[3\]\).*model\.classes to auto"),
        ({"train.label_dropout": 0.0}, r"generate\.guidance \([\d.]+\).*train\.label_dropout"),
        ({"train.label_dropout": 0.0, "model.classes": 0}, r"generate\.guidance \([\d.]+\).*train\.label_dropout"),
        (
            {"fid.extractors": [], "fid.swd": "off"},
            r"fid\.extractors is empty and fid\.swd is off, so nothing is measured",
        ),
        (
            {"fid.extractors": ["mnist"], "data.name": "fashion_mnist"},
            r"fid\.extractors \(mnist\) knows mnist alone, but data\.name is fashion_mnist.*extractors to auto",
        ),
        (
            {"diffusion.schedule": "flow", "diffusion.timesteps": 10_000, "diffusion.target": "mean"},
            r"the flow schedule adds no noise at the first .*: lower diffusion\.timesteps, or raise diffusion\.shift",
        ),
    ],
)
def test_values_that_do_not_fit_together_are_named(
    parameters: Callable[..., dict[str, Any]], changes: dict[str, Any], words: str
):
    with pytest.raises(DdpmError, match=rf"^here\.yaml: [^\n]*{words}[^\n]*\.$"):
        parse_config(parameters(changes), "here.yaml")


@pytest.mark.parametrize("value", ["x" * 10_000, ["x"] * 10_000, 16**5000], ids=["text", "list", "number"])
def test_a_long_value_is_shortened(parameters: Callable[..., dict[str, Any]], value: object):
    with pytest.raises(DdpmError, match=r"^here\.yaml: seed = ") as caught:
        parse_config(parameters({"seed": value}), "here.yaml")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("key", ["a\nb", 1, None, "x" * 10_000], ids=["two lines", "number", "null", "long"])
def test_an_odd_key_is_named_on_one_line(parameters: Callable[..., dict[str, Any]], key: object):
    with pytest.raises(DdpmError, match=r"^here\.yaml: .+\.$") as caught:
        parse_config(parameters() | {key: 1}, "here.yaml")
    assert len(str(caught.value)) < 400


def test_all_mistakes_are_named_at_once(parameters: Callable[..., dict[str, Any]]):
    with pytest.raises(DdpmError) as caught:
        parse_config(parameters({"train.lr": -1, "split.train_fraction": 2, "seed": "x"}), "here.yaml")
    assert all(key in str(caught.value) for key in ("train.lr", "split.train_fraction", "seed"))


@pytest.mark.parametrize(("text", "value"), [("1e-05", 1e-5), ("1e-5", 1e-5), ("3E-4", 3e-4), ("1", 1.0), (".5", 0.5)])
def test_a_learning_rate_is_a_number_in_every_notation(edited: Callable[[str, str], Path], text: str, value: float):
    lr = load_config(edited("lr", text)).train.lr
    assert isinstance(lr, float)
    assert lr == value


@pytest.mark.parametrize("text", ["off", "'off'", '"off"'])
def test_off_is_a_word_quoted_or_not(edited: Callable[[str, str], Path], text: str):
    assert load_config(edited("compile", text)).runtime.compile == "off"


@pytest.mark.parametrize("key", ["lr", "train_fraction", "epochs"])
def test_true_is_no_number(edited: Callable[[str, str], Path], key: str):
    with pytest.raises(DdpmError, match=key):
        load_config(edited(key, "true"))


@pytest.mark.parametrize("name", COMMITTED)
def test_old_and_new_yaml_readers_agree_on_the_committed_files(root: Path, name: str):
    new = YAML(typ="safe", pure=True).load(root / name)
    old = yaml.safe_load((root / name).read_text())
    assert old == new
    assert typed(old) == typed(new)


def typed(value: object) -> object:
    """The types of all values, nested as they are."""
    if isinstance(value, dict):
        return {key: typed(part) for key, part in value.items()}
    return [typed(part) for part in value] if isinstance(value, list) else type(value)


def test_settings_cannot_be_changed_by_accident(configure: Callable[..., Config]):
    with pytest.raises(ValueError, match="frozen"):
        configure().train.lr = 1.0


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DdpmError, match=r"nowhere\.yaml is missing: run this in the folder that holds") as caught:
        load_config(tmp_path / "nowhere.yaml")
    assert not isinstance(caught.value, MissingFile)  # else a stage would advise `dvc pull`


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"- 1\n- 2\n",
        b"train: {lr: 1\n",
        b"seed: 1\nseed: 2\n",
        b"\tseed: 1\n",
        b"seed: \xff\xfe\n",
        b"seed: 2001-99-99\n",
        b"seed: !!int x\n",
        b"seed: " + b"9" * 5000,
        b"seed: " + b"[" * 1000,
        b"seed: !!python/object/apply:os.getcwd []\n",
    ],
    ids=["empty", "list", "brace", "key twice", "tab", "no UTF-8", "date", "tag", "long number", "deep", "Python"],
)
def test_what_is_no_parameter_file_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(DdpmError, match=r"params\.yaml.*: correct it") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, DamagedFile)  # else a stage would advise `dvc pull`


@pytest.mark.parametrize(
    ("name", "every", "snapshots"),
    [
        ("best", 0, 0),
        ("last", 0, 0),
        ("epoch_0004", 2, 0),
        ("epoch_0006", 3, 0),  # the training has 5.5 epochs: of few steps each, these may be 6
        ("average", 0, 32),
    ],
)
def test_a_checkpoint_that_the_training_leaves_can_be_sampled_from(
    configure: Callable[..., Config], name: str, every: int, snapshots: int
):
    changes = {"train.keep_every_epochs": every, "train.posthoc_snapshots": snapshots}
    assert configure({"generate.checkpoint": name}, changes).generate.checkpoint == name


@pytest.mark.parametrize(
    ("name", "every", "words"),
    [
        ("epoch_0004", 0, r"not kept by a training of 5\.5 epochs with train\.keep_every_epochs \(0\)"),
        ("epoch_0004", 3, r"not kept by a training of 5\.5 epochs with train\.keep_every_epochs \(3\)"),
        ("epoch_0000", 1, "not kept by a training"),
        ("epoch_0007", 1, "not kept by a training"),
        ("bset", 1, r"written by no training: set it to best or last, .*train\.posthoc_snapshots"),
        ("epoch_4", 1, "written by no training"),
        ("epoch_00004", 1, "written by no training"),
    ],
)
def test_a_checkpoint_that_no_training_leaves_is_refused(
    parameters: Callable[..., dict[str, Any]], name: str, every: int, words: str
):
    with pytest.raises(DdpmError, match=rf"^here\.yaml: [^\n]*generate\.checkpoint \({name}\) is {words}"):
        parse_config(parameters({"generate.checkpoint": name, "train.keep_every_epochs": every}), "here.yaml")


def test_a_schedule_that_does_not_end_in_noise_is_warned_of(configure: Callable[..., Config]):
    short = {"diffusion.schedule": "linear", "diffusion.timesteps": 100}
    words = (
        r"^the linear schedule leaves 36% of .*: raise diffusion\.beta_end or diffusion\.timesteps, or set diffusion\."
    )
    with pytest.warns(UserWarning, match=words + r"zero_terminal_snr to true$"):
        configure(short)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        configure(short, {"diffusion.zero_terminal_snr": True})
        for name in SCHEDULES:
            configure({"diffusion.schedule": name})
