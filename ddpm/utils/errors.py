"""The exceptions whose text is meant for the person at the keyboard, and the one way a command ends with them."""

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# The words of PyTorch's allocators, of cuDNN for a convolution, and of all of CUDA's libraries.
_LACKING_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "unable to find an engine to execute this computation",
    "ALLOC_FAILED",
)


class DdpmError(Exception):
    """A mistake the user can fix. Its message is one sentence that names the file or key and the fix."""


class MissingFile(DdpmError):
    """A file that should be there is not. The message names it; how to get it depends on who asked for it."""


class DamagedFile(DdpmError):
    """A file is there but cannot be what it should be. The message names it and what is wrong."""


def first_of(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """Some of many things for a message: "a, b, c, …"."""
    return separator.join(items[:most]) + f"{separator}…" * (len(items) > most)


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception is for want of memory: torch raises RuntimeErrors that only their text tells apart.

    So is one that was raised in handling such a one, as by a CUDA graph that is left unrecorded, or in another process.
    """
    if isinstance(error, MemoryError) or any(text in str(error) for text in _LACKING_MEMORY):
        return True
    before = error.__cause__ or error.__context__
    return before is not None and lacks_memory(before)


@contextmanager
def one_sentence(restore: str = "", need_less: str = "close other programs") -> Iterator[None]:
    """End the process with one sentence and exit status 1 for what the user can fix; bugs keep their traceback.

    restore: how a missing or damaged file is restored, appended to the message that names the file. need_less: how to
    do with less memory.
    """
    try:
        yield
    except (MissingFile, DamagedFile) as error:
        sys.exit(f"error: {str(error).rstrip('.')}{f': {restore}' if restore else ''}.")
    except DdpmError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # what a library failed to clean up after Ctrl-C
            sys.exit("error: interrupted.")
        path, reason = error.filename or "a file", error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"the disk is full ({reason}): free some space and run the command again"
            sys.exit(f"error: {path} could not be written, {reason}.")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            sys.exit(f"error: {path} cannot be used ({reason}): give this user the right to read and write it.")
        sys.exit(f"error: {path}: {reason}.")
    except (MemoryError, RuntimeError) as error:
        if (full := os.strerror(errno.ENOSPC)) in str(error):  # as of torch's compiler, whose cache is in files
            sys.exit(f"error: the disk is full ({full}): free some space and run the command again.")
        if not lacks_memory(error):
            raise
        sys.exit(f"error: out of memory: {need_less}.")
    except KeyboardInterrupt:
        sys.exit("error: interrupted.")
