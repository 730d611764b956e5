"""SSD and its control DDPM: one UNet for states that shrink."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from multiscale.core.settings import (
    Above0,
    Bad,
    Decomposed,
    Experiment,
    Positive,
    Sampled,
    Share,
    Steps,
    Trained,
    allowed_of,
)
from multiscale.guidance import Guidance
from multiscale.methods.ssd.model import SSDConfig, Use, entries_of
from multiscale.methods.ssd.process import ScaleSpaceProcess, Target
from multiscale.methods.ssd.resizing import Variance
from multiscale.networks.unet import UNetNetwork
from multiscale.training.part import Training


class Pixels(Decomposed):
    """The images as they are."""

    kind: Literal["ssd"]
    source: Literal["pixels"] = "pixels"


class SSDPart(Trained):
    """The denoiser of SSD; with one level that of its control DDPM."""

    kind: Literal["ssd"]
    process: ScaleSpaceProcess
    """forward process"""
    unet: Use = "flexi"
    """flexi: small states skip levels; full, enlarged: they run all"""
    network: UNetNetwork
    """size of the UNet"""
    conditional: bool = True
    """on the class label"""
    label_dropout: Share = 0.1
    """share of labels dropped, for guidance"""
    flip: bool = False
    """mirror half of the images"""
    predicts: Target = "x0"
    """clean image, or noise: with one resolution only"""
    snr_cap: Above0 | None = 5.0
    """cap of the Min-SNR weight; lower favours noisy states; null: none"""
    oversample: Positive = 1
    """how much likelier a change of resolution is drawn than uniformly"""
    reweight: bool = True
    """divide the loss of what is oversampled by that factor"""
    training: Training
    """budget and optimiser"""

    @model_validator(mode="after")
    def _check(self) -> SSDPart:
        if self.predicts == "noise" and self.process.shrinks:
            raise Bad("predicts", self.predicts, "x0, since the network answers at the resolution of the next state")
        return self

    def config(self, channels: int, resolution: int, classes: int) -> SSDConfig:
        """The config of its model, for images of so many channels and classes."""
        return SSDConfig(
            channels=channels,
            resolution=resolution,
            classes=classes if self.conditional else 0,
            process=self.process,
            unet=self.unet,
            predicts=self.predicts,
            network=self.network,
        )


class AncestralSolver(Guidance):
    """How a diffusion chain is sampled."""

    steps: Annotated[Steps, Field(ge=2)] = 250
    """of the process, besides those that change the resolution"""
    eta: Share = 1.0
    """1: the posterior (DDPM); 0: DDIM"""
    variance: Variance = "small"
    """the posterior's; large: beta_t, with one resolution and eta 1 only"""
    last_step: Literal["clean", "as-released"] = "clean"
    """as-released: keeps the noise of state 0, sigma 0.01"""

    @model_validator(mode="after")
    def _check(self) -> AncestralSolver:
        if self.variance == "large" and self.eta != 1:
            raise Bad("variance", self.variance, f"small, since an eta of {self.eta} draws less already")
        return self


class SSDMethod(Sampled):
    """The sampler of SSD and of its control DDPM."""

    kind: Literal["ssd"]
    solver: AncestralSolver = AncestralSolver()
    """how its chain is sampled"""


DECOMPOSITION, PART, METHOD = Pixels, SSDPart, SSDMethod
DATASETS = ("ssd",)


def check_decomposition(experiment: Experiment, key: str, section: Pixels) -> None:
    """Refuses nothing: images as they are fit everything."""


def check_part(experiment: Experiment, key: str, part: SSDPart) -> None:
    """Refuses a process that images of this resolution cannot have, and a network that cannot take its states."""
    config = part.config(experiment.data.channels, experiment.data.resolution, classes=1)
    try:
        config.process.build(config.resolution)
    except ValueError as error:
        raise Bad(f"{key}.process.levels", part.process.levels, allowed_of(error)) from None
    try:
        entries_of(config)
    except ValueError as error:
        raise Bad(f"{key}.network.multipliers", part.network.multipliers, allowed_of(error)) from None


def check_method(experiment: Experiment, key: str, method: SSDMethod, parts: list[SSDPart]) -> None:
    """Refuses anything but one part, and a solver that does not suit it."""
    if len(parts) != 1:
        raise Bad(key, method.kind, f"one part that names this method, not {len(parts)}")
    (part,), solver = parts, method.solver
    if solver.steps > part.process.steps:
        raise Bad(f"{key}.solver.steps", solver.steps, f"at most the process's {part.process.steps}")
    if solver.variance == "large" and part.process.shrinks:
        reason = "beta_t is no variance of a step that changes the resolution"
        raise Bad(f"{key}.solver.variance", solver.variance, f"small, since {reason}")
    if solver.guidance_scale != 1 and not part.conditional:
        raise Bad(f"{key}.solver.guidance_scale", solver.guidance_scale, "1.0, since the part is not conditional")
