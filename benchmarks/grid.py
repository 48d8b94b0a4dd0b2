"""A grid of schedules, targets, weightings and samplers as queued DVC experiments: `python -m benchmarks.grid --help`.

Each schedule × target × weighting under each seed is an experiment: a small training, whose images by every sampler are
measured (`benchmarks.cell`). They run, as many at a time as --jobs says, in a clone of HEAD below .ckpt/, so that queue
and experiments of this repository stay as they are. The clone uses this repository's cache, and has a short graph: the
split and the features of real images, which are those of HEAD for all seeds, `train`, and `cell`.

A grid that was stopped goes on: the next call queues what is not done. With --json, experiments of which the file has
rows are left out, and it is brought up to date every minute (--poll). `dvc exp show` in the clone shows all of them.
"""

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from math import isnan
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import psutil
import torch
from matplotlib.colors import LogNorm
from ruamel.yaml import YAML
from tqdm import tqdm

from benchmarks.cell import SAMPLERS
from benchmarks.common import arguments, defaults, earlier, known, run, save, settings, show
from ddpm.evaluation.features.classifier import MnistExtractor
from ddpm.evaluation.reference import Reference
from ddpm.utils.errors import DdpmError
from ddpm.utils.files import atomic_path
from presets.__main__ import merge
from stages.paths import REFERENCE
from tools import commit_of, leave_surroundings, prepared_clone
from tools import run as call

AXES = {
    "diffusion.schedule": ("linear", "cosine", "flow"),
    "diffusion.target": ("eps", "x_0", "v"),
    "train.weighting": ("simple", "min_snr"),
}
SEEDS = (0, 1, 2)
# A small network, and a run of some 30 seconds of one core; no guidance, and times of the schedule's own density: with
# the default's a schedule would decide nothing in training.
BUDGET: dict[str, Any] = {
    "model.base_channels": 16,
    "model.blocks_per_level": 1,
    "model.mid_blocks": 1,
    "model.clusters": 1,
    "train.epochs": 0.5,
    "train.batch_size": 32,
    "train.shards": 1,
    "train.time_density": "uniform",
    "train.min_snr_gamma": 5.0,
    "train.guide_fraction": 0.0,
    "train.validate_every": 10**9,
    "train.validation_images": 256,
    "train.preview_every": 0,
    "generate.num_images": 500,
    "generate.guidance": 1.0,
    "generate.autoguidance": 1.0,
    "generate.steps": 20,
}
CELL = {
    "cmd": "python -m benchmarks.cell",
    "params": ["seed", "generate"],
    "deps": ["benchmarks/cell.py", "data/model/${generate.checkpoint}.safetensors", "data/reference/mnist.npz"],
    "metrics": [{"metrics/grid.json": {"cache": False}}],
}
PATIENCE = 5  # looks: between two of them a worker prepares an experiment, or fetches its results
NAMES = tuple(key.partition(".")[2] for key in AXES)  # schedule, target, weighting

Cell = tuple[str, ...]  # a value of each of AXES


def prepare(folder: Path, changes: Mapping[str, Any]) -> None:
    """A clone of HEAD with the graph of the grid and ``changes`` of params.yaml committed, unless it is there already.

    Raises DdpmError where this repository's cache lacks the split or the features of real images.
    """
    if folder.exists():
        return
    with prepared_clone("HEAD", folder, Path(call("dvc", "cache", "dir").strip())) as part:
        yaml = YAML()
        params, graph = (yaml.load(part / name) for name in ("params.yaml", "dvc.yaml"))
        for key, value in changes.items():
            section, name = key.split(".")
            merge(params, {section: {name: value}}, "changes")
        stages = {name: graph["stages"][name] for name in ("split", "reference", "train")}
        for name in ("split", "reference"):
            stages[name]["frozen"] = True  # they have the seed among their parameters, and are to be the same for all
        yaml.dump(params, part / "params.yaml")
        yaml.dump({"stages": stages | {"cell": CELL}}, part / "dvc.yaml")
        call("git", "-C", str(part), "commit", "--quiet", "--all", "--message", "The grid")
        try:
            dvc(part, "checkout", "split", "reference")
        except DdpmError as error:
            raise DdpmError(
                "the cache lacks the split or the reference of HEAD: run `dvc repro split reference`."
            ) from error


def dvc(folder: Path, *words: str) -> str:
    """What a command of DVC prints in the clone, one thread to each job. Raises DdpmError."""
    return call("dvc", "--cd", str(folder), *words, OMP_NUM_THREADS="1")


def processes(folder: Path, command: str) -> list[psutil.Process]:
    """Those of a command of DVC in the clone: `queue-worker`, or `exec-run`, of which each runs an experiment.

    DVC asks the workers themselves: a busy one that is late counts as none.
    """
    every = psutil.process_iter(["cwd", "cmdline"])
    own = (process for process in every if Path(process.info["cwd"] or "/").is_relative_to(folder.resolve()))
    return [process for process in own if command in (process.info["cmdline"] or ())]


def clear_queue(folder: Path) -> None:
    """Kill what runs in the clone, wait for the workers to end, and empty its queue. Raises DdpmError.

    A worker that is about to end can take one more experiment without running it: also one queued meanwhile. For DVC
    it then runs for ever, and `dvc exp show` fails, until `dvc queue stop --kill`, without workers, marks it as failed.
    """
    dvc(folder, "queue", "remove", "--queued")
    dvc(folder, "queue", "stop", "--kill")
    for worker in psutil.wait_procs(processes(folder, "queue-worker"), timeout=120)[1]:
        worker.kill()
    dvc(folder, "queue", "stop", "--kill")
    dvc(folder, "queue", "remove", "--failed", "--success")


def enqueue(folder: Path, wanted: Sequence[Cell], seeds: Sequence[int], done: Collection[tuple[Any, ...]]) -> None:
    """Queue an experiment for each cell and seed that is neither done nor in the clone. Raises DdpmError."""
    known = {*done, *((*cell, seed) for cell, seed, _, _ in experiments(folder))}
    for cell in tqdm(wanted, desc="queue", unit="cell"):
        if missing := [str(seed) for seed in seeds if (*cell, seed) not in known]:
            given = [*(f"{key}={value}" for key, value in zip(AXES, cell, strict=True)), f"seed={','.join(missing)}"]
            dvc(folder, "exp", "run", "--queue", *(word for each in given for word in ("--set-param", each)), "cell")


def start(folder: Path, jobs: int) -> None:
    """See to it that so many workers are at the queue; they end with it. Raises DdpmError where DVC fails thrice."""
    command = ("dvc", "--cd", str(folder), "queue", "start", "--jobs", str(jobs))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for seconds in (5, 20, 0):
        # Not through a pipe: workers keep what their starter writes to open, and reading it would wait for their end.
        with TemporaryFile("w+") as output:
            if not subprocess.run(command, stdout=output, stderr=output, env=environment, check=False).returncode:
                return
            output.seek(0)
            said = " ".join(output.read().split())
        time.sleep(seconds)
    raise DdpmError(f"`{' '.join(command)}` failed: {said}")


def shown(folder: Path) -> list[dict[str, Any]]:
    """The experiments by `dvc exp show`, asked again for two minutes where it fails. Raises DdpmError.

    It lists the running ones first and reads them after: one that begins or ends in between fails it, or comes without
    its parameters.
    """
    for seconds in (2, 5, 10, 20, 30, 60, 0):
        try:
            commits = json.loads(dvc(folder, "exp", "show", "--json"))
            found = [each for commit in commits for each in commit.get("experiments") or ()]
            if all(each["revs"][0]["data"] and each["revs"][0]["data"]["params"] for each in found):
                return found
            error = DdpmError(f"`dvc --cd {folder} exp show` lists experiments without parameters.")
        except DdpmError as failure:
            error = failure
        time.sleep(seconds)
    raise error


def experiments(folder: Path) -> Iterator[tuple[Cell, int, str, dict[str, dict[str, float]]]]:
    """Of each: its cell, seed, state (queued, running, failed or success) and numbers by sampler, {} before its end."""
    for experiment in shown(folder):
        data, executor = experiment["revs"][0]["data"], experiment["executor"]
        params = data["params"]["params.yaml"]["data"]
        cell = tuple(params[section][name] for section, name in (key.split(".") for key in AXES))
        state = executor["state"] if executor else "success"
        numbers = data["metrics"]["metrics/grid.json"]["data"] if state == "success" else {}
        yield cell, params["seed"], state, numbers


def rows_of(cell: Cell, seed: int, numbers: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """A row for each sampler of an experiment."""
    common = dict(zip(NAMES, cell, strict=True)) | {"seed": seed}
    return [common | {"sampler": sampler} | found for sampler, found in numbers.items()]


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row is of: its cell, seed and sampler."""
    return tuple(row[name] for name in (*NAMES, "seed", "sampler"))


def complete(rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> pd.DataFrame:
    """The rows of the cells that have all of these seeds, and of those seeds alone."""
    table = pd.DataFrame(rows, columns=None if rows else [*NAMES, "seed", "sampler", "fd_mnist"])
    table = table[table.seed.isin(seeds)]
    return table[table.groupby(list(NAMES)).seed.transform("nunique") == len(seeds)]


def cells(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each cell: the Fréchet distance by sampler, mean ± standard deviation over the seeds."""
    spread = table.groupby([*NAMES, "sampler"], sort=False).fd_mnist.agg(["mean", "std"])
    spread["std"] = [f" ± {std:.2g}" * (not isnan(std)) for std in spread["std"]]  # one seed has no deviation
    text = spread.apply(lambda row: f"{row['mean']:.3g}{row['std']}", axis=1)
    return text.unstack(sort=False).reset_index().to_dict("records") if len(table) else []


def effects(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each value of each axis: the geometric mean of the distance over all else, of complete cells.

    fd_mnist: its mean over the seeds; std: its standard deviation over them; best: in which fraction of the
    combinations of all else this value has the lowest distance of its axis.
    """
    axes, log, rows = (*NAMES, "sampler"), np.log(table.fd_mnist), []
    for axis in axes if len(table) else ():
        of_seeds = np.exp(log.groupby([table[axis], table.seed]).mean()).unstack()
        others = [table[name] for name in (*axes, "seed") if name != axis]
        best = table[axis].loc[log.groupby(others).idxmin()].value_counts(normalize=True)
        for value in table[axis].unique():
            mean, std = float(of_seeds.loc[value].mean()), of_seeds.loc[value].std()
            row = {"axis": axis, "value": value, "fd_mnist": mean, "std": known(std)}
            rows.append(row | {"best": float(best.get(value, 0.0))})
    return rows


def plot(table: pd.DataFrame, floor: float, path: Path) -> None:
    """A panel for each sampler: targets and weightings down, schedules across; the mean distance over the seeds."""
    means = table.groupby(["sampler", *NAMES], sort=False).fd_mnist.mean()
    norm, samplers = LogNorm(means.min(), means.max()), table.sampler.unique()
    figure, axes = plt.subplots(1, len(samplers), figsize=(13, 5), layout="constrained", sharey=True, squeeze=False)
    for name, panel in zip(samplers, axes[0], strict=True):
        grid = means[name].unstack("schedule", sort=False)
        image = panel.imshow(grid, cmap="viridis_r", norm=norm, aspect="auto")
        for (y, x), value in np.ndenumerate(grid):
            colour = "white" if norm(value) > 0.5 else "black"
            panel.text(x, y, f"{value:.3g}", ha="center", va="center", fontsize=8, color=colour)
        panel.set_title(name)
        panel.set_xticks(range(len(grid.columns)), grid.columns)
        panel.set_yticks(range(len(grid)), [", ".join(line) for line in grid.index])
    figure.colorbar(image, ax=axes, label=f"Fréchet distance (fd_mnist); as many real images: {floor:.2g}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def main() -> None:
    parser = arguments(__doc__)
    for name, values in zip(NAMES, AXES.values(), strict=True):
        parser.add_argument(f"--{name}s", nargs="+", default=values, help=f"default {' '.join(values)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help=f"default {' '.join(map(str, SEEDS))}")
    parser.add_argument("--epochs", type=float, default=BUDGET["train.epochs"], help="of a training (default 0.5)")
    parser.add_argument("--images", type=int, default=BUDGET["generate.num_images"], help="a sampler (default 500)")
    parser.add_argument("--jobs", type=int, default=2, help="experiments at a time (default 2)")
    parser.add_argument("--poll", type=float, default=60.0, help="seconds between two looks (default 60)")
    parser.add_argument("--plot", type=Path, metavar="PNG")
    given = parser.parse_args()
    budget = BUDGET | {"train.epochs": given.epochs, "generate.num_images": given.images}
    metadata = {"budget": budget, "samplers": SAMPLERS} | defaults(budget)
    rows = {key_of(row): row for row in earlier(given.json, metadata)}
    wanted = [(*rest, weighting) for weighting, *rest in product(given.weightings, given.schedules, given.targets)]
    for cell in wanted:
        settings(budget, dict(zip(AXES, cell, strict=True)))
    if given.images <= (dimensions := MnistExtractor(torch.device("cpu")).dimensions):
        raise DdpmError(f"--images {given.images}: the distance needs more than {dimensions} of them.")
    leave_surroundings()
    folder = Path(".ckpt/grid").absolute() / f"{commit_of('HEAD')[:12]}-{given.epochs:g}-{given.images}"
    prepare(folder, budget)
    clear_queue(folder)  # of what a call that was stopped has left
    enqueue(folder, wanted, given.seeds, {key[:-1] for key in rows})
    idle = 0  # successive looks at which experiments run by DVC's account, and no process runs any
    with tqdm(total=len(wanted) * len(given.seeds), desc="grid", unit="experiment") as progress:
        while True:
            states, nobody_works = Counter[str](), not processes(folder, "queue-worker")
            working = processes(folder, "exec-run")
            for cell, seed, state, numbers in experiments(folder):
                states[state] += 1
                rows |= {key_of(row): row for row in rows_of(cell, seed, numbers)}
            rows = dict(sorted(rows.items()))  # experiments end in any order
            table = complete(list(rows.values()), given.seeds)
            save(list(rows.values()), given.json, metadata | {"cells": cells(table), "effects": effects(table)})
            progress.update(len({key[:-1] for key in rows}) - progress.n)
            if not states["queued"] + states["running"]:
                break
            idle = 0 if working or not states["running"] else idle + 1
            if states["running"] and (nobody_works or idle >= PATIENCE):
                # Left by a worker that was killed or took it as it ended; another that has done its own may stay on.
                clear_queue(folder)
                idle = 0
                enqueue(folder, wanted, given.seeds, {key[:-1] for key in rows})
            start(folder, given.jobs)
            time.sleep(given.poll)
    show(effects(table))
    if given.plot and len(table):
        plot(table, Reference.load(folder / REFERENCE / "mnist.npz").frechet_floor(given.images), given.plot)
    if states["failed"]:
        raise DdpmError(f"{states['failed']} experiments failed: `dvc --cd {folder} queue logs` NAME says why of each.")


if __name__ == "__main__":
    run(main)
