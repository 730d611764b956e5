"""Pyramidal flow matching: one DiT over all resolutions, a segment of the flow for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from multiscale.core.settings import Bad, Experiment, Share, Trained
from multiscale.flow import Scaled, Timesteps
from multiscale.methods.pyramidal.path import FACTOR
from multiscale.networks.dit import DiTNetwork
from multiscale.training.part import Training


class PyramidalPart(Trained):
    """A DiT on the piecewise flow of latents at resolutions that double."""

    kind: Literal["pyramidal"]
    network: DiTNetwork
    jumps: Annotated[list[float], Field(min_length=1)]
    """levels of noise, 1: noise, 0: data, at which the resolution doubles; they fall"""
    coarse: Literal["pixels", "latents"] = "pixels"
    """what is downsampled for the coarser latents: the image, or its latent as in the paper"""
    label_dropout: Share = 0.1
    """share of labels dropped, for classifier-free guidance"""
    timesteps: Timesteps = "uniform"
    """sampler of the place in a segment"""
    training: Training

    @model_validator(mode="after")
    def _check(self) -> PyramidalPart:
        if not all(0 < jump < 1 for jump in self.jumps) or self.jumps != sorted(set(self.jumps), reverse=True):
            raise Bad("jumps", self.jumps, "levels of noise between 0 and 1 that fall")
        return self


class PyramidalMethod(Scaled):
    """The sampler of pyramidal flow matching."""

    kind: Literal["pyramidal"]
    noise: bool = True
    """noise that corrects the covariance at a jump; false: none, an ablation"""


PART, METHOD = PyramidalPart, PyramidalMethod
DATASETS = ("swd",)  # a pyramid, of which the full resolution is used


def resolutions(full: int, jumps: Sequence[float]) -> list[int]:
    """The resolution of each segment, coarsest first; the last is `full`."""
    return [full // FACTOR**k for k in reversed(range(len(jumps) + 1))]


def check_part(experiment: Experiment, key: str, part: PyramidalPart) -> None:
    """Refuses captions, latents that cannot be halved as often as the resolution jumps, and a pyramid without them."""
    dataset = experiment.decompose[part.dataset]
    if dataset.text:
        raise Bad(f"{key}.dataset", part.dataset, "a dataset without text: this DiT is told classes")
    grid, step = experiment.data.resolution // experiment.vae.factor, part.network.patch * FACTOR ** len(part.jumps)
    if grid % step:
        allowed = (
            f"fewer jumps: the first latents, of {grid} at the end, are no multiple of the patch {part.network.patch}"
        )
        raise Bad(f"{key}.jumps", part.jumps, allowed)
    wanted = resolutions(experiment.data.resolution, part.jumps)
    if part.coarse == "pixels" and not set(wanted) <= set(dataset.resolutions):
        allowed = f"{wanted} among them, which the jumps of {key} need, or {key}.coarse: latents"
        raise Bad(f"decompose.{part.dataset}.resolutions", dataset.resolutions, allowed)


def check_method(experiment: Experiment, key: str, method: PyramidalMethod, parts: list[PyramidalPart]) -> None:
    """Refuses anything but one part, and one solver for each resolution or none."""
    if len(parts) != 1:
        raise Bad(key, len(parts), "one part")
    count = len(parts[0].jumps) + 1
    if method.scales and len(method.scales) != count:
        raise Bad(f"{key}.scales", len(method.scales), f"{count} solvers, one a resolution, or none")
