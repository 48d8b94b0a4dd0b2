"""Train the feature network of a data set with labels, where none is shipped."""

from ddpm.config import Config
from ddpm.data.sources import SOURCES
from ddpm.evaluation.features import extractor_names
from ddpm.evaluation.train_classifier import train_classifier
from ddpm.utils.files import atomic_path
from ddpm.utils.runtime import choose_runtime
from stages.paths import CLASSIFIER, RAW
from stages.runner import fitting, run


def classifier(config: Config) -> None:
    source = SOURCES[config.data.name]
    train = fitting(config, source.load(RAW, "train"))
    names = extractor_names(config.fid.extractors, train.spec)
    if "classifier" not in names:
        text = f"{train.spec.name} is measured by {', '.join(names) or 'no network'}: no classifier was trained.\n"
        with atomic_path(CLASSIFIER.with_name("not_needed.txt")) as temporary:
            temporary.write_text(text)
        print(text, end="")
        return
    runtime = choose_runtime(config.runtime, 0.0)
    how = config.fid.classifier_epochs, runtime.device, runtime.precision
    accuracy = train_classifier(CLASSIFIER, train, source.load(RAW, "test"), *how)
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    run(classifier)
