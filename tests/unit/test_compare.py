import json
from pathlib import Path

import numpy as np
import pytest

from ddpm.utils.errors import DdpmError
from tools.compare import compare, difference_interval, verdict


def test_the_interval_of_a_difference_is_the_normal_one(rng: np.random.Generator):
    # Means of 400 normal values each: the interval of their difference is known.
    half = 1.96 / 20
    found = difference_interval((1.0, 1.0 - half, 1.0 + half), (1.5, 1.5 - half, 1.5 + half))
    assert found == pytest.approx((0.5 - 2**0.5 * half, 0.5 + 2**0.5 * half), rel=1e-12)


def test_it_holds_the_true_difference_as_often_as_it_says(rng: np.random.Generator):
    means = rng.normal([1.0, 1.3], 0.1, size=(4000, 2))
    runs = [[(value, value - 0.196, value + 0.196) for value in pair] for pair in means]
    held = [low <= 0.3 <= high for low, high in (difference_interval(a, b) for a, b in runs)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_better_is_lower_for_distances_and_higher_for_shares():
    assert verdict("fd_mnist", (-0.5, -0.1)) == "B is better"
    assert verdict("kd_mnist", (0.1, 0.5)) == "A is better"
    assert verdict("recall_mnist", (0.1, 0.5)) == "B is better"
    assert verdict("sure_share", (-0.5, -0.1)) == "A is better"
    assert verdict("fd_mnist", (-0.1, 0.1)) == "no difference that counts"


def write_run(folder: Path, fd: float, images: int = 10_000) -> str:
    folder.mkdir()
    numbers = {"images": images, "fd_mnist": fd, "fd_mnist_low": fd - 0.3, "fd_mnist_high": fd + 0.4, "other": 1.0}
    protocol = {"mnist": {"images": images}, "inception": "skipped", "versions": {"torch": "2"}}
    (folder / "fid.json").write_text(json.dumps({**numbers, "protocol": protocol}))
    return str(folder)


def test_two_runs_are_compared_number_by_number(tmp_path: Path):
    a, b, c = (write_run(tmp_path / name, fd) for name, fd in (("a", 2.0), ("b", 2.3), ("c", 1.2)))
    (row,) = compare(a, b)
    assert row[:4] == ("fd_mnist", "2", "2.3", "0.3")
    assert row[-1] == "no difference that counts"
    assert compare(a, c)[0][-1] == "B is better"


def test_runs_that_were_not_measured_alike_are_refused(tmp_path: Path):
    a, b = write_run(tmp_path / "a", 2.0), write_run(tmp_path / "b", 2.0, images=500)
    with pytest.raises(DdpmError, match=r"not measured alike.*mnist"):
        compare(a, b)
    with pytest.raises(DdpmError, match="nowhere is neither a folder nor a Git revision"):
        compare(a, "nowhere")
    (tmp_path / "b/fid.json").write_text('{"fd_mnist": 1.0}')
    with pytest.raises(DdpmError, match="does not say how it was measured"):
        compare(a, b)
