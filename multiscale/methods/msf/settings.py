"""MSF and its control DiT: residual latents, one flow a scale."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from multiscale.core.settings import Bad, Decomposed, Experiment, FewOr0, From0, Positive, Share, Trained
from multiscale.flow import Scaled, Timesteps
from multiscale.networks.dit import DiTNetwork
from multiscale.training.part import Training


class Residual(Decomposed):
    """Base and residual latents of each image; with one resolution the full latents, for the control."""

    kind: Literal["msf"]
    source: Literal["latents"] = "latents"
    resolutions: Annotated[list[Positive], Field(min_length=1)]
    """of the scales in pixels, coarsest first; one: no residuals"""

    @model_validator(mode="after")
    def _check(self) -> Residual:
        if self.resolutions != sorted(set(self.resolutions)):
            raise Bad("resolutions", self.resolutions, "resolutions that grow from scale to scale")
        return self


class FlowPart(Trained):
    """The rectified-flow DiT of one scale of MSF; the control DiT is the only scale of one resolution."""

    kind: Literal["msf"]
    index: FewOr0
    """its scale; 0: the coarsest"""
    network: DiTNetwork
    label_dropout: Share = 0.1
    """share of labels dropped, for classifier-free guidance (MSF)"""
    timesteps: Timesteps = "logit-normal"
    """timestep sampler of training"""
    prior_noise: From0 = 0.0
    """standard deviation of noise on the input prior; 0: none (MSF)"""
    training: Training


class MSFMethod(Scaled):
    """The sampler of MSF and of its control DiT."""

    kind: Literal["msf"]


DECOMPOSITION, PART, METHOD = Residual, FlowPart, MSFMethod
DATASETS = ("msf",)


def check_decomposition(experiment: Experiment, key: str, section: Residual) -> None:
    """Refuses resolutions that are not encoded, cannot be, or do not end at the full one."""
    resolutions, full, factor = section.resolutions, experiment.data.resolution, experiment.vae.factor
    if resolutions[-1] != full:
        raise Bad(f"{key}.resolutions", resolutions, f"a last resolution of data.resolution ({full})")
    if any(resolution % factor for resolution in resolutions):
        raise Bad(f"{key}.resolutions", resolutions, f"multiples of the autoencoder's factor {factor}")
    encoded = experiment.latents.resolutions
    for resolution in (resolutions[0], resolutions[-1]):
        if resolution not in encoded:
            raise Bad("latents.resolutions", encoded, f"{resolution} among them, since {key}.resolutions needs it")


def check_part(experiment: Experiment, key: str, part: FlowPart) -> None:
    """Refuses a scale that does not exist, and a patch that does not divide its latents."""
    resolutions = experiment.decompose[part.dataset].resolutions
    if part.index >= len(resolutions):
        raise Bad(f"{key}.index", part.index, f"below the {len(resolutions)} scales of decompose.{part.dataset}")
    latent = resolutions[part.index] // experiment.vae.factor
    if latent % part.network.patch:
        raise Bad(f"{key}.network.patch", part.network.patch, f"a divisor of the latent resolution {latent}")


def check_method(experiment: Experiment, key: str, method: MSFMethod, parts: list[FlowPart]) -> None:
    """Refuses anything but one part for each scale of one dataset, and one solver for each or none."""
    datasets = sorted({part.dataset for part in parts})
    if len(datasets) != 1:
        raise Bad(key, datasets, "parts of one dataset")
    scales, indices = len(experiment.decompose[datasets[0]].resolutions), sorted(part.index for part in parts)
    if indices != list(range(scales)):
        raise Bad(key, indices, f"one part of each index, for the {scales} scales of decompose.{datasets[0]}")
    if method.scales and len(method.scales) != scales:
        raise Bad(f"{key}.scales", len(method.scales), f"{scales} solvers, one a scale, or none")
