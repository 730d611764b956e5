"""SwD's training: a few-step generator against a frozen teacher and, for some losses, a trained fake score.

Notation of arXiv 2503.16397: step k has noise sigma_k and side s_k; z_k is the clean latent of the image at s_k, x the
generator's input, `made` its clean prediction. All images of a batch share one k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from multiscale import adversarial, flow
from multiscale.methods.swd import losses
from multiscale.methods.swd.schedule import DMD_RANGE, FAKE_RANGE, MMD_RANGE, Schedule, sigma_grid
from multiscale.methods.swd.token_head import TokenHead
from multiscale.methods.swd.upscaling import noisy
from multiscale.training.part import Data, Nets, Part


class Teacher(Protocol):
    """A frozen network: its velocity; with `stop` its tokens after a block."""

    def __call__(
        self, x: Tensor, t: Tensor, labels: Tensor, block: int | None = None, stop: bool = False
    ) -> Tensor: ...


class FakeScore(nn.Module):
    """The score of what the generator makes, and the discriminator's head on its features after `block`."""

    def __init__(self, net: nn.Module, head: TokenHead | None, block: int):
        super().__init__()
        self.net, self.head, self.block = net, head, block

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor, stop: bool = False
    ) -> tuple[Tensor, Tensor | None] | Tensor:
        """The velocity, and the logits (N, 1) of 'real' where there is a head; with `stop` the features alone."""
        if stop:
            return self.net(x, t, labels, self.block, stop=True)
        if self.head is None:
            return self.net(x, t, labels), None
        velocity, tokens = self.net(x, t, labels, self.block)
        return velocity, self.head(tokens)


class StudentPart(Part):
    """A generator of N steps.

    data: columns z{side} and label; `section` is the student's section of the params, `bring` takes a stored latent
    to the teacher's normalisation. With a fake score a cycle is `fake.updates` steps of it and one of the generator,
    each on a fresh batch, all with the same k; k itself goes round.

    What differs from the paper and its code by default, and the setting that undoes it: students learn from the data's
    own images, not from the teacher's (`synthetic`); the result is a moving average of the generator
    (`training.ema_images: 0`); warm-up and cosine decay of the rate, beta2 0.99, no weight decay and gradients clipped
    to 1, where the code has a constant rate, 0.999, 0.01 and 10 (`training`); MMD takes the teacher's features, as in
    the paper, where the code takes the fake score's (`mmd.features`), and the code's penalty (`mmd.penalty`). What no
    setting undoes: latents are means of the posterior, not samples; the low version of an image is downsampled at
    once, not through the side of the step; a GAN without DMD works, its images noised as for DMD, where the code fails;
    DMD's guided sum of velocities is taken in the precision of training (bf16 under autocast), a teacher's sampling
    in fp32.
    """

    main = "generator"

    def __init__(
        self,
        name: str,
        data: Data,
        players: dict[str, nn.Module],
        teacher: Teacher,
        null: int,
        bring: Callable[[Tensor], Tensor],
        section: dict,
    ):
        super().__init__(name, data, players)
        self.teacher, self.null, self.bring = teacher, null, bring
        self.frozen = {"teacher": teacher} if isinstance(teacher, nn.Module) else {}  # else it lies in the generator
        self.schedule = Schedule(tuple(section["schedule"]["sides"]), tuple(section["schedule"]["sigmas"]))
        self.mmd, self.dmd, self.gan, self.fake = (section[key] for key in ("mmd", "dmd", "gan", "fake"))
        self.block, self.upscaling = section["block"], section["upscaling"]
        self.grid = sigma_grid(section["shift"]).float()
        self.updates = self.fake["updates"] if "fake" in players else 0

    def turns(self, step: int) -> Sequence[str]:
        return ("fake",) if step % (self.updates + 1) < self.updates else ("generator",)

    def index(self, step: int) -> int:
        """The k of a training step, from zero."""
        return step // (self.updates + 1) % len(self.schedule.sides)

    def loss(self, player: str, nets: Nets, batch: dict[str, Tensor], draws) -> tuple[Tensor, dict[str, Tensor]]:
        k, labels = self.index(draws.step), batch["label"]
        truth = self.bring(batch[f"z{self.schedule.sides[k]}"])
        x = self._input(k, truth, batch, draws)
        sigma = x.new_full((len(x),), self.schedule.sigmas[k])
        if player == "fake":
            with torch.no_grad():
                made = losses.clean(x, nets["generator"](x, sigma, labels), sigma)
            return self._fake_loss(nets["fake"], made, truth, labels, draws)
        made = losses.clean(x, nets["generator"](x, sigma, labels), sigma)
        return self._generator_loss(nets, made, truth, labels, draws)

    def _input(self, k: int, truth: Tensor, batch: dict[str, Tensor], draws) -> Tensor:
        """The noisy input of step k, from the data's own latent of the step before (no simulation of the sampler)."""
        low = truth if self.upscaling == "A" else self.bring(batch[f"z{self.schedule.low(k)}"])
        side, sigma = truth.shape[-1], self.schedule.sigmas[k]
        return noisy(low, side, sigma, lambda shape: draws.normal("noise", *shape), self.upscaling)

    def _renoising(self, name: str, between: tuple[int, int], like: Tensor, draws) -> tuple[Tensor, Tensor]:
        """One level of the fine grid and unit noise for each image."""
        low, high = between
        index = (low + draws.uniform(name) * (high - low)).long().clamp_max(high - 1)
        return self.grid.to(like.device)[index], draws.normal(f"{name}-noise", *like.shape[1:])

    def _generator_loss(
        self, nets: Nets, made: Tensor, truth: Tensor, labels: Tensor, draws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        terms, weights = {}, {"mmd": self.mmd["weight"], "dmd": self.dmd["weight"], "gan": self.gan["weight"]}
        if weights["mmd"]:
            terms["mmd"] = self._mmd(nets, made, truth, labels, draws)
        if weights["dmd"] or weights["gan"]:
            sigma, noise = self._renoising("dmd", DMD_RANGE, made, draws)
            x = flow.interpolate(made, noise, sigma)  # shared by both terms
            velocity, logits = nets["fake"](x, sigma, labels)
            if weights["gan"]:
                terms["gan"] = adversarial.adversarial_for_generator("logistic", logits)
            if weights["dmd"]:
                with torch.no_grad():
                    guided = flow.guided(self.teacher, labels, self.null, self.dmd["cfg"])
                    real, fake = losses.clean(x, guided(x, sigma), sigma), losses.clean(x, velocity, sigma)
                terms["dmd"] = losses.dmd(made, real, fake)
        return sum(weights[name] * term for name, term in terms.items()), terms

    def _mmd(self, nets: Nets, made: Tensor, truth: Tensor, labels: Tensor, draws) -> Tensor:
        """Both members of a pair get the same noise, level and class."""
        sigma, noise = self._renoising("mmd", MMD_RANGE, made, draws)
        if not self.mmd["noised"]:
            sigma = torch.zeros_like(sigma)

        def features(x: Tensor) -> Tensor:
            noised = flow.interpolate(x, noise, sigma)
            if self.mmd["features"] == "fake":
                return nets["fake"](noised, sigma, labels, stop=True)
            return self.teacher(noised, sigma, labels, self.block, stop=True)

        with torch.no_grad():
            real = features(truth)
        if self.mmd["kernel"] == "rbf":
            return losses.mmd_rbf(features(made), real, self.mmd["average"], self.mmd["width"])
        return losses.mmd(features(made), real, self.mmd["penalty"], self.mmd["average"])

    def _fake_loss(
        self, fake: nn.Module, made: Tensor, truth: Tensor, labels: Tensor, draws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        sigma, noise = self._renoising("fake", FAKE_RANGE, made, draws)
        both = [made, truth] if self.gan["weight"] else [made]
        count = len(made)
        # One call for both, which is what data-parallel training can wrap.
        x = torch.cat([flow.interpolate(latent, noise, sigma) for latent in both])
        velocity, logits = fake(x, sigma.repeat(len(both)), labels.repeat(len(both)))
        score = losses.fake_score(made, noise, velocity[:count], sigma, self.fake["target"])
        if not self.gan["weight"]:
            return score, {}
        judged = adversarial.adversarial_for_discriminator("logistic", logits[count:], logits[:count])
        told = adversarial.health(logits[count:], logits[:count])
        return score + self.gan["discriminator"] * judged, {"score": score, "discriminator": judged, **told}
