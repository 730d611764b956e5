"""MSF and its control DiT: residual latents, one flow a scale."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from multiscale.flow import Solver
from multiscale.networks.settings import DiTNetwork
from multiscale.settings import (
    Bad,
    Count,
    Experiment,
    Name,
    Positive,
    Sampled,
    Section,
    Share,
    Trained,
    Training,
)


class Residual(Section):
    """Base and residual latents: pixel sides of the scales, growing to the full size. One side: no decomposition."""

    kind: Literal["msf"]
    reads: Literal["latents"] = "latents"  # in data/
    sides: Annotated[list[Positive], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Residual:
        if self.sides != sorted(set(self.sides)):
            raise Bad("sides", self.sides, "sides that grow from scale to scale")
        return self


class FlowPart(Trained):
    """One rectified-flow DiT of MSF: `index` is its scale in what it reads. One scale is the DiT control."""

    kind: Literal["msf"]  # the module in multiscale/methods
    reads: Name  # a name in `decompose`
    index: Count
    network: DiTNetwork
    label_dropout: Share = 0.1
    times: Literal["uniform", "logit-normal"] = "logit-normal"
    prior_noise: Annotated[float, Field(ge=0)] = 0.0
    training: Training


class MSFMethod(Sampled):
    """The sampler of MSF: one solver a scale. One scale is the DiT control."""

    kind: Literal["msf"]
    parts: Annotated[list[Name], Field(min_length=1)]  # from the coarsest scale on
    scales: Annotated[list[Solver], Field(min_length=1)]


DECOMPOSITION, PART, METHOD = Residual, FlowPart, MSFMethod
READS = ("msf",)


def check_decomposition(experiment: Experiment, key: str, section: Residual) -> None:
    """Whether its sides exist, end at the full size, and can be encoded."""
    sides, factor = section.sides, experiment.vae.factor
    if sides[-1] != experiment.data.size:
        raise Bad(f"{key}.sides", sides, f"a last side of data.size ({experiment.data.size})")
    for side in sides:
        if side % factor:
            raise Bad(f"{key}.sides", sides, f"multiples of the autoencoder's factor {factor}")
    for side in (sides[0], sides[-1]):
        if side not in experiment.latents.sides:
            raise Bad("latents.sides", experiment.latents.sides, f"{side} among them, since {key}.sides needs it")


def check_part(experiment: Experiment, key: str, part: FlowPart) -> None:
    """Whether its scale exists and its patch divides it."""
    sides = experiment.decompose[part.reads].sides
    if part.index >= len(sides):
        raise Bad(f"{key}.index", part.index, f"below the {len(sides)} scales of decompose.{part.reads}")
    latent = sides[part.index] // experiment.vae.factor
    if latent % part.network.patch:
        raise Bad(f"{key}.network.patch", part.network.patch, f"a divisor of the latent side {latent}")


def check_method(experiment: Experiment, key: str, method: MSFMethod, parts: list[FlowPart]) -> None:
    """Whether there is one part and one solver for each scale."""
    if len({part.reads for part in parts}) > 1:
        raise Bad(f"{key}.parts", method.parts, "parts that read one decomposition")
    scales = len(experiment.decompose[parts[0].reads].sides)
    if [part.index for part in parts] != list(range(scales)):
        raise Bad(f"{key}.parts", method.parts, f"one part for each of the {scales} scales of {parts[0].reads}")
    if len(method.scales) != scales:
        raise Bad(f"{key}.scales", len(method.scales), f"{scales} solvers, one a scale")
