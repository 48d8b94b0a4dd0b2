"""`python -m benchmarks.against` runs two commits, each once; real runs of a small repository."""

import json
import sys
from pathlib import Path
from shutil import rmtree

from clones import REPOSITORY, commit, empty_repository, ended, run_in

from benchmarks.against import FILES

PIPELINE = f"""
stages:
  make:
    cmd: python make.py
    deps: [make.py, data/raw]
    outs: {list(FILES)}
"""
MAKE = """
import json
from pathlib import Path
values = {{"train_seconds": {0}, "generate_seconds": 2.0, "generate_nfe": 3, "fd_mnist": 0.5, "other": 1}}
for path in map(Path, {1}):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
with open("{2}/runs", "a") as runs:
    print({0}, file=runs)
"""
SAMPLE = """
import json
from ruamel.yaml import YAML
generate = YAML().load(open("params.yaml"))["generate"]
assert generate["replicates"] == 0
cost = {{"generate_seconds": {0} * generate["num_images"], "generate_nfe": 3}}
json.dump(cost, open("data/cost/generate.json", "w"))
"""


def test_each_commit_is_run_once_from_nothing_and_the_ratio_is_new_over_old(tmp_path: Path):
    folder = tmp_path / "repository"
    empty_repository(folder)
    (folder / "dvc.yaml").write_text(PIPELINE)
    (folder / "data/raw").mkdir(parents=True)
    (folder / "data/raw/images").write_text("images")
    (folder / ".gitignore").write_text("/data\n")
    (folder / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    for seconds in (8.0, 4.0):
        (folder / "make.py").write_text(MAKE.format(seconds, FILES, tmp_path))
        (folder / "stages").mkdir()
        (folder / "stages/__init__.py").touch()
        (folder / "stages/generate.py").write_text(SAMPLE.format(seconds))
        run_in(folder, "dvc", "repro", "--quiet")
        commit(folder, f"{seconds} seconds")
        rmtree(folder / "stages")  # which would hide those of the benchmark; the clones have them
    (tmp_path / "runs").unlink()
    command = (sys.executable, "-m", "benchmarks.against", "HEAD~1", "--json", "found.json")
    for _ in range(2):
        done = ended(folder, *command, PYTHONPATH=str(REPOSITORY))
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs").read_text() == "4.0\n8.0\n"
    found = json.loads((folder / "found.json").read_text())
    assert [row["train_seconds"] for row in found["rows"]] == [4.0, 8.0]
    assert found["ratio"][0]["train_seconds"] == 0.5
    assert found["ratio"][0]["repro_seconds"] > 0
    done = ended(folder, *command, "--images", "40", PYTHONPATH=str(REPOSITORY))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((folder / "found.json").read_text())
    assert [(row["images"], row["generate_seconds"]) for row in found["rows"]] == [(40, 160.0), (40, 320.0)]
    assert [row["evaluations_per_second"] for row in found["rows"]] == [0.75, 0.375]
    assert found["ratio"] == [{"generate_seconds": 0.5, "evaluations_per_second": 2.0}]
    for wrong in ("nowhere", "HEAD"):
        done = ended(folder, *command[:3], wrong, PYTHONPATH=str(REPOSITORY))
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
