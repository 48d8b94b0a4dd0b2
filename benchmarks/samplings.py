"""One checkpoint, sampled in several ways: `python -m benchmarks.samplings --help`.

A row for each --sampling, which names settings of `generate` in YAML, such as `"guidance: 1.2, steps: 30"`; the others
are those of params.yaml and the preset. The images are of a replicate that no committed number is of, all rows have the
same noise, and rows can be added to the file of --json one by one.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from benchmarks.blind import torn
from benchmarks.common import arguments, check, earlier, quality, run, sampling, save, settings, show
from ddpm.utils.errors import DdpmError
from ddpm.utils.files import sha256
from ddpm.utils.runtime import choose_runtime
from stages.paths import MODEL


def changes(sampling: str) -> dict[str, Any]:
    """The settings that a --sampling names, by dotted key. Raises DdpmError for what names none."""
    try:
        found = YAML(typ="safe", pure=True).load(f"{{{sampling}}}")
    except (YAMLError, ValueError) as error:  # the latter of a date that is none
        raise DdpmError(f'--sampling "{sampling}": name settings, such as "guidance: 1.2, steps: 30".') from error
    return {f"generate.{key}": value for key, value in found.items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sampling", nargs="+", default=[""], metavar="SETTINGS", help='a row each; "": as they are')
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="default: the pipeline's")
    parser.add_argument("--preset", help="whose settings of `generate` the rows begin with")
    parser.add_argument("--images", type=int, default=5000, help="per row (default 5000)")
    parser.add_argument("--replicate", type=int, default=100, help="by whose noise (default 100)")
    given = parser.parse_args()
    check(given.images)
    common = {"generate.num_images": given.images, "generate.replicate": given.replicate, "generate.trajectories": 1}
    configs = {each: settings(common, changes(each), preset=given.preset) for each in given.sampling}
    config = configs[given.sampling[0]]
    path = given.checkpoint or MODEL / f"{config.generate.checkpoint}.safetensors"
    runtime = choose_runtime(config.runtime, float("inf"))
    beside = settings(common, preset=given.preset).generate.model_dump(mode="json")
    metadata = {"checkpoint": sha256(path), "seed": config.seed, "generate": beside} | runtime.describe()
    rows = earlier(given.json, metadata)
    known = {row["sampling"] for row in rows}
    with sampling(path, config, runtime) as (generator, sampled):
        for settings_of_row, wanted in configs.items():
            name = settings_of_row or "as set"
            if name in known:
                continue
            chosen = replace(generator, config=wanted.generate)
            images = sampled(chosen, name)
            found = quality(images, chosen.class_labels(range(1, given.images + 1)))
            rows.append({"sampling": name, "nfe": chosen.nfe} | found | {"torn_fraction": float(torn(images).mean())})
            save(rows, given.json, metadata)
            show(rows[-1:])
    show(rows)


if __name__ == "__main__":
    run(main)
