"""SwD's training: a few-step generator against a frozen teacher and, for some losses, a trained fake score.

Notation of arXiv 2503.16397: step k has noise sigma_k and resolution s_k; x is the generator's input. All images of a
batch share one k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from multiscale import adversarial, flow
from multiscale.condition import Condition, Conditioner
from multiscale.core import models
from multiscale.core.streams import Draws, Held
from multiscale.guidance import guided
from multiscale.methods.swd import losses
from multiscale.methods.swd.adapter import merged
from multiscale.methods.swd.config import LoraConfig, StudentConfig
from multiscale.methods.swd.lora import save_lora
from multiscale.methods.swd.schedule import DMD_RANGE, FAKE_RANGE, MMD_RANGE, sigma_grid
from multiscale.methods.swd.settings import Student
from multiscale.methods.swd.upscaling import noisy
from multiscale.training.part import Batch, Data, Loss, Nets, Part

if TYPE_CHECKING:
    from peft import PeftModel

HEAD_LAYERS = 4


class TokenHead(nn.Sequential):
    """The discriminator's head: tokens (N, T, D) -> logits (N, 1), their mean, then 4 x LayerNorm, GELU, Linear.

    Widths go from D down to one logit, evenly and cut to integers: 1536, 1152, 768, 384, 1 (section 3.2 and the
    released code).
    """

    def __init__(self, width: int):
        sizes = [int(width + (1 - width) * k / HEAD_LAYERS) for k in range(HEAD_LAYERS + 1)]
        layers = ((nn.LayerNorm(a), nn.GELU(), nn.Linear(a, b)) for a, b in zip(sizes, sizes[1:]))
        super().__init__(*(module for layer in layers for module in layer))

    def forward(self, tokens: Tensor) -> Tensor:
        x = tokens.float().mean(1)
        for layer in self:
            x = layer(x)
        return x


class FakeScore(nn.Module):
    """The score of what the generator makes, with the discriminator's head on its tokens after `block`."""

    def __init__(self, net: nn.Module, head: TokenHead | None, block: int):
        super().__init__()
        self.net, self.head, self.block = net, head, block

    def forward(
        self, x: Tensor, t: Tensor, *given: Tensor, real: Tensor | None = None, stop: bool = False
    ) -> tuple[Tensor, Tensor | None] | Tensor:
        """The velocity, and the logits (N, 1) of 'real' where there is a head; with `stop` only the tokens.

        With `real`, further images at the same levels and conditions, their logits follow: (2N, 1). It is one call,
        which is what data-parallel training can wrap.
        """
        if stop:
            features: Tensor = self.net(x, t, *given, block=self.block, stop=True)
            return features
        if self.head is None:
            return self.net(x, t, *given), None
        velocity, tokens = self.net(x, t, *given, block=self.block)
        if real is not None:  # whose velocity nobody needs
            tokens = torch.cat([tokens, self.net(real, t, *given, block=self.block, stop=True)])
        return velocity, self.head(tokens)


class StudentPart(Part):
    """A generator of N steps.

    data: columns z{resolution} and label, of which `conditioner` makes what the networks are called with. `teacher` is
    called as a DiT is; `renormalise` takes a stored latent to the teacher's normalisation.

    With a fake score a cycle is `fake.updates` steps of it and one of the generator, each on a fresh batch, all with
    the same k; k itself goes round.

    What differs from the paper and its code by default, and the setting that undoes it: students learn from the
    dataset's images, not from the teacher's (`synthetic`); the result is a moving average of the generator
    (`training.ema_images: 0`); warm-up and cosine decay of the rate, beta2 0.99, no weight decay and gradients clipped
    to 1, where the code has a constant rate, 0.999, 0.01 and 10 (`training`); MMD takes the teacher's features, as in
    the paper, where the code takes the fake score's (`mmd.features`), and the code's penalty (`mmd.penalty`). What no
    setting undoes: latents are means of the posterior, not samples; the low version of an image is downsampled at
    once, not through the resolution of the step; a GAN without DMD works, its images noised as for DMD, where the code
    fails; DMD's guided sum of velocities is taken in the precision of training (bf16 under autocast), a teacher's
    sampling in fp32.
    """

    main = "generator"
    config: StudentConfig | LoraConfig

    def __init__(
        self,
        name: str,
        data: Data,
        networks: dict[str, nn.Module],
        config: StudentConfig | LoraConfig,
        settings: Student,
        teacher: Callable[..., Tensor],
        renormalise: Callable[[Tensor], Tensor],
        conditioner: Conditioner,
    ):
        super().__init__(name, data, networks, config)
        self.settings, self.schedule, self.teacher, self.renormalise = settings, settings.schedule, teacher, renormalise
        self.conditioner, self.views = conditioner, len(settings.schedule.resolutions)
        self.frozen = {"teacher": teacher} if isinstance(teacher, nn.Module) else {}  # else it lies in the generator
        self.grid = sigma_grid(settings.shift).float()
        self.updates = settings.fake.updates if "fake" in networks else 0
        self.cycle = (self.updates + 1) * self.views  # networks and k
        if settings.mmd.weight and settings.mmd.average == "batch":
            self.couples = "mmd.average: batch takes the images of a batch as one set"

    def turns(self, step: int) -> Sequence[str]:
        return ("fake",) if step % (self.updates + 1) < self.updates else ("generator",)

    def index(self, step: int) -> int:
        """The k of a training step, from zero."""
        return step // (self.updates + 1) % len(self.schedule.resolutions)

    def loss(self, network: str, nets: Nets, batch: Batch, draws: Draws) -> Loss:
        k, condition = self.index(draws.step), self.conditioner(batch["label"])
        real = self.renormalise(batch[f"z{self.schedule.resolutions[k]}"])
        x = self._input(k, real, batch, draws)
        sigma = x.new_full((len(x),), self.schedule.sigmas[k])
        if network == "fake":
            with torch.no_grad():
                generated = losses.clean(x, nets["generator"](x, sigma, *condition.given), sigma)
            return self._fake_loss(nets["fake"], generated, real, condition, draws)
        generated = losses.clean(x, nets["generator"](x, sigma, *condition.given), sigma)
        return self._generator_loss(nets, generated, real, condition, draws)

    def errors(self, net: nn.Module, batch: Batch, held: Held) -> Tensor:
        """The MMD of each held-out image and of what a step makes of it, in noisy features of the teacher.

        Linear kernel and squared, whatever the settings: DMD and the GAN say nothing about one image, and a loss
        against networks that are trained too says nothing about progress.
        """
        k, condition = held.view, self.conditioner(batch["label"])
        real = self.renormalise(batch[f"z{self.schedule.resolutions[k]}"])
        x = self._input(k, real, batch, held)
        level = x.new_full((len(x),), self.schedule.sigmas[k])
        generated = losses.clean(x, net(x, level, *condition.given), level)
        sigma, noise = self._level(MMD_RANGE, held.levels), held.normal("mmd-noise", *real.shape[1:])
        made, wanted = (
            self.teacher(
                flow.interpolate(image, noise, sigma), sigma, *condition.given, block=self.settings.block, stop=True
            ).float()
            for image in (generated, real)
        )
        return (made - wanted).mean(1).square().mean(1)

    def save(self, folder: Path) -> None:
        """Writes a LoRA on a network of diffusers, or a plain network, an adapter of a DiT merged into it."""
        net = self.networks[self.main]
        if isinstance(self.config, LoraConfig):
            save_lora(folder, cast("PeftModel", net), self.config)
        else:
            models.save(folder, merged(net).state_dict(), self.config)

    def _input(self, k: int, real: Tensor, batch: Batch, draws: Draws | Held) -> Tensor:
        """The noisy input of step k, from the dataset's latent of the step before (no simulation of the sampler)."""
        strategy = self.settings.upscaling
        low = real if strategy == "A" else self.renormalise(batch[f"z{self.schedule.low(k)}"])
        resolution, sigma = real.shape[-1], self.schedule.sigmas[k]
        return noisy(low, resolution, sigma, lambda shape: draws.normal("noise", *shape), strategy)

    def _renoising(self, name: str, between: tuple[int, int], like: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """A level (N,) of the fine grid and unit noise (N, C, h, h) for each image."""
        return self._level(between, draws.uniform(name)), draws.normal(f"{name}-noise", *like.shape[1:])

    def _level(self, between: tuple[int, int], place: Tensor) -> Tensor:
        """The level (N,) of the fine grid at a place in 0..1 between two indices."""
        low, high = between
        index = (low + place * (high - low)).long().clamp_max(high - 1)
        return self.grid.to(place.device)[index]

    def _generator_loss(self, nets: Nets, generated: Tensor, real: Tensor, condition: Condition, draws: Draws) -> Loss:
        """The weighted sum of L_MMD, L_DMD and L_GAN (section 3.2)."""
        mmd, dmd, gan = self.settings.mmd, self.settings.dmd, self.settings.gan
        terms, weights = {}, {"mmd": mmd.weight, "dmd": dmd.weight, "gan": gan.weight}
        if mmd.weight:
            terms["mmd"] = self._mmd(nets, generated, real, condition, draws)
        if dmd.weight or gan.weight:
            sigma, noise = self._renoising("dmd", DMD_RANGE, generated, draws)
            x = flow.interpolate(generated, noise, sigma)  # shared by both terms
            velocity, logits = nets["fake"](x, sigma, *condition.given)
            if gan.weight:
                terms["gan"] = adversarial.adversarial_for_generator("logistic", logits)
            if dmd.weight:
                with torch.no_grad():
                    teacher = guided(self.teacher, condition, dmd.guidance_scale)
                    target, fake = losses.clean(x, teacher(x, sigma), sigma), losses.clean(x, velocity, sigma)
                terms["dmd"] = losses.dmd(generated, target, fake)
        return sum((weights[name] * term for name, term in terms.items()), generated.new_zeros(())), terms

    def _mmd(self, nets: Nets, generated: Tensor, real: Tensor, condition: Condition, draws: Draws) -> Tensor:
        """L_MMD of tokens after `block`: both latents of a pair get the same noise, level and condition."""
        mmd = self.settings.mmd
        sigma, noise = self._renoising("mmd", MMD_RANGE, generated, draws)
        if not mmd.noised:
            sigma = torch.zeros_like(sigma)

        def features(x: Tensor) -> Tensor:
            noised = flow.interpolate(x, noise, sigma)
            if mmd.features == "fake":
                tokens: Tensor = nets["fake"](noised, sigma, *condition.given, stop=True)
                return tokens
            return self.teacher(noised, sigma, *condition.given, block=self.settings.block, stop=True)

        with torch.no_grad():
            target = features(real)
        if mmd.kernel == "rbf":
            return losses.mmd_rbf(features(generated), target, mmd.average, mmd.width)
        return losses.mmd(features(generated), target, mmd.penalty, mmd.average)

    def _fake_loss(self, fake: nn.Module, generated: Tensor, real: Tensor, condition: Condition, draws: Draws) -> Loss:
        """Flow matching on generated latents, and the discriminator's loss on the same noise and levels."""
        gan = self.settings.gan
        sigma, noise = self._renoising("fake", FAKE_RANGE, generated, draws)
        true = flow.interpolate(real, noise, sigma) if gan.weight else None
        velocity, logits = fake(flow.interpolate(generated, noise, sigma), sigma, *condition.given, real=true)
        score = losses.fake_score(generated, noise, velocity, sigma, self.settings.fake.target)
        if not gan.weight:
            return score, {}
        count = len(generated)
        discriminator = adversarial.adversarial_for_discriminator("logistic", logits[count:], logits[:count])
        health = adversarial.health(logits[count:], logits[:count])
        return score + gan.discriminator * discriminator, {"score": score, "discriminator": discriminator, **health}
