"""What the analyses of a data set look at, and what they find."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from torch import Tensor

from multiscale.core import intact
from multiscale.core.pixels import to_signed
from multiscale.core.resize import area_to
from multiscale.core.storage import read_json
from stages.common import images
from stages.common.errors import BadInput
from stages.common.paths import DECOMPOSED, TRAIN
from stages.reporting import fields
from stages.reporting.page import Section
from stages.schema import Experiment

IMAGES, NUMBERS = 4096, 2**24  # looked at, at most
ROUNDING = (2 / 255) ** 2 / 12  # its variance, of pixels in [-1, 1]


@dataclass(frozen=True)
class Finding:
    """Whether an assumption holds for the data; `words` says what that means."""

    assumption: str
    method: str
    data: str
    measured: str
    wanted: str
    holds: bool
    words: str

    @property
    def row(self) -> list[str]:
        shown = str(self.holds).lower()
        return [self.assumption, self.method, self.data, self.measured, self.wanted, shown, self.words]


Found = tuple[list[Finding], list[Section]]


@dataclass(frozen=True)
class Data:
    """What the analyses look at. pixels: uint8 (N, C, h, h), an even choice of training images."""

    params: Experiment
    pixels: Tensor

    @cached_property
    def x(self) -> Tensor:
        return to_signed(self.pixels)

    @cached_property
    def variance(self) -> Tensor:
        return fields.variances(self.x)

    @property
    def full(self) -> int:
        return self.pixels.shape[-1]

    @cached_property
    def held(self) -> dict[int, float]:
        """Bits that an image of a channel holds at a resolution and at its halves, down to its 8-bit rounding."""
        found = {each: fields.variances(area_to(self.x, each)) for each in fields.doublings(self.full)}
        return {each: fields.information(variance, 1 / ROUNDING, each) for each, variance in found.items()}

    @cached_property
    def statistics(self) -> dict[str, dict[str, Any]]:
        """Of each decomposition that was made."""
        found = sorted(DECOMPOSED.glob("[!.]*/statistics.json"))
        for path in found:
            intact.check_folder(path.parent, path.name)
        return {path.parent.name: read_json(path) for path in found}


def look(params: Experiment) -> Data:
    """The data. Raises BadInput for fewer than two training images, and where all are the same."""
    table = images.pixel_table("train")
    count = min(len(table), IMAGES, max(2, NUMBERS // prod(table.arrays["pixels"].shape[1:])))
    # Not checked against its checksums, which would read all of it: the trainings have done so.
    pixels = table[images.evenly(len(table), count)]["pixels"]
    if count < 2 or bool((pixels == pixels[:1]).all()):
        raise BadInput(f"{TRAIN}: {count:,} images, all the same; allowed: at least 2 that differ")
    return Data(params, pixels)
