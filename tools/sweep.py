"""Search settings that are best by a metric: `python -m tools.sweep 'train.lr=[0.003, 0.03, log]' --trials 20`.

A list of values is a choice among them; two numbers and log or linear, the ends of a range, whole numbers if both are;
any other value is fixed for the sweep. A YAML file of such lines may be named instead. The first trial has the present
settings, where these lie in the space; Optuna proposes the others. Each trial is a DVC experiment in a copy of the
workspace, NAME-0, NAME-1, …, for `dvc exp show` and `dvc exp apply`.

With train.distance_every set, a trial stops early whose early distance is worse than the median of the finished trials
at that step. A sweep that was stopped or killed goes on when it is called again: trainings resume, no trial is lost.
Its state lies in .ckpt/sweeps/NAME. In the end a table says which trials differ from the best by more than chance: the
95 % interval of the difference does not contain 0, see `tools.compare`.
"""

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dvc.api
import optuna
import pandas as pd
import psutil
from dvc.exceptions import DvcException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from ruamel.yaml import YAML, YAMLError

from ddpm.config import load_config, parse_config
from ddpm.report.metrics import lower_is_better
from ddpm.utils.errors import DdpmError, one_sentence
from ddpm.utils.files import read_json, write_json
from ddpm.utils.resume import KeptRun
from presets.__main__ import merge
from stages.paths import METRICS, PARAMS, PREVIEWS
from stages.resume import resume_root
from stages.summary import HEADLINE
from tools import mend_locks, run
from tools.compare import difference_interval

DISTANCES = PREVIEWS / "distance.csv"
TARGET = "summary"  # the stage that a trial ends with; the figures come when the best is applied and reproduced
POLL_SECONDS = 0.5
GRACE_SECONDS = 120.0  # for a stopped training to save
FAILURES = 2  # trials in a row that fail before the sweep does
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Pruned(Exception):
    """A trial is worse than the others so far."""


def read_space(given: Sequence[str]) -> dict[str, Any]:
    """Settings by dotted key, from ``key=value`` with YAML values, or names of YAML files of them. Raises DdpmError."""
    yaml = YAML(typ="safe", pure=True)
    space: dict[str, Any] = {}
    for text in given:
        key, is_pair, value = text.partition("=")
        try:
            found = {key: yaml.load(value)} if is_pair else yaml.load(Path(text))
        except (OSError, YAMLError, ValueError) as error:  # of a date that is none, such as 2024-13-01
            raise DdpmError(f"{text}: neither KEY=VALUE nor a YAML file that can be read.") from error
        if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
            raise DdpmError(f"{text}: no settings with dotted keys, such as `train.lr: [0.003, 0.03, log]`.")
        space |= found
    return space


def distribution(key: str, value: Any) -> BaseDistribution | None:  # noqa: ANN401
    """What Optuna proposes a setting from; None for a fixed one. Raises DdpmError for a range that is none.

    Choices are the values as text, which may be lists: see `override`.
    """
    if not _varies(value):
        return None
    if not _is_range(value):
        return CategoricalDistribution([override(choice) for choice in value])
    *ends, scale = value
    try:
        low, high = ends
        kind = IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
        return kind(low, high, log=scale == "log")
    except (TypeError, ValueError) as error:
        raise DdpmError(f"{key}={value}: a range is [low, high, log] or [low, high, linear].") from error


def _varies(value: Any) -> bool:  # noqa: ANN401
    """Whether a setting is searched: an empty list is a value, such as no `export.formats`."""
    return isinstance(value, list) and bool(value)


def _is_range(values: Sequence[Any]) -> bool:
    """Whether a list ends in the scale of a range: in log, or in linear unless it follows names, as a schedule may."""
    *ends, scale = values or [None]
    return bool(scale == "log" or (scale == "linear" and not all(isinstance(end, str) for end in ends)))


def override(value: Any) -> str:  # noqa: ANN401
    """A value as `dvc exp run -S KEY=VALUE` takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def check_space(space: Mapping[str, Any], params: Path) -> None:
    """Raise DdpmError for an unknown key, and for a value that ``params`` with the fixed settings cannot have."""

    def change(values: Any, key: str, value: Any) -> None:  # noqa: ANN401
        for part in reversed(key.split(".")):
            value = {part: value}
        merge(values, value, "the search space")

    fixed = {key: value for key, value in space.items() if not _varies(value)}
    for key, value in space.items():
        choices = value if _varies(value) else [value]
        for choice in choices[:-1] if _is_range(choices) else choices:
            values = YAML(typ="safe", pure=True).load(params)
            for each in (fixed | {key: choice}).items():
                change(values, *each)
            parse_config(values, f"{key}={override(choice)}")


def check_images(space: Mapping[str, Any], params: Path) -> None:
    """Raise DdpmError for a folder of images that the copy of the workspace, in which a trial runs, does not have."""
    data = load_config(params).data
    given = space.get("data.name", data.name), space.get("data.path", data.path)
    names, paths = (value if isinstance(value, list) else [value] for value in given)
    for path in paths if "folder" in names else ():
        kept = Path(path).is_absolute() or (
            ".." not in Path(path).parts and run("git", "ls-files", "--", path, f"{path}.dvc")
        )
        if not kept:
            raise DdpmError(
                f"data.path={path} is not in Git, so that no trial would find it: name it by an absolute path."
            )


def check_metric(metric: str, space: Mapping[str, Any], params: Path) -> None:
    """Raise DdpmError, before a trial trains, for a metric that the headline of no trial can have."""
    data = space.get("data.name", load_config(params).data.name)
    networks = [name for each in ([data] if isinstance(data, str) else data) for name in (each, f"own_{each}")]
    known = dict.fromkeys(key.replace("NETWORK", name) for key in HEADLINE for name in networks)
    if metric not in known:
        raise DdpmError(f"--metric {metric}: choose one of {', '.join(known)}.")


def check_counts(trials: int, prune_after: int) -> None:
    """Raise DdpmError for numbers that no search can have."""
    for option, given, least in (("--trials", trials, 1), ("--prune-after", prune_after, 0)):
        if given < least:
            raise DdpmError(f"{option} {given}: it must be at least {least}.")


def present(space: Mapping[str, BaseDistribution], params: Path) -> dict[str, Any] | None:
    """The settings of ``params`` as a point of the space; None where one lies outside."""
    values = YAML(typ="safe", pure=True).load(params)
    point: dict[str, Any] = {}
    for key, proposed_from in space.items():
        value: Any = values
        for part in key.split("."):
            value = value[part]
        if isinstance(proposed_from, CategoricalDistribution):
            point[key] = override(value)
            inside = point[key] in proposed_from.choices
        else:
            assert isinstance(proposed_from, IntDistribution | FloatDistribution)
            point[key] = value
            inside = isinstance(value, int | float) and proposed_from.low <= value <= proposed_from.high
        if not inside:
            return None
    return point


class Sweep(KeptRun):
    """The search ``name`` and its folder, locked against a second process. space: see `read_space`."""

    def __init__(self, name: str, space: Mapping[str, Any], metric: str, prune_after: int) -> None:
        super().__init__(resume_root().absolute() / "sweeps" / name)
        self.name, self.metric = name, metric
        found = {key: distribution(key, value) for key, value in space.items()}
        self.distributions = {key: proposed_from for key, proposed_from in found.items() if proposed_from}
        self.fixed = {key: override(value) for key, value in space.items() if not found[key]}
        self.lower = lower_is_better(metric)
        self.seed, self.head = load_config(PARAMS).seed, run("git", "rev-parse", "HEAD").strip()
        changed = hashlib.sha256(run("git", "diff", "HEAD").encode()).hexdigest()
        self.terms = {"space": dict(space), "metric": metric, "commit": self.head, "uncommitted": changed}
        self.prune_after = prune_after

    def open(self) -> optuna.Study:
        """The study, begun or continued. Raises DdpmError for one that was begun on other terms."""
        begun = self.folder / "terms.json"
        if not begun.exists():
            if run("git", "for-each-ref", f"{self.experiments}/{self.name}-*"):
                raise DdpmError(
                    f"there are experiments named {self.name}-… already: choose another --name, or remove them with "
                    "`dvc exp remove`."
                )
            shutil.rmtree(self.folder / "study", ignore_errors=True)
        elif different := [key for key, value in read_json(begun).items() if value != self.terms[key]]:
            raise DdpmError(
                f"the sweep {self.name} was begun with other terms ({', '.join(different)}), and trials of both do not "
                f"compare: choose another --name, or delete {self.folder} to forget it."
            )
        (self.folder / "study").mkdir(exist_ok=True)
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(self.folder / "study/journal.log"))),
            study_name=self.name,
            direction="minimize" if self.lower else "maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=self.prune_after),
            load_if_exists=True,
        )
        if not begun.exists():
            if point := present(self.distributions, PARAMS):
                study.enqueue_trial(point)
            write_json(begun, self.terms)
        return study

    def search(self, study: optuna.Study, trials: int) -> None:
        """Finish so many trials, first those that were interrupted. Raises DdpmError where they fail in a row."""
        unfinished = study.get_trials(states=(TrialState.RUNNING,))
        earlier = {trial.number for trial in study.get_trials(states=_FINISHED)}
        while True:
            ended = study.get_trials(states=_FINISHED)
            # What failed in an earlier call may be mended.
            states = [trial.state for trial in ended if trial.number not in earlier]
            if states[-FAILURES:] == [TrialState.FAIL] * FAILURES and not unfinished:
                log = self.folder / f"{len(study.trials) - 1}/log.txt"
                raise DdpmError(f"{FAILURES} trials in a row failed, the last as {log} says: fix that, and call again.")
            if unfinished:
                self.complete(study, Trial(study, unfinished.pop(0)._trial_id))
            elif len(ended) < trials:
                # What is proposed depends on the trials before it alone, not on where a sweep was interrupted.
                study.sampler = optuna.samplers.TPESampler(seed=(self.seed + len(study.trials)) % 2**32)
                self.complete(study, study.ask(self.distributions))
            else:
                return

    def complete(self, study: optuna.Study, trial: Trial) -> None:
        """Run a trial, or what is left of it, and tell the study."""
        said = ", ".join(f"{key}={_text(value)}" for key, value in trial.params.items())
        print(f"{self.name}-{trial.number}: {said}", flush=True)
        try:
            found = self.measure(trial)
        except Pruned:
            study.tell(trial, state=TrialState.PRUNED)
            print("  stopped early: worse than the median at this step", flush=True)
        else:
            if found is None:
                study.tell(trial, state=TrialState.FAIL)
                print(f"  failed: see {self.folder / str(trial.number) / 'log.txt'}", flush=True)
                return
            for key in ("low", "high"):
                trial.set_user_attr(key, found.get(f"{self.metric}_{key}"))
            study.tell(trial, found[self.metric])
            print(f"  {self.metric} {found[self.metric]:.4g}", flush=True)
        shutil.rmtree(self.folder / str(trial.number) / "ckpt", ignore_errors=True)

    def measure(self, trial: Trial) -> dict[str, Any] | None:
        """The headline numbers of a trial's experiment, None where it failed. Raises Pruned, DdpmError."""
        folder = self.folder / str(trial.number)
        if not self.headline(trial.number):
            try:
                with self.process(trial, folder) as process:
                    while _runs(process):
                        time.sleep(POLL_SECONDS)
                        self.report(trial, (folder / "ckpt").glob(f"train-*/files/{DISTANCES.relative_to('data')}"))
                        if trial.should_prune():
                            raise Pruned
            except Pruned:
                if not self.headline(trial.number):  # one that ended before it could be stopped counts
                    raise
        if found := self.headline(trial.number):
            if self.metric not in found:
                raise DdpmError(f"{METRICS}/headline.json has no {self.metric}: choose one of {', '.join(found)}.")
            # Also of steps that nobody watched, as a killed sweep leaves its trial running: others are judged by them.
            self.report(trial, self.recorded(trial.number))
        return found

    @contextmanager
    def process(self, trial: Trial, folder: Path) -> Iterator[psutil.Process]:
        """The `dvc exp run` of a trial, started or found running; stopped where the block is left by an exception."""
        process = _still_running(folder / "process.json")
        if not process:
            mend_locks(Path())  # the trial before may have been stopped as it wrote them
            folder.mkdir(exist_ok=True)
            settings = self.fixed | {key: _text(value) for key, value in trial.params.items()}
            command = ["dvc", "exp", "run", "--temp", "--name", f"{self.name}-{trial.number}", TARGET]
            command += [part for key, value in settings.items() for part in ("--set-param", f"{key}={value}")]
            with (folder / "log.txt").open("a") as log:
                process = psutil.Popen(
                    command,
                    env=os.environ | {"DDPM_CKPT_DIR": str(folder / "ckpt")},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C at the sweep reaches it once, from here
                    preexec_fn=_heed_interrupts,
                )
            write_json(folder / "process.json", {"pid": process.pid, "began": process.create_time()})
        try:
            yield process
            process.wait()
        except BaseException:
            _stop(process)
            raise

    def report(self, trial: Trial, files: Iterable[Path | io.StringIO]) -> None:
        """Tell Optuna the early distances in tables of `Monitor` that are new."""
        known = trial.study.trials[trial.number].intermediate_values
        for file in files:
            try:
                distances = pd.read_csv(file)
            except FileNotFoundError:  # the stage after the training has removed it
                continue
            for step, distance in distances[["step", "early_distance"]].itertuples(index=False):
                if int(step) not in known:
                    # The study may seek the largest of its metric; of distances the smallest is best.
                    trial.report(distance if self.lower else -distance, int(step))

    def recorded(self, number: int) -> Iterator[io.StringIO]:
        """The table of early distances of a trial's experiment, if there is one."""
        with suppress(DvcException, OSError):
            commit = run("git", "rev-parse", f"{self.experiments}/{self.name}-{number}").strip()
            yield io.StringIO(dvc.api.read(str(DISTANCES), rev=commit))

    @property
    def experiments(self) -> str:
        """Where DVC keeps the experiments of this commit in Git."""
        return f"refs/exps/{self.head[:2]}/{self.head[2:]}"

    def headline(self, number: int) -> dict[str, Any] | None:
        """metrics/headline.json of a trial's experiment; None where there is no such experiment."""
        commit = run(
            "git", "for-each-ref", "--format=%(objectname)", f"{self.experiments}/{self.name}-{number}"
        ).strip()
        return dict(json.loads(run("git", "show", f"{commit}:{METRICS}/headline.json"))) if commit else None


def table(trials: Sequence[FrozenTrial], metric: str, *, lower: bool) -> pd.DataFrame:
    """One row for each trial, the best first: settings, the metric, its 95 % interval, and what that says."""
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    done.sort(key=lambda trial: trial.value or 0.0, reverse=not lower)
    rows = []
    for trial in [*done, *(trial for trial in trials if trial.state != TrialState.COMPLETE)]:
        # Optuna gives one that was stopped the value of its last early distance, which is another number.
        found = {metric: trial.value if trial.state == TrialState.COMPLETE else None}
        found |= {key: trial.user_attrs.get(key) for key in ("low", "high")}
        rows.append({"trial": trial.number, **trial.params, **found, "verdict": verdict(trial, *done[:1])})
    return pd.DataFrame(rows).set_index("trial")


def verdict(trial: FrozenTrial, best: FrozenTrial | None = None) -> str:
    """What is known of a trial beside the ``best``."""
    if trial.state == TrialState.PRUNED:
        return f"stopped early at step {trial.last_step}"
    if trial.state != TrialState.COMPLETE or best is None:
        return trial.state.name.lower()
    if trial.number == best.number:
        return "best"
    a, b = (tuple(each.user_attrs.get(key) for key in ("low", "high")) for each in (best, trial))
    if None in (*a, *b):
        return "no interval"
    low, high = difference_interval((best.value, *a), (trial.value, *b))  # type: ignore[arg-type]
    return "equal within chance" if low <= 0 <= high else "worse"


def _text(value: Any) -> str:  # noqa: ANN401
    """A proposed value for the command line: choices are text already."""
    return value if isinstance(value, str) else f"{value:.6g}" if isinstance(value, float) else str(value)


def _still_running(note: Path) -> psutil.Process | None:
    """The process of a note, if that very one still runs: a killed sweep leaves its trial running."""
    if note.exists():
        written = read_json(note)
        try:
            process = psutil.Process(written["pid"])
            return process if process.create_time() == written["began"] else None
        except psutil.Error:
            pass
    return None


def _heed_interrupts() -> None:
    """Let SIGINT end this process: what a shell starts in the background ignores it, and so would what that starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _runs(process: psutil.Process) -> bool:
    """Whether a process has not ended, be it a child of this one or what a killed sweep left."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _stop(process: psutil.Process) -> None:
    """End a trial as Ctrl-C does, with all that it started: training saves first."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE_SECONDS)
            return
        except ProcessLookupError:
            return
        except psutil.TimeoutExpired:
            continue


def main() -> None:
    """Run; what the user can fix ends it with one sentence and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("space", nargs="+", metavar="KEY=VALUE", help="or a YAML file of them")
    parser.add_argument("--trials", type=int, default=20, help="in all (default 20); a larger number later adds some")
    parser.add_argument("--metric", default="fd_mnist", help="of metrics/headline.json (default fd_mnist)")
    parser.add_argument("--name", default="sweep", help="of the sweep and its experiments (default sweep)")
    parser.add_argument("--prune-after", type=int, default=4, help="finished trials before one stops early (default 4)")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: stopped."))
    _heed_interrupts()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with one_sentence():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", given.name):
            raise DdpmError(f"--name {given.name}: letters, digits, - and _ alone.")
        check_counts(given.trials, given.prune_after)
        space = read_space(given.space)
        check_space(space, PARAMS)
        check_images(space, PARAMS)
        check_metric(given.metric, space, PARAMS)
        with Sweep(given.name, space, given.metric, given.prune_after) as sweep:
            study = sweep.open()
            sweep.search(study, given.trials)
            print(table(study.trials, sweep.metric, lower=sweep.lower).to_string(float_format="{:.4g}".format))


if __name__ == "__main__":
    main()
