"""One checkpoint, sampled in several ways: `python -m benchmarks.samplings`."""

import shutil
import sys
from pathlib import Path

import pytest
from clones import ended, run_in, small_run

from ddpm.utils.files import read_json

pytestmark = pytest.mark.long

COMMAND = (sys.executable, "-m", "benchmarks.samplings", "--images", "200", "--json", "found.json", "--sampling")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, raw: Path) -> Path:
    """The small run."""
    folder = tmp_path_factory.mktemp("samplings") / "repository"
    return shutil.copytree(small_run(tmp_path_factory.getbasetemp(), raw).folder, folder, symlinks=True)


def test_each_sampling_is_a_row_and_those_that_are_there_stay(repository: Path):
    run_in(repository, *COMMAND, "guidance: 1, autoguidance: 1", "guidance: 2, guidance_interval: [0, 1000000000]")
    rows = read_json(repository / "found.json")["rows"]
    assert [row["nfe"] for row in rows] == [3, 6]
    assert rows[0]["fd_mnist"] != rows[1]["fd_mnist"]
    assert all(0 <= row[key] <= 1 for row in rows for key in ("label_accuracy", "torn_fraction", "recall"))
    run_in(repository, *COMMAND, "guidance: 1, autoguidance: 1", "guidance: 1, autoguidance: 1, steps: 2")
    found = read_json(repository / "found.json")["rows"]
    assert found[:2] == rows
    assert [row["nfe"] for row in found[2:]] == [2]


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ("guidance: [1", 'error: --sampling "guidance: [1": name settings, such as "guidance: 1.2, steps: 30".'),
        ("steps: 2024-13-01", "name settings, such as"),
        ("guidence: 1", "unknown key generate.guidence"),
        ("steps: 0", "generate.steps = 0"),
    ],
)
def test_a_sampling_that_is_none_is_refused_before_the_first(repository: Path, sampling: str, said: str):
    done = ended(repository, *COMMAND, "", sampling)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
