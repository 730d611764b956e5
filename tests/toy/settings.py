"""The sections of the toy method in the experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from multiscale.settings import Bad, Experiment, Name, Sampled, Share, Trained, Training


class MeanPart(Trained):
    """The mean image of each class."""

    kind: Literal["toy"]
    reads: Name  # a name in `decompose`
    training: Training


class ToyMethod(Sampled):
    """The mean image of a class with noise on it."""

    kind: Literal["toy"]
    parts: Annotated[list[Name], Field(min_length=1, max_length=1)]
    noise: Share = 0.1  # its standard deviation, for images in [0, 1]


PART, METHOD = MeanPart, ToyMethod
READS = ("ssd",)  # the images as they are


def check_part(experiment: Experiment, key: str, part: MeanPart) -> None:
    """Any image has a mean."""


def check_method(experiment: Experiment, key: str, method: ToyMethod, parts: list[MeanPart]) -> None:
    """Whether an image is left."""
    if method.noise == 1:
        raise Bad(f"{key}.noise", method.noise, "less than 1")
