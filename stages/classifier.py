"""Trains the classifier that predicts the classes of samples, on the training split.

Where a class consists of factors (pictures of two digits) the classifier predicts each of them, and a sample shows its
class if all are right. For an unlabelled dataset, which has one class, nothing is trained and only the config is
written.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__)

from functools import partial

from multiscale.core import intact
from multiscale.core.storage import sealed_folder, write_json, write_sealed_json
from multiscale.evaluation.classifier import ClassifierConfig, ClassifierPart, accuracy, load
from stages.common import fitting, images
from stages.common.images import classes, count, factors, pixel_table
from stages.common.paths import CLASSIFIER, IMAGES, METRICS, TRAIN
from stages.schema import Experiment


def build(config: ClassifierConfig) -> ClassifierPart:
    """The part to train."""
    return ClassifierPart("classifier", pixel_table("train"), config)


def main(params: Experiment) -> None:
    intact.check(IMAGES)
    section = params.classifier
    config = ClassifierConfig(
        channels=params.data.channels, classes=factors() or classes(), width=section.width, stages=section.stages
    )
    if config.count < 2:
        with sealed_folder(CLASSIFIER) as folder:
            write_json(folder / "config.json", config.model_dump())
    else:
        images.check("train")
        made = partial(build, config)
        job = fitting.job("classifier", made, section, params.seed, [TRAIN], CLASSIFIER, "classifier")
        fitting.train(job, params.run)
    write_sealed_json(METRICS / "classifier.json", {"held_out_accuracy": held_out_accuracy()})


def held_out_accuracy() -> float | None:
    """The classifier's accuracy on the validation split; None if there is none, or no classifier."""
    net = load(CLASSIFIER)
    if net is None or not count("validation"):
        return None
    images.check("validation")
    rows = pixel_table("validation")[slice(None)]
    score = accuracy(net, rows["pixels"], rows["label"])
    print(f"accuracy on the {len(rows['label'])} validation images: {score:.1%}")
    return score
