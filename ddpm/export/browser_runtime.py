"""ONNX Runtime for browsers: from the npm package `onnxruntime-web`, verified, and kept on this machine.

`python -m ddpm.export.browser_runtime` fetches it ahead, for machines that will be offline.
"""

import os
from pathlib import Path

from ddpm.data.fetching import npm_files
from ddpm.utils.errors import DamagedFile, DdpmError, one_sentence
from ddpm.utils.files import atomic_path, sha256

PACKAGE = "onnxruntime-web@1.30.0"
FILES = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}


def cached_runtime() -> Path:
    """Where the files are kept between runs: below $XDG_CACHE_HOME, else ~/.cache."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "ddpm-mnist" / PACKAGE


def fetch_runtime() -> Path:
    """The folder with the verified `FILES`; downloads them where they are not kept yet.

    Raises DdpmError where they cannot be had, DamagedFile for a package of another content.
    """
    folder = cached_runtime()
    if all((folder / name).is_file() and sha256(folder / name) == digest for name, digest in FILES.items()):
        return folder
    try:
        contents = npm_files(PACKAGE, {f"dist/{name}": digest for name, digest in FILES.items()})
    except DamagedFile:
        raise
    except DdpmError as error:
        reason = " ".join(str(error).split())
        raise DdpmError(
            f"the page needs the npm package {PACKAGE}, which is not on this machine yet ({reason}): install npm, "
            "connect once to the network, or set export.page to off."
        ) from error
    try:
        for file, content in contents.items():
            with atomic_path(folder / Path(file).name) as temporary:
                temporary.write_bytes(content)
    except OSError as error:
        raise DdpmError(
            f"the npm package {PACKAGE}, which the page needs, cannot be kept in {folder} ({error.strerror}): name "
            "another folder in XDG_CACHE_HOME, or set export.page to off."
        ) from error
    return folder


if __name__ == "__main__":
    with one_sentence():
        print(fetch_runtime())
