"""Measure the generated images against the real ones."""

from ddpm.config import Config
from ddpm.data.load import load_images, read_labels
from ddpm.data.sources import SOURCES
from ddpm.evaluation.evaluator import open_evaluator
from ddpm.evaluation.measure import in_order, over_replicates, refuse_constant
from ddpm.utils.files import atomic_path, load_arrays, significant, write_json
from ddpm.utils.images import png_name
from ddpm.utils.runtime import choose_runtime, process_count, worker_count
from stages.paths import CLASSIFIER, EVALUATION, GENERATED, LABELS, RAW, REFERENCE, REPLICATES
from stages.runner import run


def fid(config: Config) -> None:
    source, settings = SOURCES[config.data.name], config.fid
    train, test = source.load(RAW, "train"), source.load(RAW, "test")
    runtime = choose_runtime(config.runtime, 0.0)
    processes = process_count(config.runtime, runtime, len(train), float("inf"))
    given = (config.seed, runtime.device, REFERENCE, CLASSIFIER, processes)
    evaluator = open_evaluator(settings, train, test, *given)
    images = load_images(GENERATED, worker_count(config.runtime.workers))
    refuse_constant(images, lambda i: png_name(i + 1, len(images)))
    labels = read_labels(LABELS, len(images))
    found = evaluator.measure(images, labels, settings.bootstrap, "generated")
    sets = load_arrays(REPLICATES).items()
    others = [evaluator.measure(x, labels, 0, name, alone=True).numbers for name, x in sets]
    numbers = in_order({"replicates": 1 + len(others), **found.numbers, **over_replicates(found.numbers, others)})
    test_nearest = load_arrays(REFERENCE / "pixels.npz")["test_nearest"]
    memorization, nearest = evaluator.memorization(images, found.features, train, test_nearest)
    classes = found.classes.assign(label=[train.class_names[label] for label in found.classes["label"]])
    for name, table in (("classes", classes), ("nearest", nearest)):
        with atomic_path(EVALUATION / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
    write_json(EVALUATION / "memorization.json", significant(memorization))
    write_json(EVALUATION / "fid.json", significant(numbers | {"protocol": found.protocol}))


if __name__ == "__main__":
    run(fid)
