"""What may stand in the experiment for the toy method."""

from __future__ import annotations

from typing import Literal

from multiscale.core.settings import Bad, Experiment, Name, Sampled, Share, Trained
from multiscale.training.part import Training


class ToyPart(Trained):
    """The mean image of each class."""

    kind: Literal["toy"]
    """folder in multiscale/methods"""
    dataset: Name
    """a key of `decompose`"""
    training: Training


class ToyMethod(Sampled):
    """The mean image of a class, with noise on it."""

    kind: Literal["toy"]
    """folder in multiscale/methods"""
    noise: Share = 0.1
    """standard deviation of the noise, for images in [0, 1]"""


PART, METHOD = ToyPart, ToyMethod
DATASETS = ("ssd",)  # the images as they are


def check_part(experiment: Experiment, key: str, part: ToyPart) -> None:
    """Refuses nothing: any images have a mean."""


def check_method(experiment: Experiment, key: str, method: ToyMethod, parts: list[ToyPart]) -> None:
    """Refuses anything but one part, and noise that hides the image."""
    if len(parts) != 1:
        raise Bad(key, len(parts), "one part")
    if method.noise == 1:
        raise Bad(f"{key}.noise", method.noise, "less than 1")
