"""MSF's decomposition of all latents: the targets y_k of each scale, normalised, with their statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from multiscale.core.moments import Moments
from multiscale.core.pixels import per_channel
from multiscale.core.storage import Table
from multiscale.decomposition import Source, of_images
from multiscale.methods.msf import residual

if TYPE_CHECKING:
    from multiscale.methods.msf.settings import Residual


class Residuals:
    """y0 ... yK, each (N, c, h_k, h_k); with one side the normalised full latents (the control DiT)."""

    def __init__(self, sides: list[int], source: Source):
        self.side = sides[-1]
        self.full, self.base = source.latents(sides[-1]), source.latents(sides[0])
        self.of_latents = source.statistics(self.side)
        self.shift, self.scale = per_channel(self.of_latents["shift"]), per_channel(self.of_latents["scale"])
        self.count, channels, grid = self.full.arrays["mean"].shape[:3]
        self.grids = [side * grid // self.side for side in sides]
        self.moments = [Moments() for _ in sides]
        self.shapes = of_images(self.count, {f"y{k}": (channels, g, g) for k, g in enumerate(self.grids)})

    def block(self, rows: slice) -> dict[str, Tensor]:
        full = self.full[rows]
        z, base = ((x["mean"] - self.shift) / self.scale for x in (full, self.base[rows]))
        targets = residual.decompose(z, base, self.grids)
        for moments, target in zip(self.moments, targets):
            moments.add(target)
        return {**{f"y{k}": target for k, target in enumerate(targets)}, "label": full["label"]}

    def statistics(self, made: Table) -> dict[str, Any]:
        scales = [
            {"side": side, "mean": each.mean(), "std": each.std(), "energy": each.energy()}
            for side, each in zip(self.grids, self.moments)
        ]
        return {**self.of_latents, "scales": scales}


def decompose(section: Residual, source: Source) -> Residuals:
    """The decomposition of a section of the experiment."""
    return Residuals(section.sides, source)
