"""MSF's decomposition of a dataset: the target y_k of each scale, and the statistics that normalise it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from multiscale.core.moments import Moments
from multiscale.core.storage import Table
from multiscale.decomposition import Source, of_images
from multiscale.methods.msf import residual

if TYPE_CHECKING:
    from multiscale.methods.msf.settings import Residual


class Residuals:
    """y0 ... yK, each (N, c, h_k, h_k), of normalised latents; one resolution gives the full latents alone."""

    def __init__(self, resolutions: list[int], source: Source):
        self.resolution = resolutions[-1]
        self.full, self.base = source.latents(resolutions[-1]), source.latents(resolutions[0])
        self.latent = source.normalisation(self.resolution)
        self.count, channels, grid = self.full.arrays["mean"].shape[:3]
        self.grids = [resolution * grid // self.resolution for resolution in resolutions]
        self.moments = [Moments() for _ in resolutions]
        self.shapes = of_images(self.count, {f"y{k}": (channels, g, g) for k, g in enumerate(self.grids)})

    def block(self, rows: slice) -> dict[str, Tensor]:
        full = self.full[rows]
        z, base = (self.latent.apply(x["mean"]) for x in (full, self.base[rows]))
        targets = residual.decompose(z, base, self.grids)
        for moments, target in zip(self.moments, targets):
            moments.add(target)
        return {**{f"y{k}": target for k, target in enumerate(targets)}, "label": full["label"]}

    def statistics(self, made: Table) -> dict[str, Any]:
        scales = [
            {"resolution": resolution, "mean": each.mean(), "std": each.std(), "energy": each.energy()}
            for resolution, each in zip(self.grids, self.moments)
        ]
        return {"latent": self.latent.model_dump(), "scales": scales}


def decompose(section: Residual, source: Source) -> Residuals:
    """The decomposition that a section of the experiment describes."""
    return Residuals(section.resolutions, source)
