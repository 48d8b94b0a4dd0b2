"""Commands beside the pipeline."""

import subprocess
from pathlib import Path


def committed(revision: str, file: str, top: Path | None = None) -> str | None:
    """The text of a file in a Git revision of the repository ``top`` (default: here); None if it has none."""
    done = subprocess.run(("git", "show", f"{revision}:{file}"), cwd=top, capture_output=True, text=True, check=False)
    return None if done.returncode else done.stdout
