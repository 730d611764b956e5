"""The detail bands d_j given the coarse band x_j: one forward pass (adversarial or regression), or a small diffusion.

One network serves every level by default. Level by level its input is the data's own x_j (teacher forcing).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multiscale import adversarial, flow
from multiscale.core.pixels import per_channel
from multiscale.core.resize import bilinear_to
from multiscale.core.streams import Draws, noise_of_seeds
from multiscale.methods.wmgm import score
from multiscale.methods.wmgm.attention_unet import AttentionUNet, Discriminator
from multiscale.methods.wmgm.bands import coarse, detail, transform_of
from multiscale.methods.wmgm.score_net import ScoreNet
from multiscale.training.part import Data, Nets, Part

EXAMINED = 64  # images whose details are made several times over to see how much they vary


class Levels:
    """What stands between bands and networks: the transform, and how each level is scaled.

    With `standardised` bands networks see (x_j - mean) / std of the channels of that level and make d_j / std; without,
    the bands as they are, x_j in [0, 2^j] (the released code).
    """

    def __init__(self, config: dict):
        self.transform, self.count = transform_of(config["wavelet"]), config["levels"]
        self.standardised, self.statistics = config["standardised"], config["statistics"]

    def image(self, x: Tensor, level: int) -> Tensor:
        """x_level as networks see it."""
        if not self.standardised:
            return x
        entry = self.statistics["coarse"][level]
        return (x - per_channel(entry["mean"]).to(x)) / per_channel(entry["std"]).to(x)

    def condition(self, low: Tensor, level: int) -> Tensor:
        """x_level on the grid of d_level, as networks see it."""
        return self.transform.grid(self.image(low, level))

    def _std(self, level: int, like: Tensor) -> Tensor:
        return per_channel(self.statistics["details"][level - 1]).to(like)

    def encode(self, details: Tensor, level: int) -> Tensor:
        """d_level as networks make it."""
        return details / self._std(level, details) if self.standardised else details

    def decode(self, made: Tensor, level: int) -> Tensor:
        """Undoes `encode`."""
        return made * self._std(level, made) if self.standardised else made


class DetailPart(Part):
    """What the parts of the details share: a level for each step, and the bands of the batch at that level."""

    def __init__(self, name: str, data: Data, players: dict, config: dict, part: dict):
        super().__init__(name, data, players)
        self.levels, self.covered = Levels(config), config["covers"]
        self.condition_noise = part["condition_noise"]
        self.by_pass = (part.get("loss") or {}).get("levels") == "pass"

    def given(self, batch: dict[str, Tensor], draws: Draws) -> tuple[int, Tensor, Tensor, Tensor]:
        """The level j of this step, x_j and d_j of the data, and the network's condition."""
        if self.by_pass:  # one pass over the data at each level in turn, as released: batch norms remember the last one
            turn = draws.step * draws.batch // len(self.data)
            level = self.covered[turn % len(self.covered)]
        else:
            level = self.covered[draws.choice("level", len(self.covered))]
        low = coarse(batch, self.levels.transform, self.levels.count, level)[level]
        condition = self.levels.condition(low, level)
        if self.condition_noise:  # against the gap between the data's coarse band and a sampled one
            condition = condition + self.condition_noise * draws.normal("condition", *condition.shape[1:])
        return level, low, batch[detail(level)], condition


class PassPart(DetailPart):
    """The details in one pass: a generator against a discriminator of the next finer image, or alone (regression).

    L_G = adversarial A(D(y')) + mse MSE + ssim (1 - SSIM((y'+1)/2, (y+1)/2)), y' = merge(x_j, G([x_j, n])). MSE is of
    the images, or of standardised bands. With two draws of the noise it is the mean of (G(n_1) - d)(G(n_2) - d), an
    unbiased |E_n G - d|^2: the mean is fitted, and how far G spreads is left to the adversary. The plain MSE punishes
    all spread, so that a generator that ignores its noise is its optimum.
    """

    main = "generator"

    def __init__(self, name: str, data: Data, players: dict, config: dict, part: dict):
        super().__init__(name, data, players, config, part)
        self.noisy, self.settings = config["noisy"], part["loss"]
        self.conditional = "discriminator" in players and part["discriminator"]["conditional"]
        self.rates = {"discriminator": part["discriminator"]["lr_factor"]} if "discriminator" in players else {}

    @torch.inference_mode()
    def examine(self) -> dict:
        """`adversarial.diversity` of each level from the coarsest, on the data's own coarse bands; {} without noise."""
        if not self.noisy:
            return {}
        net = self.players["generator"].eval()
        device = next(net.parameters()).device
        count = min(EXAMINED, len(self.data))
        rows = self.data[torch.linspace(0, len(self.data) - 1, count).long()]
        batch = {name: x.to(device) for name, x in rows.items()}
        found = []
        for level in sorted(self.covered, reverse=True):
            low = coarse(batch, self.levels.transform, self.levels.count, level)[level]
            condition = self.levels.condition(low, level)

            def generate(k: int, condition: Tensor = condition, level: int = level) -> Tensor:
                seeds = list(range(k * count, (k + 1) * count))
                noise = noise_of_seeds(seeds, detail(level), tuple(condition.shape[1:])).to(device)
                return self.levels.decode(generated(net, condition, noise), level)

            found.append({"level": level, **adversarial.diversity(generate, batch[detail(level)])})
        return {"diversity": found}

    def turns(self, step: int) -> Sequence[str]:
        if "discriminator" in self.players and (step + 1) % self.settings["discriminator_every"] == 0:
            return ("generator", "discriminator")
        return ("generator",)

    def loss(self, player: str, nets: Nets, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        level, low, real, condition = self.given(batch, draws)
        if player == "generator":
            return self._generator(nets, level, low, real, condition, draws)
        return self._discriminator(nets, level, low, real, condition, draws)

    def _generator(
        self, nets: Nets, level: int, low: Tensor, real: Tensor, condition: Tensor, draws: Draws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        weights, merge = self.settings, self.levels.transform.merge
        made = [self._made(nets, condition, draws, k) for k in range(weights["draws"])]
        truth = merge(low, real)
        images = [merge(low, self.levels.decode(each, level)) for each in made]
        if self.levels.standardised:
            errors = [each - self.levels.encode(real, level) for each in made]
        else:
            errors = [image - truth for image in images]
        terms = {"mse": (errors[0] * errors[-1]).mean()}
        total = weights["mse"] * terms["mse"]
        if weights["ssim"]:
            terms["ssim"] = adversarial.ssim((images[0] + 1) / 2, (truth + 1) / 2)
            total = total + weights["ssim"] * (1 - terms["ssim"])
        if "discriminator" in self.players:
            with adversarial.listening(self.players["discriminator"]):
                shown = self._beside(self.levels.image(images[0], level - 1), low, level)
                fake = self._logits(nets, shown, draws, "generator")
            terms["adversarial"] = adversarial.adversarial_for_generator(weights["form"], fake)
            total = total + weights["adversarial"] * terms["adversarial"]
        return total, terms

    def _discriminator(
        self, nets: Nets, level: int, low: Tensor, real: Tensor, condition: Tensor, draws: Draws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        weights, merge = self.settings, self.levels.transform.merge
        with torch.no_grad(), adversarial.listening(self.players["generator"]):
            made, twin = (self._made(nets, condition, draws, k) for k in range(2))
        truth = merge(low, real)
        turn = draws.step // weights["discriminator_every"]
        lazy = bool(weights["r1"]) and turn % weights["r1_every"] == 0
        shown = self.levels.image(truth, level - 1).clone().requires_grad_(lazy)
        real_logits = self._logits(nets, self._beside(shown, low, level), draws, "real")
        fakes = self.levels.image(merge(low, self.levels.decode(made, level)), level - 1)
        fake_logits = self._logits(nets, self._beside(fakes, low, level), draws, "fake")
        total = adversarial.adversarial_for_discriminator(weights["form"], real_logits, fake_logits)
        terms = adversarial.health(real_logits, fake_logits)
        target = self.levels.encode(real, level)
        terms["spread"] = (made - twin).square().mean() / 2  # of one image's details over the noise
        terms["residual"] = ((made - target) * (twin - target)).mean()  # what the spread should be: see `diversity`
        if weights["r1"]:
            penalty = adversarial.gradient_penalty(real_logits, shown) if lazy else torch.zeros_like(total)
            terms["r1"] = weights["r1"] * weights["r1_every"] * penalty
            total = total + terms["r1"]
        return total, terms

    def _made(self, nets: Nets, condition: Tensor, draws: Draws, k: int) -> Tensor:
        noise = draws.normal(f"noise-{k}", *condition.shape[1:]) if self.noisy else None
        return generated(nets["generator"], condition, noise)

    def _beside(self, image: Tensor, low: Tensor, level: int) -> Tensor:
        """What the discriminator is shown: x_{level-1}, beside the enlarged x_level where it is conditional."""
        if self.conditional:
            return torch.cat([image, bilinear_to(self.levels.image(low, level), image.shape[-1])], 1)
        return image

    def _logits(self, nets: Nets, seen: Tensor, draws: Draws, of: str) -> Tensor:
        net = self.players["discriminator"]
        uniform = draws.uniform(f"dropout/{of}", net.features) if net.dropout else None
        return nets["discriminator"](seen, uniform).float()


class ScoreDetailPart(DetailPart):
    """The details by diffusion: eps(d_j at time t, x_j), for the ablations (WSGM; a small diffusion)."""

    def __init__(self, name: str, data: Data, net: ScoreNet, config: dict, part: dict):
        super().__init__(name, data, {"net": net}, config, part)
        self.label_dropout, self.null = part["label_dropout"], net.null_label
        self.weight = score.weight_of(part["predicts"], part["snr_cap"])

    def loss(self, player: str, nets: Nets, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        level, _, real, condition = self.given(batch, draws)
        predict, labels = conditioned(nets["net"], condition), dropped(self.null, self.label_dropout, batch, draws)
        data = self.levels.encode(real, level)
        return score.loss(lambda x, t: predict(x, t, labels), data, draws, self.weight), {}


def generated(net: AttentionUNet, condition: Tensor, noise: Tensor | None) -> Tensor:
    """The generator's details, as networks make them, from its condition and noise of the same shape (or none)."""
    return net(condition if noise is None else torch.cat([condition, noise], 1)).float()


def conditioned(net: ScoreNet, condition: Tensor | None):
    """The score network with its condition concatenated, if it has one; twice for a guided, doubled batch."""
    if condition is None:
        return net
    return lambda x, t, c: net(torch.cat([x, condition.repeat(len(x) // len(condition), 1, 1, 1)], 1), t, c)


def dropped(null: int | None, share: float, batch: dict[str, Tensor], draws: Draws) -> Tensor | None:
    """The labels of a batch, a share of them replaced by 'no class'; None for a network without classes."""
    if null is None:
        return None
    return torch.where(draws.uniform("label") < share, null, batch["label"])


def solve(
    net: ScoreNet,
    condition: Tensor | None,
    labels: Tensor,
    seeds: list[int],
    stream: str,
    shape: tuple[int, ...],
    solver: dict,
    watch: score.Watch = lambda x: None,
) -> Tensor:
    """Runs a score model from noise: `solver` has a method, a number of steps and a guidance weight `cfg`.

    Image k depends on seeds[k]. Raises ValueError for guidance of a network without classes.
    """
    network = conditioned(net, condition)
    device = labels.device

    def noise(step: int) -> Tensor:
        return noise_of_seeds(seeds, f"{stream}/{step}", shape).to(device)

    if net.null_label is None:
        if solver["cfg"] != 1:
            raise ValueError(f"a guidance weight of {solver['cfg']} for a network without classes; allowed: 1")
        predict = lambda x, t: network(x, t, None).float()  # noqa: E731
    else:
        predict = flow.guided(lambda x, t, c: network(x, t, c).float(), labels, net.null_label, solver["cfg"])
    start = noise_of_seeds(seeds, stream, shape).to(device)
    return score.SOLVERS[solver["method"]](predict, start, solver["steps"], noise, watch)


def build_generator(config: dict) -> AttentionUNet:
    """The generator of a config: its input holds the condition, and as many channels of noise where it is noisy."""
    channels, outputs = config["channels"], len(config["statistics"]["details"][0])
    return AttentionUNet(channels * (2 if config["noisy"] else 1), outputs, **config["generator"])


def build_discriminator(config: dict, section: dict) -> Discriminator:
    """The discriminator of a part, of one image or, where it is conditional, of two."""
    sizes = {key: section[key] for key in ("width", "blocks", "norm", "dropout")}
    return Discriminator(config["channels"] * (2 if section["conditional"] else 1), **sizes)


def build_score(config: dict) -> ScoreNet:
    """The score network of the details of a config."""
    channels, outputs = config["channels"], len(config["statistics"]["details"][0])
    inputs = outputs + channels
    return ScoreNet(outputs, inputs, config["side"], config["classes"], config["network"], None, config["predicts"])
