"""The detail bands d_j given the coarse band x_j: one forward pass (adversarial or regression), or a small diffusion.

One network serves every level by default. Each level is trained on the data's own x_j (teacher forcing).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multiscale import adversarial
from multiscale.condition import Classes
from multiscale.core.models import ModelConfig
from multiscale.core.normalisation import Normalisation
from multiscale.core.resize import bilinear_to
from multiscale.core.settings import Section
from multiscale.core.streams import Draws, Held, noise_of_seeds
from multiscale.guidance import concatenated
from multiscale.methods.wmgm import score
from multiscale.methods.wmgm.attention_unet import AttentionUNet, GeneratorNetwork
from multiscale.methods.wmgm.bands import Transform, coarse, detail, transform_of
from multiscale.methods.wmgm.score import Predicts
from multiscale.methods.wmgm.score_net import ScoreNet
from multiscale.methods.wmgm.settings import DetailModel, DetailsPart, ScoreDetailsPart
from multiscale.networks.unet import UNetNetwork
from multiscale.training.part import Batch, Data, Loss, Nets, Part

EXAMINED = 64  # images whose details are generated several times to measure how much they vary


class Levels(Section):
    """What stands between bands and networks: the transform, and the normalisation of each level.

    With `standardised` bands networks see (x_j - mean) / std of the channels of that level and make d_j / std; without,
    the bands as they are, x_j in [0, 2^j] (the released code).
    """

    wavelet: str
    """name of the transform"""
    standardised: bool
    """whether networks see and make bands of unit variance"""
    coarse: list[Normalisation]
    """of x_0, ..., x_J"""
    details: list[Normalisation]
    """of d_1, ..., d_J, without a shift"""

    @cached_property
    def transform(self) -> Transform:
        """One level of the decomposition."""
        return transform_of(self.wavelet)

    def low(self, bands: Batch, level: int) -> Tensor:
        """x_level from the bands of images."""
        return coarse(bands, self.transform, len(self.details), level)[level]

    def image(self, x: Tensor, level: int) -> Tensor:
        """x_level as networks see it."""
        return self.coarse[level].apply(x) if self.standardised else x

    def condition(self, low: Tensor, level: int) -> Tensor:
        """x_level on the grid of d_level, as networks see it."""
        return self.transform.grid(self.image(low, level))

    def encode(self, details: Tensor, level: int) -> Tensor:
        """d_level as networks make it."""
        return self.details[level - 1].apply(details) if self.standardised else details

    def decode(self, made: Tensor, level: int) -> Tensor:
        """Undoes `encode`."""
        return self.details[level - 1].undo(made) if self.standardised else made


class DetailConfig(ModelConfig):
    """What the models of details share."""

    kind: Literal["wmgm"] = "wmgm"
    covers: list[int]
    """levels whose details it makes, the finest first"""
    levels: Levels


class DetailsConfig(DetailConfig):
    """A generator of details."""

    role: Literal["details"] = "details"
    noisy: bool
    """whether its input has noise; a regression has none"""
    generator: GeneratorNetwork

    def build(self) -> AttentionUNet:
        """The network with random weights; its input is the condition, and noise of as many channels."""
        outputs, channels = self.levels.details[0].channels, self.levels.coarse[0].channels
        return self.generator.build(channels * (2 if self.noisy else 1), outputs)


class ScoreDetailsConfig(DetailConfig):
    """A score model of details."""

    role: Literal["score-details"] = "score-details"
    resolution: int
    """of its finest details"""
    classes: int
    predicts: Predicts
    network: UNetNetwork

    def build(self) -> ScoreNet:
        """The network with random weights; its input is the noisy details and the condition."""
        outputs = self.levels.details[0].channels
        inputs = outputs + self.levels.coarse[0].channels
        return ScoreNet(outputs, inputs, self.resolution, self.classes, self.network, self.predicts)


class Details(Part):
    """What the parts of the details share: a level for each step, and the bands of the batch at that level."""

    config: DetailsConfig | ScoreDetailsConfig
    by_pass = False  # whether the level changes after each pass over the data, or is drawn each step

    def __init__(
        self,
        name: str,
        data: Data,
        networks: dict[str, nn.Module],
        config: DetailsConfig | ScoreDetailsConfig,
        settings: DetailModel,
    ):
        super().__init__(name, data, networks, config)
        self.levels, self.covers, self.views = config.levels, config.covers, len(config.covers)
        self.condition_noise = settings.condition_noise

    def odds(self) -> Mapping[str, Mapping[int, int]]:
        return {} if self.by_pass else {"level": dict.fromkeys(range(len(self.covers)), 1)}

    def given(self, batch: Batch, draws: Draws) -> tuple[int, Tensor, Tensor, Tensor]:
        """The level j of this step, x_j and d_j of the data, and the network's condition."""
        if self.by_pass:  # as released: batch norms remember the level of the last pass
            turn = draws.step * draws.batch // len(self.data)
            level = self.covers[turn % len(self.covers)]
        else:
            level = self.covers[draws.choice("level", len(self.covers))]
        low, real, condition = self.shown(batch, level)
        if self.condition_noise:  # against the gap between the data's coarse band and a sampled one
            condition = condition + self.condition_noise * draws.normal("condition", *condition.shape[1:])
        return level, low, real, condition

    def shown(self, batch: Batch, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """x_j and d_j of the data at a level, and the network's condition."""
        low = self.levels.low(batch, level)
        return low, batch[detail(level)], self.levels.condition(low, level)


class GeneratedDetails(Details):
    """The details in one pass: a generator against a discriminator of the next finer image, or alone (regression).

    With y = merge(x_j, d_j) and y' = merge(x_j, G([x_j, n])), as in the released code (lambda, nu, alpha: the weights
    `mse`, `ssim`, `adversarial`):
        L_G = lambda MSE(y', y) + nu (1 - SSIM((y'+1)/2, (y+1)/2)) + alpha A_G(D(y'))
        L_D = A_D(D(y), D(y')) + r1 R1(D, y)
    where A_G, A_D are `adversarial.adversarial_for_*`. With standardised bands MSE is that of d_j / std. With two draws
    of the noise it is the mean of (G(n_1) - d)(G(n_2) - d), an unbiased |E_n G - d|^2, which fits the mean and leaves
    the spread of G to the discriminator. The plain MSE penalises the spread: a generator that ignores its noise is
    optimal.
    """

    main = "generator"

    def __init__(self, name: str, data: Data, config: DetailsConfig, settings: DetailsPart):
        networks: dict[str, nn.Module] = {"generator": config.build()}
        super().__init__(name, data, networks, config, settings)
        self.noisy, self.weights, self.by_pass = config.noisy, settings.loss, settings.loss.levels == "pass"
        self.conditional, self.dropped = False, 0  # the discriminator's: sees x_j; features that dropout acts on
        if settings.discriminator is not None:
            discriminator = settings.discriminator.build(self.levels.coarse[0].channels)
            networks["discriminator"] = discriminator
            self.conditional = settings.discriminator.conditional
            self.dropped = discriminator.features if discriminator.dropout else 0
            self.rates = {"discriminator": settings.discriminator.lr_factor}
            self.twice = ("discriminator",) if self.weights.r1 else ()

    @torch.inference_mode()
    def examine(self) -> dict[str, Any]:
        """`adversarial.diversity` of each level from the coarsest, on the data's own coarse bands; {} without noise."""
        if not self.noisy:
            return {}
        net = self.networks["generator"].eval()
        device = next(net.parameters()).device
        count = min(EXAMINED, len(self.data))
        rows = self.data[torch.linspace(0, len(self.data) - 1, count).long()]
        batch = {name: x.to(device) for name, x in rows.items()}
        found = []
        for level in sorted(self.covers, reverse=True):
            condition = self.levels.condition(self.levels.low(batch, level), level)

            def generate(k: int, condition: Tensor = condition, level: int = level) -> Tensor:
                seeds = list(range(k * count, (k + 1) * count))
                noise = noise_of_seeds(seeds, detail(level), tuple(condition.shape[1:]), device)
                return self.levels.decode(generated(net, condition, noise), level)

            found.append({"level": level, **adversarial.diversity(generate, batch[detail(level)])})
        return {"diversity": found}

    def turns(self, step: int) -> Sequence[str]:
        due = "discriminator" in self.networks and (step + 1) % self.weights.discriminator_every == 0
        return ("generator", "discriminator") if due else ("generator",)

    def loss(self, network: str, nets: Nets, batch: Batch, draws: Draws) -> Loss:
        level, low, real, condition = self.given(batch, draws)
        of = self._of_generator if network == "generator" else self._of_discriminator
        return of(nets, level, low, real, condition, draws)

    def errors(self, net: nn.Module, batch: Batch, held: Held) -> Tensor:
        """|E_n G - d|^2 in standard deviations of the band, unbiased by two draws: an adversary tells no progress."""
        level = self.covers[held.view]
        _, real, condition = self.shown(batch, level)

        def error(k: int) -> Tensor:
            noise = held.normal(f"noise-{k}", *condition.shape[1:]) if self.noisy else None
            made = self.levels.decode(generated(net, condition, noise), level)
            return self.levels.details[level - 1].apply(made - real)

        first = error(0)
        return (first * (error(1) if self.noisy else first)).flatten(1).mean(1)

    def _of_generator(self, nets: Nets, level: int, low: Tensor, real: Tensor, condition: Tensor, draws: Draws) -> Loss:
        weights, merge = self.weights, self.levels.transform.merge
        made = [self._made(nets, condition, draws, k) for k in range(weights.draws)]
        truth = merge(low, real)
        images = [merge(low, self.levels.decode(each, level)) for each in made]
        if self.levels.standardised:
            errors = [each - self.levels.encode(real, level) for each in made]
        else:
            errors = [image - truth for image in images]
        terms = {"mse": (errors[0] * errors[-1]).mean()}
        total = weights.mse * terms["mse"]
        if weights.ssim:
            terms["ssim"] = adversarial.ssim((images[0] + 1) / 2, (truth + 1) / 2)
            total = total + weights.ssim * (1 - terms["ssim"])
        if "discriminator" in self.networks:
            with adversarial.frozen_averages(self.networks["discriminator"]):
                shown = self.levels.image(images[0], level - 1)
                fake = self._logits(nets, shown, low, level, draws, "generator")
            terms["adversarial"] = adversarial.adversarial_for_generator(weights.form, fake)
            total = total + weights.adversarial * terms["adversarial"]
        return total, terms

    def _of_discriminator(
        self, nets: Nets, level: int, low: Tensor, real: Tensor, condition: Tensor, draws: Draws
    ) -> Loss:
        weights, merge = self.weights, self.levels.transform.merge
        with torch.no_grad(), adversarial.frozen_averages(self.networks["generator"]):
            made, twin = (self._made(nets, condition, draws, k) for k in range(2))
        truth = merge(low, real)
        turn = draws.step // weights.discriminator_every
        lazy = bool(weights.r1) and turn % weights.r1_every == 0
        shown = self.levels.image(truth, level - 1).clone().requires_grad_(lazy)
        real_logits = self._logits(nets, shown, low, level, draws, "real")
        fakes = self.levels.image(merge(low, self.levels.decode(made, level)), level - 1)
        fake_logits = self._logits(nets, fakes, low, level, draws, "fake")
        total = adversarial.adversarial_for_discriminator(weights.form, real_logits, fake_logits)
        terms = adversarial.health(real_logits, fake_logits)
        target = self.levels.encode(real, level)
        terms["spread"] = (made - twin).square().mean() / 2  # of one image's details over the noise
        terms["residual"] = ((made - target) * (twin - target)).mean()  # what the spread should be: see `diversity`
        if weights.r1:
            penalty = adversarial.gradient_penalty(real_logits, shown) if lazy else torch.zeros_like(total)
            terms["r1"] = weights.r1 * weights.r1_every * penalty
            total = total + terms["r1"]
        return total, terms

    def _made(self, nets: Nets, condition: Tensor, draws: Draws, k: int) -> Tensor:
        noise = draws.normal(f"noise-{k}", *condition.shape[1:]) if self.noisy else None
        return generated(nets["generator"], condition, noise)

    def _logits(self, nets: Nets, image: Tensor, low: Tensor, level: int, draws: Draws, of: str) -> Tensor:
        """The discriminator's logits of x_{level-1}, beside the enlarged x_level where it is conditional."""
        if self.conditional:
            image = torch.cat([image, bilinear_to(self.levels.image(low, level), image.shape[-1])], 1)
        uniform = draws.uniform(f"dropout/{of}", self.dropped) if self.dropped else None
        logits: Tensor = nets["discriminator"](image, uniform)
        return logits.float()


class DiffusedDetails(Details):
    """The details by diffusion, eps(d_j at time t, x_j): the ablations WSGM (arXiv 2208.05003) and small diffusion."""

    def __init__(self, name: str, data: Data, config: ScoreDetailsConfig, settings: ScoreDetailsPart):
        super().__init__(name, data, {"net": config.build()}, config, settings)
        self.label_dropout, self.conditioner = settings.label_dropout, Classes(config.classes)
        self.weight = score.weight_of(settings.predicts, settings.snr_cap)

    def loss(self, network: str, nets: Nets, batch: Batch, draws: Draws) -> Loss:
        """`score.loss` of d_j given x_j."""
        level, _, real, image = self.given(batch, draws)
        net = concatenated(nets["net"], image)
        condition = self.conditioner(batch["label"]).dropped(self.label_dropout, draws)
        target = self.levels.encode(real, level)
        return score.loss(lambda x, t: net(x, t, *condition.given), target, draws, self.weight), {}

    def errors(self, net: nn.Module, batch: Batch, held: Held) -> Tensor:
        """`score.errors` of d_j given x_j."""
        level = self.covers[held.view]
        _, real, image = self.shown(batch, level)
        condition, predict = self.conditioner(batch["label"]), concatenated(net, image)
        return score.errors(lambda x, t: predict(x, t, *condition.given), self.levels.encode(real, level), held)


def generated(net: nn.Module, condition: Tensor, noise: Tensor | None) -> Tensor:
    """A generator's details, as networks make them, from its condition and noise of the same shape (or none)."""
    details: Tensor = net(condition if noise is None else torch.cat([condition, noise], 1))
    return details.float()
