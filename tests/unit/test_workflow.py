"""The workflows: what they call exists, what they may do is little, and the comment of the checks says what changed."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from clones import REPOSITORY, commit, copy_working_tree, run_in, start_history, surroundings
from dvc.cli import DvcParserError
from dvc.cli.parser import get_main_parser
from ruamel.yaml import YAML

from presets.__main__ import names

FILES = sorted((REPOSITORY / ".github/workflows").iterdir())
CHECKS, DOCS, STRESS = WORKFLOWS = [YAML(typ="safe", pure=True).load(file) for file in FILES]
STEPS: list[dict[str, Any]] = [
    step for workflow in WORKFLOWS for job in workflow["jobs"].values() for step in job["steps"]
]
SCRIPTS = [step["run"] for step in STEPS if "run" in step]
# As GitHub starts a script.
SHELL = ("bash", "--noprofile", "--norc", "-e")


def commands(script: str) -> list[list[str]]:
    """The commands of a script, without what redirects their output."""
    found: list[list[str]] = [[]]
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        parts = iter(words)
        for word in parts:
            if word in ("|", "||", "&&", ";"):
                found.append([])
            elif word.startswith(">"):
                next(parts)
            else:
                found[-1].append(word)
        found.append([])
    return list(filter(None, found))


def check(program: str, *arguments: str) -> None:
    """Fail for a command that is not there, or does not take its arguments."""
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert arguments, "the default target may change"
        assert set(arguments) <= set(targets)
    elif program == "python":
        module, preset = arguments[1:]
        assert (arguments[0], module) == ("-m", "presets")
        assert preset in names()
    elif program == "dvc":
        get_main_parser().parse_args(arguments)
    else:
        assert program in ("cat", "echo", "gh", "printf")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_exists(script: str):
    subprocess.run([*SHELL, "-n"], input=script, text=True, check=True)
    for command in commands(script):
        check(*command)


@pytest.mark.parametrize(
    "command", ["make tests", "make", "python -m presets smoky", "dvc metrics diff --markdown", "dvc metric", "curl"]
)
def test_a_command_that_does_not_exist_is_noticed(command: str):
    with pytest.raises((AssertionError, DvcParserError)):
        check(*shlex.split(command))


def test_the_tests_the_smoke_preset_and_every_week_the_long_tests_run():
    every = [" ".join(command) for script in SCRIPTS for command in commands(script)]
    assert "make test" in every
    assert every.index("python -m presets smoke") + 1 == every.index("dvc repro")
    assert STRESS["on"].keys() == {"schedule", "workflow_dispatch"}
    assert [step["run"] for step in STRESS["jobs"]["stress"]["steps"] if "run" in step] == ["make stress"]


def test_actions_are_pinned_and_know_the_projects_python():
    lines = [line for file in FILES for line in file.read_text().splitlines()]
    uses = [line.split("uses: ")[1] for line in lines if "uses: " in line]
    assert len(uses) == len([step for step in STEPS if "uses" in step]) == 10
    assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action) for action in uses)
    assert len(set(uses)) == len({action.partition("@")[0] for action in uses}) == 4, "one version each"
    versions = {step["with"]["python-version"] for step in STEPS if "python-version" in step.get("with", {})}
    of_the_lock = set(re.findall(r"--python-version ([\d.]+)", (REPOSITORY / "Makefile").read_text()))
    assert versions == of_the_lock | {"${{ matrix.python }}"}
    assert of_the_lock < set(CHECKS["jobs"]["test"]["strategy"]["matrix"]["python"]), "the tests run by a newer one too"


def test_only_the_comment_and_the_pages_may_write_and_no_script_holds_what_a_stranger_wrote():
    assert set(CHECKS["on"]) == {"push", "pull_request"}
    assert DOCS["on"] == {"push": {"branches": ["main"]}}, "a pull request publishes nothing"
    assert all(workflow["permissions"] == {"contents": "read"} for workflow in WORKFLOWS)
    jobs = CHECKS["jobs"] | DOCS["jobs"] | STRESS["jobs"]
    assert {name: job["permissions"] for name, job in jobs.items() if "permissions" in job} == {
        "pipeline": {"contents": "read", "pull-requests": "write"},
        "publish": {"contents": "read", "id-token": "write", "pages": "write"},
    }
    assert all("${{" not in script for script in SCRIPTS)
    assert [step["name"] for step in STEPS if "GH_TOKEN" in step.get("env", {})] == ["comment"]
    assert all(not step["with"]["persist-credentials"] for step in STEPS if "checkout" in step.get("uses", ""))


def test_what_is_published_is_what_the_build_writes():
    (artifact,) = [step["with"]["path"] for step in STEPS if "upload-pages" in step.get("uses", "")]
    assert f"site_dir: {artifact}\n" in (REPOSITORY / "mkdocs.yml").read_text()
    assert DOCS["jobs"]["publish"]["if"] == "vars.PAGES == 'on'"


@pytest.fixture(scope="module")
def pull_request(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose commit has another distance and one parameter fewer than the base branch."""
    origin, clone = (tmp_path_factory.mktemp("pull") / name for name in ("origin", "clone"))
    copy_working_tree(origin)
    headline = origin / "metrics/headline.json"
    headline.write_text(json.dumps({"fd_mnist": 0.75, "parameters": 12, "label_accuracy": 0.99}))
    start_history(origin, "base")
    run_in(origin, "git", "checkout", "--quiet", "-b", "better")
    headline.write_text(json.dumps({"fd_mnist": 0.5, "parameters": 11, "label_accuracy": 0.99}))
    commit(origin, "better")
    run_in(origin, "git", "clone", "--quiet", str(origin), str(clone))
    return clone


def run_step(name: str, folder: Path, scratch: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script of a step as GitHub does, with a `gh` that notes its arguments and fails to edit a comment."""
    gh = scratch / "gh"
    gh.write_text(f'#!/bin/sh\necho "$@" >> {scratch}/calls\ncase "$*" in *--edit-last*) exit 1; esac\n')
    gh.chmod(0o755)
    (step,) = (step for step in STEPS if step.get("name") == name)
    files = {"RUNNER_TEMP": str(scratch), "GITHUB_STEP_SUMMARY": str(scratch / "summary")}
    environment = surroundings(**files, **variables)
    environment["PATH"] = f"{scratch}:{environment['PATH']}"
    assert set(step["env"]) - {"GH_TOKEN"} == set(variables)
    return subprocess.run(
        [*SHELL, "-o", "pipefail", "-c", step["run"]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_comment_is_a_table_of_what_changes_against_the_base_branch(pull_request: Path, tmp_path: Path):
    assert run_step("metrics", pull_request, tmp_path, BASE="main").returncode == 0
    body = (tmp_path / "metrics.md").read_text()
    assert re.findall(r"^\| (\w+) +\| ([\d.]+) +\| ([\d.]+) +\| (-?[\d.]+) +\|$", body, re.MULTILINE) == [
        ("fd_mnist", "0.75", "0.5", "-0.25"),
        ("parameters", "12", "11", "-1"),
    ]
    assert (tmp_path / "summary").read_text() == body
    assert "\n\n| Metric " in body, "a table of Markdown begins after an empty line"


def test_a_base_that_is_not_there_fails(pull_request: Path, tmp_path: Path):
    done = run_step("metrics", pull_request, tmp_path, BASE="nowhere")
    assert done.returncode != 0
    assert "nowhere" in done.stderr


def test_a_first_comment_is_made_where_there_is_none_to_edit(pull_request: Path, tmp_path: Path):
    assert run_step("comment", pull_request, tmp_path, NUMBER="7").returncode == 0
    file = tmp_path / "metrics.md"
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"pr comment 7 --edit-last --body-file {file}",
        f"pr comment 7 --body-file {file}",
    ]
