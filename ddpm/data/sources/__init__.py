"""The data sets by name: one module each, which registers an object with the two methods of `Source`."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ddpm.data.image_set import ImageSet
from ddpm.utils.registry import Registry


class Source(Protocol):
    """Where a data set comes from and how it is read.

    It may have an attribute ``labelled``: true where the images are of two or more classes, whatever the settings.
    """

    @property
    def fetch(self) -> Callable[..., str]:
        """Bring the original files, verified, into ``folder`` from ``place`` (`data.source`); returns where from.

        A method ``fetch(place, folder)``, whose further parameters name the settings of `data` that it reads. Files
        that are there and verify are kept, others go. Raises DdpmError; nothing half-written is left behind.
        """
        ...

    def load(self, folder: Path, part: str) -> ImageSet:
        """Read the "train" or "test" images, with names, from the folder that `fetch` filled.

        Raises MissingFile, DamagedFile.
        """
        ...


SOURCES: Registry[Source] = Registry("data set", __name__)
