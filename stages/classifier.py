"""Trains the judge on the real training split: does a sample show the class that was asked for?

An unlabelled set has nothing to judge; the folder then says so.
"""

from __future__ import annotations

from functools import partial

from multiscale.core.storage import atomic_folder, read_json, write_json
from multiscale.evaluation.classifier import Classifier, ClassifierPart, accuracy, load
from stages import fitting, schema
from stages.common import settings
from stages.common.harness import command
from stages.common.images import classes, count, pixel_table
from stages.common.paths import CLASSIFIER, IMAGES, TIMINGS


def build(section: schema.Classifier, channels: int, kinds: int) -> tuple[ClassifierPart, dict]:
    """The part to train, and the config that rebuilds its network."""
    config = {"channels": channels, "classes": kinds, "width": section.width, "stages": section.stages}
    return ClassifierPart("classifier", pixel_table("train"), Classifier(**config)), config


def main() -> None:
    params = settings.load("seed", "run", "data", "classifier")
    section, kinds = params.classifier, classes()
    if kinds < 2:
        with atomic_folder(CLASSIFIER) as folder:
            write_json(folder / "config.json", {"classes": kinds})
        write_json(TIMINGS / "classifier.json", {"train_seconds": 0.0, "held_out_accuracy": None})
        return
    made = partial(build, section, params.data.channels, kinds)
    job = fitting.job("classifier", made, section, section.training, params.seed, [IMAGES], CLASSIFIER)
    fitting.train(job, params.run)
    score = held_out_accuracy()
    timing = TIMINGS / "classifier.json"
    write_json(timing, {**read_json(timing), "held_out_accuracy": score})


def held_out_accuracy() -> float | None:
    """The judge's own accuracy on images it was not trained on; None for a set without a validation split."""
    if not count("validation"):
        return None
    rows = pixel_table("validation")[slice(None)]
    score = accuracy(load(CLASSIFIER), rows["pixels"], rows["label"])
    print(f"accuracy on the {len(rows['label'])} validation images: {score:.1%}")
    return score


if __name__ == "__main__":
    command(main, __doc__)
