"""WMGM and its control SGM: a score model of the coarse wavelet band, and the details of each level."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from multiscale.adversarial import LOSSES
from multiscale.methods.wmgm import bands
from multiscale.methods.wmgm.attention_unet import DISCRIMINATORS, GENERATORS
from multiscale.methods.wmgm.whitening import FULL
from multiscale.networks.settings import UNetNetwork, check_unet
from multiscale.settings import (
    Bad,
    Experiment,
    Name,
    Positive,
    Sampled,
    Section,
    Share,
    Text,
    Trained,
    Training,
    allowed_of,
    preset,
)


class Wavelet(Section):
    """Wavelet bands of the images: a coarse one and the details of each level."""

    kind: Literal["wmgm"]
    reads: Literal["images.parquet"] = "images.parquet"  # in data/
    filter: Text = "haar"  # an orthogonal one; 'pixels' stands for residuals of averaged pixels, an ablation
    levels: Positive = 1


class Generator(Section):
    """The generator of details; `preset: NAME` stands for all of it."""

    widths: Annotated[list[Positive], Field(min_length=2)]
    norm: Literal["batch", "group"]
    head: Literal["tanh", "linear"]

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return preset(value, GENERATORS, ("widths", "norm", "head"))


class Discriminator(Section):
    """The generator's opponent; `preset: NAME` stands for its size."""

    width: Positive
    blocks: Positive
    norm: Literal["batch", "group"]
    dropout: Share
    conditional: bool = True  # shown the enlarged coarse image too
    lr_factor: Annotated[float, Field(gt=0)] = 1.0  # of the generator's learning rate; the released code's is 0.1

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return preset(value, DISCRIMINATORS, ("width", "blocks", "norm", "dropout"))


class DetailLoss(Section):
    """The weights of the details' losses; `preset: NAME` stands for all of them."""

    form: Literal["sigmoid-mean", "logistic"]
    mse: Annotated[float, Field(ge=0)]
    ssim: Annotated[float, Field(ge=0)]
    adversarial: Annotated[float, Field(ge=0)]
    r1: Annotated[float, Field(ge=0)]
    r1_every: Positive
    discriminator_every: Positive
    draws: Literal[1, 2]
    levels: Literal["random", "pass"]  # a level for each step, or one after the other for a whole pass over the data

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return preset(value, LOSSES, tuple(cls.model_fields))


class WMGMPart(Trained):
    """A network of WMGM: the score model of the coarse band, or of the pixels (SGM, the control); or the details."""

    kind: Literal["wmgm"]
    reads: Name
    role: Literal["low", "detail"]
    # score models
    network: UNetNetwork | None = None
    conditional: bool = True
    label_dropout: Share = 0.1
    whitening: Literal["scale", "full"] = "scale"
    predicts: Literal["noise", "velocity", "x0"] = "velocity"  # what the network stands for
    snr_cap: Annotated[float, Field(gt=0)] | None = None  # of the Min-SNR weight; null: the prediction's plain error
    # details
    model: Literal["gan", "regression", "score"] = "gan"
    level: Positive | None = None  # null: one network for every level
    standardised: bool = True
    condition_noise: Annotated[float, Field(ge=0)] = 0.0
    generator: Generator | None = None
    discriminator: Discriminator | None = None
    loss: DetailLoss | None = None
    training: Training

    @model_validator(mode="after")
    def _check(self) -> WMGMPart:
        if self.role == "low" or self.model == "score":
            needed = ("network",)
        else:
            needed = ("generator", "loss", *(("discriminator",) if self.model == "gan" else ()))
        for key in needed:
            if getattr(self, key) is None:
                raise Bad(key, None, f"required with role: {self.role}, model: {self.model}")
        return self


class ScoreSolver(Section):
    """How a score model is sampled."""

    method: Literal["euler-maruyama", "ode-euler", "ode-heun", "dpm-solver++"] = "dpm-solver++"
    steps: Positive
    cfg: Annotated[float, Field(ge=0)] = 1.0


class WMGMMethod(Sampled):
    """The sampler of WMGM: the coarse band, then the details; without details SGM, the control."""

    kind: Literal["wmgm"]
    parts: Annotated[list[Name], Field(min_length=1)]  # the coarse band's first
    solver: ScoreSolver
    detail_solver: ScoreSolver | None = None  # of details made by a score model


DECOMPOSITION, PART, METHOD = Wavelet, WMGMPart, WMGMMethod
READS = ("wmgm", "ssd")  # SGM reads the images


def check_decomposition(experiment: Experiment, key: str, section: Wavelet) -> None:
    """Whether the wavelet exists and the size can be halved often enough."""
    try:
        bands.shapes(experiment.data.channels, experiment.data.size, section.filter, section.levels)
    except ValueError as error:
        fault = "filter" if "wavelet" in str(error) else "levels"
        raise Bad(f"{key}.{fault}", getattr(section, fault), allowed_of(error)) from None


def check_part(experiment: Experiment, key: str, part: WMGMPart) -> None:
    """Whether its level exists, and its network and whitening take the bands."""
    source = experiment.decompose[part.reads]
    levels = source.levels if isinstance(source, Wavelet) else 0
    if part.role == "detail":
        if (part.level or 1) > levels:
            raise Bad(f"{key}.level", part.level, f"a level of decompose.{part.reads}, which has {levels}")
        enlarged = source.filter == bands.PIXELS  # their details have the side of the finer image
        for level in [part.level] if part.level else range(1, levels + 1):
            _check_details(key, part, experiment.data.size >> (level - enlarged))
        return
    side = experiment.data.size >> levels
    check_unet(key, part.network, side)
    numbers = experiment.data.channels * side**2
    if part.whitening == "full" and numbers > FULL:
        raise Bad(f"{key}.whitening", part.whitening, f"scale (full up to {FULL} numbers, the band has {numbers})")


def _check_details(key: str, part: WMGMPart, side: int) -> None:
    if part.model == "score":
        check_unet(key, part.network, side)
        return
    widths, factor = part.generator.widths, 2 ** (len(part.generator.widths) - 1)
    if side % factor:
        raise Bad(f"{key}.generator.widths", widths, f"fewer, since a side of {side} is no multiple of {factor}")


def check_method(experiment: Experiment, key: str, method: WMGMMethod, parts: list[WMGMPart]) -> None:
    """Whether the parts make every band once, and the solvers suit them."""
    if [part.role for part in parts] != ["low"] + ["detail"] * (len(parts) - 1):
        raise Bad(f"{key}.parts", method.parts, "the part of role 'low' first, then those of role 'detail'")
    if len({part.reads for part in parts}) > 1:
        raise Bad(f"{key}.parts", method.parts, "parts that read one decomposition")
    source = experiment.decompose[parts[0].reads]
    levels = list(range(1, source.levels + 1)) if isinstance(source, Wavelet) else []
    made = sorted(j for part in parts[1:] for j in (levels if part.level is None else [part.level]))
    if made != levels:
        raise Bad(f"{key}.parts", method.parts, f"details of each of the levels {levels} once")
    if method.solver.cfg != 1 and not parts[0].conditional:
        raise Bad(f"{key}.solver.cfg", method.solver.cfg, "1.0, since the part is not conditional")
    if method.detail_solver is None and any(part.model == "score" for part in parts[1:]):
        raise Bad(f"{key}.detail_solver", None, "a solver, since details are made by a score model")
