"""A folder with the model for other programs."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from ddpm.config import GenerateConfig
from ddpm.export.browser_runtime import fetch_runtime
from ddpm.export.denoise import Exported, described, evaluated, export, refusal, restore_denoise
from ddpm.export.formats import EXPORT_FORMATS
from ddpm.export.page import model_facts, write_page
from ddpm.models.checkpoint import Checkpoint
from ddpm.utils.errors import DdpmError
from ddpm.utils.files import write_json


def write_export(
    folder: Path,
    checkpoint: Checkpoint,
    name: str,
    formats: Sequence[str],
    page: str,
    settings: GenerateConfig,
    seed: int,
) -> str:
    """Write model.json, one evaluation of the network in each of the formats, and the page, into an existing folder.

    name: of the checkpoint, for messages. page: "auto" (where its runtime can be had), "required" or "off". settings,
    seed: what the page begins with. Prints each name before its file is written. Returns what was written as text, with
    sizes, differences and speeds. Raises what `export` and `write_page` do, and DdpmError where the page is required
    and its runtime cannot be had.
    """
    write_json(folder / "model.json", model_facts(checkpoint, settings, seed))
    if (why := refusal(checkpoint)) and (formats or page != "off"):
        reason = f"no files and no page: {why}."
        if page == "required":
            raise DdpmError(reason)
        return reason
    exported: list[Exported] = []
    groups = evaluated(checkpoint, settings)
    networks = {file: restore_denoise(checkpoint, name, group) for file, group in groups.items()}
    for kind, (file, denoise) in itertools.product(formats, networks.items()):
        print(f"writing {file}{EXPORT_FORMATS[kind].suffix} …", flush=True)
        exported.append(export(folder / file, denoise, kind))
    report = [described(exported, networks["denoise"])] if exported else []
    if page != "off":
        try:
            runtime = fetch_runtime()
        except DdpmError as error:
            if page == "required":
                raise
            report.append(f"no page: {error}")
        else:
            print("writing the page …", flush=True)
            written = folder if "onnx" in formats else None
            write_page(folder / "page", checkpoint, name, settings, seed, runtime, written)
            size = sum(path.stat().st_size for path in (folder / "page").rglob("*.*") if path.is_file())
            report.append(f"page: {size / 2**20:.1f} MiB")
    return "\n".join(report)
