"""Whether the data set has the images that the settings ask for.

The stage `download` checks it as soon as it knows how many there are, before anything is trained; the stages that need
them check it again, after a later edit of the settings.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from stages.common.errors import BadInput
from stages.common.images import class_names
from stages.common.paths import EXPERIMENT, IMAGES
from stages.schema import Experiment
from stages.schema.data import Evaluate


def check(params: Experiment, train: int, test: int, unseen: Sequence[str] = ()) -> None:
    """Raises BadInput if the images are too few for what the settings ask for; `unseen` as in `check_classes`."""
    check_classes(params, unseen)
    check_reference(params, train)
    if params.evaluate.floors:
        check_floors(params, test)


def check_classes(params: Experiment, unseen: Sequence[str]) -> None:
    """Raises BadInput if classes have no training image, `unseen` by their names, and are sampled as often as others.

    Their samples would show what an embedding that nothing has trained happens to mean.
    """
    if unseen and params.sample.labels == "uniform":  # such as -1, which test images on the hub have for a label
        why = f"uniform, but no training image is of the class {', '.join(unseen)}"
        raise BadInput(f"{EXPERIMENT}: sample.labels: {why}; allowed: data, or training images of each class")


def unseen_classes() -> list[str]:
    """The names of the classes that have images, but no training image."""
    images, names = pl.read_parquet(IMAGES, columns=["split", "label"]), class_names()
    labels = {*images["label"]} - {*images.filter(split="train")["label"]}
    return [names[label] if names else str(label) for label in sorted(labels)]


def check_reference(params: Experiment, train: int) -> None:
    """Raises BadInput if `train` images have too few neighbours: an image is not a neighbour of itself."""
    most, given = min(params.evaluate.reference_images or train, train) - 1, params.evaluate.prc_neighborhood
    if given > most:
        why = f"{given} neighbours, but the data set has {train} training images"
        raise BadInput(f"{EXPERIMENT}: evaluate.prc_neighborhood: {why}; allowed: at most {most}, or more images")


def fewest_of_floors(section: Evaluate) -> int:
    """The test images that the floors need."""
    return max(4, section.is_splits, section.prc_neighborhood + 1)  # a standard error needs 4


def check_floors(params: Experiment, test: int) -> None:
    """Raises BadInput if `test` images are too few to be measured."""
    section, fewest = params.evaluate, fewest_of_floors(params.evaluate)
    if test < fewest:
        why = f"{section.floors} need {fewest} test images, but the data set has {test}"
        remedy = "allowed: [], a larger data.test_share, or a smaller evaluate.is_splits or evaluate.prc_neighborhood"
        raise BadInput(f"{EXPERIMENT}: evaluate.floors: {why}; {remedy}")
