"""WMGM and its control SGM: a score model of the coarse wavelet band, and the details of each level."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import Field, model_validator

from multiscale.adversarial import Form
from multiscale.core.settings import (
    Above0,
    Bad,
    Decomposed,
    Experiment,
    From0,
    Halvings,
    Positive,
    Sampled,
    Section,
    Share,
    Text,
    Trained,
    allowed_of,
    preset,
)
from multiscale.methods.wmgm import bands
from multiscale.methods.wmgm.attention_unet import DiscriminatorNetwork, GeneratorNetwork
from multiscale.methods.wmgm.score import Predicts, ScoreSolver
from multiscale.methods.wmgm.whitening import FULL, Kind
from multiscale.networks.unet import UNetNetwork
from multiscale.training.part import Training

#                form            mse   ssim  adversarial  r1   r1_every  discriminator_every  draws  levels
LOSSES = {
    # the released code's weights lambda, nu, alpha; the squared error is that of images in [0, 2^(j-1)], where the
    # part has `standardised: false`
    "official":   ("sigmoid-mean", 20.0, 0.5,  0.1,         0.0, 16,       4,                   1,     "pass"),
    # the squared error is that of standardised bands (`standardised: true`), and of their mean over two draws
    "stabilised": ("logistic",     5.0,  0.0,  0.4,         1.0, 16,       1,                   2,     "random"),
    # no discriminator: the plain U-Net that the reviewers asked for
    "regression": ("logistic",     20.0, 0.5,  0.0,         0.0, 16,       1,                   1,     "random"),
}  # fmt: skip


class Wavelet(Decomposed):
    """Wavelet bands of the images: a coarse one and the details of each level."""

    kind: Literal["wmgm"]
    source: Literal["pixels"] = "pixels"
    filter: Text = "haar"
    """an orthogonal wavelet; pixels: residuals of averages, an ablation"""
    levels: Halvings = 1
    """each halves the resolution of the coarse band"""


class DetailLoss(Section):
    """The weights of the details' losses; `preset: NAME` stands for all of them."""

    form: Form
    """of the adversarial loss"""
    mse: From0
    """weight of the squared error, the paper's lambda"""
    ssim: From0
    """weight of 1 - SSIM, the paper's nu"""
    adversarial: From0
    """weight of the adversarial loss, the paper's alpha"""
    r1: From0
    """weight of the discriminator's gradient penalty; 0: none"""
    r1_every: Positive
    """discriminator updates for each penalty, which is scaled by them"""
    discriminator_every: Positive
    """generator updates for each update of the discriminator"""
    draws: Literal[1, 2]
    """of noise a step; 2: the squared error is that of the mean details"""
    levels: Literal["random", "pass"]
    """random: a level each step; pass: the next one after each epoch"""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return preset(value, LOSSES, tuple(cls.model_fields))


class WMGMPart(Trained):
    """What every part of WMGM says of itself."""

    kind: Literal["wmgm"]
    role: str


class ScoreModel(Section):
    """What every score model says of itself."""

    network: UNetNetwork
    conditional: bool = True
    """whether the network knows the classes"""
    label_dropout: Share = 0.1
    """share of labels dropped, for classifier-free guidance"""
    predicts: Predicts = "velocity"
    """what the network predicts"""
    snr_cap: Above0 | None = None
    """of Min-SNR weighting; null: the plain error of the prediction"""


class DetailModel(Section):
    """What every model of details says of itself."""

    level: Positive | None = None
    """that it makes, 1: the finest; null: one network for every level"""
    standardised: bool = True
    """whether bands have unit variance; the released code's have not"""
    condition_noise: From0 = 0.0
    """standard deviation of noise on the coarse band in training"""


class CoarsePart(ScoreModel, WMGMPart):
    """The score model of the coarse band, or of the pixels (SGM, the control)."""

    role: Literal["coarse"]
    """which of WMGM's models: coarse, details or score-details"""
    whitening: Kind = "scale"
    """scale: each channel alone; full: the covariance of all numbers"""
    training: Training


class DetailsPart(DetailModel, WMGMPart):
    """The details in one pass of a generator."""

    role: Literal["details"]
    """which of WMGM's models: coarse, details or score-details"""
    generator: GeneratorNetwork
    loss: DetailLoss
    discriminator: DiscriminatorNetwork | None = None
    """null: a regression, without noise"""
    training: Training

    @model_validator(mode="after")
    def _check(self) -> DetailsPart:
        if self.discriminator is None and self.loss.adversarial:
            raise Bad("loss.adversarial", self.loss.adversarial, "0, since there is no discriminator")
        return self


class ScoreDetailsPart(ScoreModel, DetailModel, WMGMPart):
    """The details by a score model, for the ablations (WSGM; a small diffusion)."""

    role: Literal["score-details"]
    """which of WMGM's models: coarse, details or score-details"""
    training: Training


class WMGMMethod(Sampled):
    """The sampler of WMGM: the coarse band, then the details; without details SGM, the control."""

    kind: Literal["wmgm"]
    solver: ScoreSolver = ScoreSolver()
    """of the coarse band"""
    detail_solver: ScoreSolver | None = None
    """of details made by a score model; null: as `solver`"""


Part = CoarsePart | DetailsPart | ScoreDetailsPart
DECOMPOSITION, METHOD = Wavelet, WMGMMethod
PART = Annotated[Union[CoarsePart, DetailsPart, ScoreDetailsPart], Field(discriminator="role")]  # noqa: UP007
DATASETS = ("wmgm", "ssd")  # SGM trains on the images


def levels_of(experiment: Experiment, dataset: str) -> int:
    """The levels of a dataset, 0 for the images themselves."""
    source = experiment.decompose[dataset]
    return source.levels if isinstance(source, Wavelet) else 0


def check_decomposition(experiment: Experiment, key: str, section: Wavelet) -> None:
    """Refuses a wavelet that does not exist, and more levels than the resolution can be halved."""
    try:
        bands.shapes(experiment.data.channels, experiment.data.resolution, section.filter, section.levels)
    except ValueError as error:
        fault = "filter" if "wavelet" in str(error) else "levels"
        raise Bad(f"{key}.{fault}", getattr(section, fault), allowed_of(error)) from None


def check_part(experiment: Experiment, key: str, part: Part) -> None:
    """Refuses a level that does not exist, and a network or whitening that does not fit the bands."""
    levels, full = levels_of(experiment, part.dataset), experiment.data.resolution
    if isinstance(part, CoarsePart):
        resolution = full >> levels
        part.network.check(f"{key}.network", resolution)
        numbers = experiment.data.channels * resolution**2
        if part.whitening == "full" and numbers > FULL:
            raise Bad(f"{key}.whitening", part.whitening, f"scale (full up to {FULL} numbers, the band has {numbers})")
        return
    if (part.level or 1) > levels:
        raise Bad(f"{key}.level", part.level, f"a level of decompose.{part.dataset}, which has {levels}")
    enlarged = experiment.decompose[part.dataset].filter == bands.PIXELS  # details at the resolution of x_{j-1}
    for level in [part.level] if part.level else range(1, levels + 1):
        resolution = full >> (level - enlarged)
        if isinstance(part, ScoreDetailsPart):
            part.network.check(f"{key}.network", resolution)
        elif resolution % part.generator.factor:
            fewer = f"fewer, since a resolution of {resolution} is no multiple of {part.generator.factor}"
            raise Bad(f"{key}.generator.widths", part.generator.widths, fewer)


def check_method(experiment: Experiment, key: str, method: WMGMMethod, parts: list[Part]) -> None:
    """Refuses parts that do not make every band of one dataset once, and solvers that do not suit them."""
    datasets, roles = sorted({part.dataset for part in parts}), [part.role for part in parts]
    if roles.count("coarse") != 1:
        raise Bad(key, roles, "parts of which one has the role coarse")
    if len(datasets) > 1:
        raise Bad(key, datasets, "parts of one dataset")
    levels = list(range(1, levels_of(experiment, datasets[0]) + 1))
    details = [part for part in parts if not isinstance(part, CoarsePart)]
    made = sorted(level for part in details for level in ([part.level] if part.level else levels))
    if made != levels:
        raise Bad(key, made, f"parts that make the details of each of the levels {levels} once")
    if method.detail_solver and not any(isinstance(part, ScoreDetailsPart) for part in details):
        raise Bad(f"{key}.detail_solver", method.detail_solver.name, "null, since no score model makes details")
    for part in parts:
        shared = isinstance(part, CoarsePart) or method.detail_solver is None
        field = "solver" if shared else "detail_solver"
        scale = getattr(method, field).guidance_scale
        if isinstance(part, ScoreModel) and not part.conditional and scale != 1:
            raise Bad(f"{key}.{field}.guidance_scale", scale, "1.0, since the part is not conditional")
