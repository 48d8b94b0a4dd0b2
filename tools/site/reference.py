"""Pages of the reference that are made of params.yaml, of dvc.yaml and of the commands themselves."""

import contextlib
import io
import os
import re
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm.__main__ import COMMANDS
from ddpm.config import Config, read_yaml

PARAMETERS, STAGES, COMMANDS_PAGE = (f"reference/{name}.md" for name in ("parameters", "stages", "commands"))
_LINE = re.compile(r"^(?P<indent> *)(?P<key>\w+): *(?P<value>[^#]*?)(?: *# (?P<comment>.*))?$")
_EDITS = ("inpaint", "vary", "interpolate")
_COLUMNS = "100"


@dataclass
class Parameter:
    """A key of params.yaml. name: with its section; value: its default as it stands; comment: all its lines."""

    name: str
    value: str
    comment: str


def parameters(text: str) -> list[Parameter]:
    """Every key of params.yaml, sections among them with an empty value, in its order."""
    found: list[Parameter] = []
    section = ""
    for line in text.splitlines():
        if match := _LINE.match(line):
            section = section if match["indent"] else match["key"]
            name = f"{section}.{match['key']}" if match["indent"] else section
            found.append(Parameter(name, match["value"].strip(), match["comment"] or ""))
        elif found and (more := re.match(r"^ +# (.*)$", line)):
            found[-1].comment += f" {more[1]}"
    return found


def parameter_page(root: Path) -> str:
    """A section for each of params.yaml: every key with its default, the values allowed, its comment, who reads it."""
    stages, schema = read_yaml(root / "dvc.yaml")["stages"], Config.model_json_schema()
    lines = [
        "# Parameters",
        "",
        "Every key of `params.yaml`, from the file itself: its default, what is allowed, what it means, which stages"
        " run again for a change of it. `dvc exp run -S section.key=value` tries another value; a wrong one is refused"
        " before anything runs.",
    ]
    head = ["", "| key | default | allowed | meaning | read by |", "|---|---|---|---|---|"]
    for parameter in parameters((root / "params.yaml").read_text(encoding="utf-8")):
        section, _, key = parameter.name.partition(".")
        of_section = schema["properties"][section]
        if "$ref" in of_section:
            of_section = schema["$defs"][of_section["$ref"].rpartition("/")[2]]
        if not key:
            lines += ["", f"## {section}", "", _prose(parameter.comment), *head]
            if not parameter.value:
                continue
        of_key = of_section["properties"][key] if key else of_section
        readers = [_link(stage, "stages.md") for stage in stages if _reads(stages[stage], parameter.name)]
        cells = [
            f'<code id="{parameter.name}">{key or section}</code>',
            _code(parameter.value),
            allowed(of_key),
            _cell(parameter.comment),
            ", ".join(readers) or "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def allowed(schema: dict[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "enum" in schema or "const" in schema:
        return ", ".join(_code(_yaml(value)) for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(allowed(part) for part in schema["anyOf"]))
    if "description" in schema:
        return _cell(schema["description"])
    kind = schema["type"]
    if kind == "array":
        if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])}: {allowed(schema['prefixItems'][0])}"
        return f"list of {allowed(schema['items'])}"
    if kind in ("integer", "number"):
        noun = "whole number" if kind == "integer" else "number"
        bounds = [
            f"{sign} {schema[key]:,}"
            for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
            if key in schema and abs(schema[key]) < 2**63
        ]
        if "multipleOf" in schema:
            bounds.append(f"a multiple of {schema['multipleOf']}")
        return " ".join([noun, ", ".join(bounds)]).strip()
    return {"boolean": "`true`, `false`", "null": "`null`", "string": "text"}[kind]


def stage_page(root: Path) -> str:
    """A section for each stage of dvc.yaml: what it does, reads and writes."""
    stages = read_yaml(root / "dvc.yaml")["stages"]
    writers = {path: name for name, stage in stages.items() for path in _written(stage)}
    lines = [
        "# Stages",
        "",
        "The graph of `dvc.yaml`, from the file itself. `dvc repro NAME` runs a stage with all before it; one whose"
        " parameters, code and data are unchanged is skipped.",
    ]
    for name, stage in stages.items():
        reads = stage.get("deps", [])
        before = [writer for path, writer in writers.items() if any(_inside(read, path) for read in reads)]
        code = [path for path in reads if path.endswith(".py") or path.startswith("ddpm/")]
        after = [_link(writer) for writer in dict.fromkeys(before)]
        rows = {
            "after": ", ".join(after),
            "parameters": ", ".join(_code(key) for key in stage.get("params", [])),
            "reads": ", ".join(_code(path) for path in reads if path not in code),
            "writes": ", ".join(_code(path) for path in _written(stage)),
            "code": ", ".join(_code(path) for path in code),
        }
        lines += ["", f"## {name}", "", f"{stage['desc']}.", "", f"| command | {_code(stage['cmd'])} |", "|---|---|"]
        lines += [f"| {title} | {cell} |" for title, cell in rows.items() if cell]
    return "\n".join(lines) + "\n"


def command_page(root: Path) -> str:
    """The help of every command, by asking it for it."""
    lines = ["# Commands", "", "What each prints with `--help`."]
    helped: list[tuple[str, ...]] = [("ddpm",)]
    for name in COMMANDS:
        helped += [("ddpm", name), *(("ddpm", name, edit) for edit in _EDITS if name == "edit")]
    helped += [("presets",)]
    for path in sorted((root / "tools").glob("*.py")):
        if "ArgumentParser(" in path.read_text(encoding="utf-8"):
            helped.append((f"tools.{path.stem}",))
    for words in helped:
        lines += ["", f"## python -m {' '.join(words)}", "", "```text", _help(*words), "```"]
    return "\n".join(lines) + "\n"


def _help(module: str, *words: str) -> str:
    """What ``python -m module words --help`` prints, at one width everywhere."""
    argv, columns, shown = sys.argv, os.environ.get("COLUMNS"), io.StringIO()
    sys.argv, os.environ["COLUMNS"] = [module, *words, "--help"], _COLUMNS
    loaded = {
        name: sys.modules.pop(name) for name in (module, f"{module}.__main__") if name in sys.modules and "." in name
    }
    try:
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            runpy.run_module(module, run_name="__main__", alter_sys=False)
    finally:
        sys.argv = argv
        sys.modules.update(loaded)
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns
    return shown.getvalue().rstrip()


def _written(stage: dict[str, Any]) -> Iterator[str]:
    for kind in ("outs", "metrics"):
        for out in stage.get(kind, []):
            yield from out if isinstance(out, dict) else [out]


def _reads(stage: dict[str, Any], name: str) -> bool:
    section = name.partition(".")[0]
    return any(key in (name, section) or key.startswith(f"{name}.") for key in stage.get("params", []))


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _link(name: str, page: str = "") -> str:
    return f"[{name}]({page}#{name})"


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _prose(comment: str) -> str:
    return f"{comment[:1].upper()}{comment[1:]}." if comment else ""


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
