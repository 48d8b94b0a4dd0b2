"""How a stage begins and ends: settings checked first, one sentence for what the user can fix, stopped with its dvc.

Settings that would stop the graph at its end are refused before a training; by DVC, which runs the graph, before any
stage, as far as that shows without the images.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import psutil

from ddpm.config import Config, load_config
from ddpm.data.image_set import ImageSet
from ddpm.evaluation.features import refuse_too_few
from ddpm.sampling.labels import class_number
from ddpm.utils.errors import DdpmError, first_of, one_sentence
from ddpm.utils.resume import stopping
from ddpm.utils.runtime import wanted_device
from stages.paths import PARAMS
from stages.resume import forget_recorded


def run(stage: Callable[[Config], None]) -> None:
    """Run one stage; what the user can fix ends it with one sentence and exit status 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: stopped."))
    restore = "restore it with `dvc pull`, `dvc repro` or `git checkout`"
    with one_sentence(restore, "lower model.base_channels, train.batch_size or runtime.generate_batch_size"):
        config = load_config(PARAMS)
        if "DVC_STAGE" in os.environ:
            _end_with_dvc()
            device = wanted_device(config.runtime.device)
            refuse_too_few(config.generate.num_images, config.data.name, config.fid, device)
            forget_recorded(os.environ["DVC_STAGE"].rpartition(":")[2], config)
        stage(config)


def fitting(config: Config, images: ImageSet, share: float = 1.0) -> ImageSet:
    """The training images, unless a later stage cannot do with them what the settings ask for. Raises DdpmError.

    share: the part that they are of all images for training, by which the later stages measure.
    """
    if not images.classes and "classifier" in config.fid.extractors:
        raise DdpmError("fid.extractors names classifier, but the images have no labels for it: set it to auto.")
    device, all_images = wanted_device(config.runtime.device), round(len(images) / share)
    refuse_too_few(config.generate.num_images, config.data.name, config.fid, device, train=(images.spec, all_images))
    wanted, names = config.generate.classes, images.class_names
    if unknown := [] if wanted == "all" else [str(label) for label in wanted if class_number(label, names) is None]:
        known = first_of(names, 20) or "none"
        raise DdpmError(
            f"generate.classes names {', '.join(unknown)}, but the classes of the images are {known}: choose from "
            "them, or set it to all."
        )
    return images


def _end_with_dvc() -> None:
    """Stop this process when DVC is gone: killed alone, it leaves its stage running, whose results nobody records."""
    dvc = _dvc()

    def watch() -> None:
        while _dvc() == dvc:
            time.sleep(0.5)
        # One that saves its state already, as after a signal to both, must not be ended by a second signal.
        if not stopping():
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _dvc() -> int | None:
    """The number of the process that runs this stage, None if it is gone.

    DVC calls a shell, `SHELL -c "python -m stages…"`. Some are replaced by what they call, others, like dash, stay.
    """
    try:
        parent = psutil.Process(os.getppid())
        stays = any("-m stages." in argument for argument in parent.cmdline())
        return parent.ppid() if stays else parent.pid
    except psutil.Error:
        return None
