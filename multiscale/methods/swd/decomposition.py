"""SwD's pyramid: the latents of each image at several resolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from multiscale.core.storage import Table
from multiscale.decomposition import Source, of_images

if TYPE_CHECKING:
    from multiscale.methods.swd.settings import Pyramid


class Latents:
    """z{resolution} (N, c, h, h) at every resolution, normalised by the full resolution's statistics.

    SwD downsamples twice to get to the lower resolution of a step. Here every resolution is downsampled from the image
    at once, so that one latent serves as the target of one step and as the low version of the next. Latents are means
    of the posterior, as for every method here, not samples of it. With `text`, the label of an image is the row of its
    caption.
    """

    def __init__(self, resolutions: list[int], source: Source, text: str | None = None):
        self.resolution = resolutions[-1]
        self.captions = source.captions(text) if text else None
        self.tables = {resolution: source.latents(resolution) for resolution in resolutions}
        self.latent = source.normalisation(self.resolution)
        self.count = len(self.tables[self.resolution])
        arrays = {resolution: table.arrays["mean"] for resolution, table in self.tables.items()}
        self.shapes = of_images(self.count, {f"z{resolution}": array.shape[1:] for resolution, array in arrays.items()})

    def block(self, rows: slice) -> dict[str, Tensor]:
        blocks = {resolution: table[rows] for resolution, table in self.tables.items()}
        latents = {f"z{resolution}": self.latent.apply(block["mean"]) for resolution, block in blocks.items()}
        return {**latents, "label": blocks[self.resolution]["label"] if self.captions is None else self.captions[rows]}

    def statistics(self, made: Table) -> dict[str, Any]:
        grids = {resolution: table.arrays["mean"].shape[-1] for resolution, table in self.tables.items()}
        return {"latent": self.latent.model_dump(), "grids": grids}


def decompose(section: Pyramid, source: Source) -> Latents:
    """The decomposition of a section of the experiment."""
    return Latents(section.resolutions, source, section.text)
