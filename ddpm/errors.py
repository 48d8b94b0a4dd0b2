"""The exceptions whose text is meant for the person at the keyboard, and how a command ends with them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class DdpmError(Exception):
    """A mistake the user can mend. Its message is one sentence that names the file or key and the mend."""


class MissingFile(DdpmError):
    """A file that should be there is not. The message names it; how to get it depends on who asked for it."""


class DamagedFile(DdpmError):
    """A file is there but cannot be what it should be. The message names it and what is wrong."""


@contextmanager
def one_sentence() -> Iterator[None]:
    """End the process with one sentence and exit status 1 for what the user can mend."""
    try:
        yield
    except (DdpmError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted.")
