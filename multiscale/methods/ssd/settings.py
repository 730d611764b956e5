"""SSD and its control DDPM: one UNet for states that shrink."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from multiscale.methods.ssd import parts as ssd_parts
from multiscale.networks.settings import UNetNetwork
from multiscale.settings import (
    LARGEST,
    Bad,
    Experiment,
    Name,
    Positive,
    Sampled,
    Section,
    Share,
    Trained,
    Training,
    allowed_of,
)


class Pixels(Section):
    """The images as they are."""

    kind: Literal["ssd"]
    reads: Literal["images.parquet"] = "images.parquet"  # in data/


class ScaleSpaceProcess(Section):
    """SSD's forward process. One level is DDPM."""

    steps: Annotated[int, Field(ge=20, le=LARGEST)] = 1000
    levels: Positive
    sizes: Literal["halved", "gradual"] = "halved"
    schedule: Literal["equal", "convex-decay", "tanh-like", "sigmoid-like"] = "convex-decay"
    gamma: Annotated[float, Field(gt=0)] = 0.5  # the schedule's exponent; from 1 on for tanh- and sigmoid-like
    operator: Literal["bilinear", "box", "identity"] = "bilinear"
    noise_factor: Annotated[float, Field(gt=0, le=1)] = 1.0  # of sigma, a level; 1 as published, 0.505 keeps the SNR

    @property
    def shrinks(self) -> bool:
        """Whether its states have more than one side."""
        return self.levels > 1 and self.operator != "identity"


class SSDPart(Trained):
    """The one network of SSD, or with one level of the DDPM control."""

    kind: Literal["ssd"]
    reads: Name
    process: ScaleSpaceProcess
    unet: Literal["flexi", "full", "enlarged"] = "flexi"  # 'full': every side runs the whole network
    network: UNetNetwork
    conditional: bool = True
    label_dropout: Share = 0.1
    flip: bool = False
    predicts: Literal["x0", "noise"] = "x0"  # 'noise' with one side only
    # Of the Min-SNR weight; a lower one favours the noisy states. null is none: the plain loss of the noise
    snr_cap: Annotated[float, Field(gt=0)] | None = 5.0
    oversample: Positive = 1  # how much likelier than uniform a change of side is drawn
    reweight: bool = True  # weigh back what is drawn too often; false: it counts so many times as much
    training: Training


class AncestralSolver(Section):
    """How a diffusion chain is sampled."""

    steps: Annotated[int, Field(ge=2, le=LARGEST)]  # of the process, besides those that change the side
    eta: Share = 1.0  # 1: the posterior (DDPM); 0: DDIM
    variance: Literal["small", "large"] = "small"  # the posterior's, or beta_t: with one side and an eta of 1 only
    cfg: Annotated[float, Field(ge=0)] = 1.0
    last_step: Literal["clean", "as-released"] = "clean"


class SSDMethod(Sampled):
    """The sampler of SSD, or of the DDPM control."""

    kind: Literal["ssd"]
    parts: Annotated[list[Name], Field(min_length=1, max_length=1)]
    solver: AncestralSolver


DECOMPOSITION, PART, METHOD = Pixels, SSDPart, SSDMethod
READS = ("ssd",)


def check_decomposition(experiment: Experiment, key: str, section: Pixels) -> None:
    """Images as they are fit everything."""


def check_part(experiment: Experiment, key: str, part: SSDPart) -> None:
    """Whether the process can be built, and the network takes each of its sides."""
    classes = 1 if part.conditional else 0
    config = {
        **part.model_dump(),
        "channels": experiment.data.channels,
        "side": experiment.data.size,
        "classes": classes,
    }
    try:
        process = ssd_parts.build_process(config)
    except ValueError as error:
        fault = "gamma" if "exponent" in str(error) else "levels"
        raise Bad(f"{key}.process.{fault}", getattr(part.process, fault), allowed_of(error)) from None
    try:
        with torch.device("meta"):
            ssd_parts.build_network(config, process)
    except ValueError as error:
        raise Bad(f"{key}.network.multipliers", part.network.multipliers, allowed_of(error)) from None
    if part.predicts == "noise" and part.process.shrinks:
        raise Bad(f"{key}.predicts", part.predicts, "x0, since the network answers at the side of the next state")


def check_method(experiment: Experiment, key: str, method: SSDMethod, parts: list[SSDPart]) -> None:
    """Whether the solver suits the one part."""
    (part,) = parts
    if method.solver.steps > part.process.steps:
        raise Bad(f"{key}.solver.steps", method.solver.steps, f"at most the process's {part.process.steps}")
    if method.solver.variance == "large" and part.process.shrinks:
        raise Bad(
            f"{key}.solver.variance", "large", "small, since beta_t is no variance of a step that changes the side"
        )
    if method.solver.variance == "large" and method.solver.eta != 1:
        raise Bad(f"{key}.solver.variance", "large", f"small, since an eta of {method.solver.eta} draws less already")
    if method.solver.cfg != 1 and not part.conditional:
        raise Bad(f"{key}.solver.cfg", method.solver.cfg, "1.0, since the part is not conditional")
