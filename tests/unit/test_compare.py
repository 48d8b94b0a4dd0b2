import json
from pathlib import Path

import numpy as np
import pytest
from clones import commit, empty_repository, run_in

from ddpm.utils.errors import DdpmError
from tools.compare import compare, difference_interval, read_whole_run, verdict


def test_the_interval_of_a_difference_is_the_normal_one():
    # Means of 400 normal values each: the interval of their difference is known.
    half = 1.96 / 20
    found = difference_interval((1.0, 1.0 - half, 1.0 + half), (1.5, 1.5 - half, 1.5 + half))
    assert found == pytest.approx((0.5 - 2**0.5 * half, 0.5 + 2**0.5 * half), rel=1e-12)


def test_it_holds_the_true_difference_as_often_as_it_says(rng: np.random.Generator):
    means = rng.normal([1.0, 1.3], 0.1, size=(4000, 2))
    runs = [[(value, value - 0.196, value + 0.196) for value in pair] for pair in means]
    held = [low <= 0.3 <= high for low, high in (difference_interval(a, b) for a, b in runs)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_better_is_lower_for_distances_and_higher_for_fractions():
    assert verdict("fd_mnist", (-0.5, -0.1)) == "B is better"
    assert verdict("kd_mnist", (0.1, 0.5)) == "A is better"
    assert verdict("recall_mnist", (0.1, 0.5)) == "B is better"
    assert verdict("confident_fraction", (-0.5, -0.1)) == "A is better"
    assert verdict("swd", (-0.5, -0.1)) == verdict("ambiguous_fraction", (-0.2, -0.1)) == "B is better"
    assert verdict("generate_seconds", (-0.2, -0.1)) == verdict("parameters", (-2, -1)) == "B is better"
    assert verdict("fd_mnist", (-0.1, 0.1)) == "no difference that counts"


def numbers(fd: float, images: int = 10_000) -> str:
    """The text of a fid.json."""
    values = {"images": images, "fd_mnist": fd, "fd_mnist_low": fd - 0.3, "fd_mnist_high": fd + 0.4, "other": 1.0}
    # A number may be without an interval, and a feature network may be left out.
    values |= {"kd_mnist": fd, "kd_mnist_low": None, "kd_mnist_high": None, "recall_mnist": 0.5}
    protocol = {"some_network": {"images": images}, "versions": {"torch": "2"}, "seed": images}
    return json.dumps({**values, "protocol": protocol})


def write_run(folder: Path, text: str) -> str:
    folder.mkdir()
    (folder / "fid.json").write_text(text)
    return str(folder)


def test_two_runs_are_compared_number_by_number(tmp_path: Path):
    a, b, c = (write_run(tmp_path / name, numbers(fd)) for name, fd in (("a", 2.0), ("b", 2.3), ("c", 1.2)))
    table = compare(a, b)
    assert list(table.index) == ["fd_mnist"]
    assert list(table.loc["fd_mnist"])[:3] == pytest.approx([2.0, 2.3, 0.3])
    assert table["verdict"]["fd_mnist"] == "no difference that counts"
    assert compare(a, c)["verdict"]["fd_mnist"] == "B is better"


def test_runs_that_were_not_measured_alike_are_refused(tmp_path: Path):
    a, b = write_run(tmp_path / "a", numbers(2.0)), write_run(tmp_path / "b", numbers(2.0, images=500))
    with pytest.raises(DdpmError, match=r"not measured alike.*some_network"):
        compare(a, b)
    (tmp_path / "b/fid.json").write_text('{"fd_mnist": 1.0}')
    with pytest.raises(DdpmError, match="does not say how it was measured"):
        compare(a, b)
    (tmp_path / "b/fid.json").write_text('{"fd_mnist": 1.0, "protocol": {}}')
    with pytest.raises(DdpmError, match="no number with an interval in common"):
        compare(a, b)


def test_of_images_that_were_measured_with_other_labels_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    numbers = {"fd": 1.0, "fd_low": 0.9, "fd_high": 1.1}
    a, b, c = (
        write_run(tmp_path / name, json.dumps({**numbers, "protocol": {"labels": given}}))
        for name, given in (("a", "class and cluster"), ("b", "cluster"), ("c", "cluster"))
    )
    compare(a, b)
    assert capsys.readouterr().err == (
        f"The labels that images were measured with: class and cluster in {a}, cluster in {b}\n"
    )
    compare(b, c)
    assert not capsys.readouterr().err


def test_runs_of_other_data_or_by_another_classifier_are_refused(tmp_path: Path):
    values = {"label_accuracy": 0.9, "label_accuracy_low": 0.8, "label_accuracy_high": 1.0}
    swd = {"swd": 9.0, "swd_low": 8.0, "swd_high": 10.0}

    def written(name: str, numbers: dict[str, float], **protocol: object) -> str:
        return write_run(tmp_path / name, json.dumps({**numbers, "protocol": protocol}))

    digits = written("digits", values, mnist={"confident": "one class at 0.9"})
    garments = written("garments", values, fashion_mnist={"confident": "one class at 0.9"})
    with pytest.raises(DdpmError, match=r"digits .* classifier of mnist, .*garments by that of fashion_mnist"):
        compare(digits, garments)
    icons = written("icons", swd, swd={"reference_sha256": "a"})
    with pytest.raises(DdpmError, match=r"digits .* classifier of mnist, .*icons by that of nothing"):
        compare(digits, icons)
    better = written("better", {key: value - 5 for key, value in swd.items()}, swd={"reference_sha256": "a"})
    assert compare(icons, better)["verdict"]["swd"] == "B is better"
    with pytest.raises(DdpmError, match=r"differ in protocol\.swd"):
        compare(icons, written("others", swd, swd={"reference_sha256": "b"}))


def test_a_run_is_a_revision_or_the_name_of_an_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    top = tmp_path / "top"
    empty_repository(top)
    monkeypatch.chdir(top)
    (top / "metrics").mkdir()
    (top / "dvc.yaml").write_text(
        "stages: {fid: {cmd: 'cp ${run} metrics/fid.json', outs: [metrics/fid.json: {cache: false}]}}"
    )
    for name, fd in (("a", 2.0), ("b", 1.2)):
        (top / name).write_text(numbers(fd))
    (top / "params.yaml").write_text("run: a\n")
    run_in(top, "dvc", "repro", "--quiet")
    commit(top, "run a")
    run_in(top, "dvc", "exp", "run", "--quiet", "--name", "second-run", "--set-param", "run=b")
    table = compare("HEAD", "second-run")
    assert list(table.loc["fd_mnist"])[:2] == [2.0, 1.2]
    assert table["verdict"]["fd_mnist"] == "B is better"
    assert [read_whole_run(name).parameters for name in ("HEAD", "second-run")] == [{"run": "a"}, {"run": "b"}]
    assert read_whole_run("second-run").numbers["fd_mnist"] == 1.2
    with pytest.raises(DdpmError, match="nowhere is neither a Git revision nor the name of an experiment"):
        compare("HEAD", "nowhere")
