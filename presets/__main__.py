"""Write a preset into params.yaml: `python -m presets NAME`.

A preset is a file NAME.yaml in this folder that holds only what it changes. Comments and order of params.yaml are kept;
a key that params.yaml does not have is refused, and nothing is written. `git checkout HEAD -- params.yaml` restores the
committed settings.
"""

import argparse
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from ddpm.config import load_config, parse_config
from ddpm.utils.errors import DdpmError, one_sentence
from ddpm.utils.files import atomic_path

FOLDER = Path(__file__).parent
PARAMS = Path("params.yaml")


def merge(values: MutableMapping[str, Any], changes: MutableMapping[str, Any], name: str, key: str = "") -> None:
    """Put ``changes`` into ``values`` in place, section by section. Raises DdpmError for a key that is not there."""
    for part, change in changes.items():
        if part not in values:
            raise DdpmError(f"{name}: unknown key {key}{str(part).encode('unicode_escape').decode()}.")
        if isinstance(change, MutableMapping) and isinstance(values[part], MutableMapping):
            merge(values[part], change, name, f"{key}{part}.")
        else:
            values[part] = change


def apply(name: str, params: Path) -> None:
    """Merge the preset ``name`` into the file ``params`` and check the whole. Raises DdpmError, nothing written."""
    preset = path_of(name)
    load_config(params)
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    values = yaml.load(params)
    merge(values, read_preset(name, yaml), str(preset))
    parse_config(values, str(preset))
    with atomic_path(params) as temporary:
        yaml.dump(values, temporary)


def read_preset(name: str, yaml: YAML) -> MutableMapping[str, Any]:
    """What a preset changes, as ``yaml`` reads it. Raises DdpmError for none of that name, no YAML, and no keys."""
    preset = path_of(name)
    try:
        changes = yaml.load(preset)
    except (YAMLError, ValueError) as error:  # the latter from the conversion of a date or a number
        raise DdpmError(f"{preset} is not valid YAML ({' '.join(str(error).split())}): correct it.") from error
    if not isinstance(changes, MutableMapping):
        raise DdpmError(f"{preset} holds no keys.")
    return changes


def path_of(name: str) -> Path:
    """The file of a preset. Raises DdpmError, with those there are, where there is none."""
    preset = FOLDER / f"{name}.yaml"
    if not preset.is_file():
        raise DdpmError(f"there is no preset {name}; there are {', '.join(names())}.")
    return preset


def names() -> list[str]:
    """The presets there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def main() -> None:
    """Apply the preset named on the command line to params.yaml of the working directory."""
    parser = argparse.ArgumentParser(prog="python -m presets", description="Write a preset into params.yaml.")
    parser.add_argument("name", choices=names())
    name = parser.parse_args().name
    with one_sentence():
        apply(name, PARAMS)
    print(f"{PARAMS} holds the preset {name}: `git diff {PARAMS}` shows it, `git checkout HEAD -- {PARAMS}` undoes it.")


if __name__ == "__main__":
    main()
