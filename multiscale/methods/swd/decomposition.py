"""SwD's pyramid: the latents of each image at several sides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from multiscale.core.pixels import per_channel
from multiscale.core.storage import Table
from multiscale.decomposition import Source, of_images

if TYPE_CHECKING:
    from multiscale.methods.swd.settings import Pyramid


class Latents:
    """z{side} (N, c, h, h) of every side, normalised by the full side's statistics.

    SwD downsamples twice to get to the smaller side of a step; here every side comes from the image at once, so that
    one latent serves as the target of one step and the low version of the next. The posterior's means are taken, as
    for every method here, not samples of it.
    """

    def __init__(self, sides: list[int], source: Source):
        self.side = sides[-1]
        self.tables = {side: source.latents(side) for side in sides}
        self.of_latents = source.statistics(self.side)
        self.shift, self.scale = per_channel(self.of_latents["shift"]), per_channel(self.of_latents["scale"])
        self.count = len(self.tables[self.side])
        arrays = {side: table.arrays["mean"] for side, table in self.tables.items()}
        self.shapes = of_images(self.count, {f"z{side}": array.shape[1:] for side, array in arrays.items()})

    def block(self, rows: slice) -> dict[str, Tensor]:
        blocks = {side: table[rows] for side, table in self.tables.items()}
        latents = {f"z{side}": (block["mean"] - self.shift) / self.scale for side, block in blocks.items()}
        return {**latents, "label": blocks[self.side]["label"]}

    def statistics(self, made: Table) -> dict[str, Any]:
        grids = {side: table.arrays["mean"].shape[-1] for side, table in self.tables.items()}
        return {**self.of_latents, "grids": grids}


def decompose(section: Pyramid, source: Source) -> Latents:
    """The decomposition of a section of the experiment."""
    return Latents(section.sides, source)
