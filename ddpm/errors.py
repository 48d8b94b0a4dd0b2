"""The exceptions whose text is meant for the person at the keyboard."""


class DdpmError(Exception):
    """A mistake the user can mend. Its message is one sentence that names the file or key and the mend."""


class MissingFile(DdpmError):
    """A file that should be there is not. The message names it; how to get it depends on who asked for it."""


class DamagedFile(DdpmError):
    """A file is there but cannot be what it should be. The message names it and what is wrong."""
