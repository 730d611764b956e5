"""SSD: diffusion whose states shrink while they get noisier, with one Flexi-UNet (arXiv 2603.08709).

The network sees x_t at the resolution r(t) and predicts the clean image at r(t-1). With one level, or with the operator
'identity', this is DDPM (arXiv 2006.11239). Three variants of DDPM differ in what the UNet predicts, in the weight of
its error, and in the noise that a step draws:

  ddpm      the clean image  Min-SNR     small variance, the posterior's: SSD with one level and nothing else changed
  ddpm-x0   the clean image  Min-SNR-5   large variance, beta_t: the paper's DDPM-x_0
  ddpm-eps  the noise        plain loss  large variance, beta_t: the paper's DDPM-eps

The published baselines are plain UNets, which run the block that Flexi-UNet leaves out (`network.top_block`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from multiscale.condition import Classes, Condition
from multiscale.core.pixels import to_signed
from multiscale.core.storage import Table, read_json
from multiscale.core.streams import Draws, Held
from multiscale.methods.ssd.model import SSDConfig, build_network, prediction
from multiscale.methods.ssd.process import Timesteps, TimestepSampler, min_snr_weights
from multiscale.methods.ssd.settings import SSDPart
from multiscale.training.part import Batch, Data, Loss, Nets, Part

HELD_CAP = 1.0  # of the Min-SNR weight of held-out images: trainings with other weights are compared by it


class ScaleSpacePart(Part):
    """The denoiser: predicts the clean image at the resolution of the next state, or with one resolution the noise."""

    partial = True  # only the levels that the batch's resolutions need are run
    config: SSDConfig

    def __init__(self, name: str, data: Data, settings: SSDPart, config: SSDConfig):
        super().__init__(name, data, {"net": build_network(config)}, config)
        self.settings, self.conditioner = settings, Classes(config.classes)
        self.process = process = config.process.build(config.resolution)
        self.timesteps = TimestepSampler(process, settings.oversample, settings.reweight)
        states = range(process.steps)
        weights = [min_snr_weights(process, cap, config.predicts) for cap in (settings.snr_cap, HELD_CAP)]
        columns = [[process.signal(t) for t in states], [process.sigma(t) for t in states], *weights]
        self.table = torch.tensor(columns)  # (4, T): a_t, sigma_t, weight in training and of held-out images

    def odds(self) -> Mapping[str, Mapping[int, int]]:
        return {"time": self.timesteps.odds()}

    def loss(self, network: str, nets: Nets, batch: Batch, draws: Draws) -> Loss:
        """E w(t) || net(x_t, t, r(t-1)) - R_{0:t-1} x_0 ||^2 with the Min-SNR weight w (Algorithm 1)."""
        clean = to_signed(batch["pixels"])
        if self.settings.flip:
            mirrored = (draws.uniform("flip") < 0.5).view(-1, 1, 1, 1)
            clean = torch.where(mirrored, clean.flip(-1), clean)
        times = self.timesteps.draw(draws)
        condition = self.conditioner(batch["label"]).dropped(self.settings.label_dropout, draws)
        squares, weight, _ = self._squares(nets["net"], clean, condition, times, draws)
        return times.weight * (weight * squares).mean(), {}

    def errors(self, net: nn.Module, batch: Batch, held: Held) -> Tensor:
        """The squared error of the clean image times min(SNR, 1), whatever is predicted, at each image's level."""
        clean, condition = to_signed(batch["pixels"]), self.conditioner(batch["label"])
        states = (held.levels * self.process.steps).long()
        pairs = [(self.process.resolution(t), self.process.resolution(t - 1)) for t in states.tolist()]
        found = clean.new_zeros(len(clean))
        for pair in dict.fromkeys(pairs):
            rows = [row for row, own in enumerate(pairs) if own == pair]
            given = replace(condition, given=tuple(x[rows] for x in condition.given))
            noise = replace(held, seeds=[held.seeds[row] for row in rows], levels=held.levels[rows])
            squares, _, weight = self._squares(net, clean[rows], given, Timesteps(states[rows], *pair, 1.0), noise)
            found[rows] = (weight * squares).flatten(1).mean(1)
        return found

    def _squares(
        self, net: nn.Module, clean: Tensor, condition: Condition, times: Timesteps, draws: Draws | Held
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The squared error of the prediction from noisy states, its weight in training and on held-out images."""
        signal, sigma, weight, of_held = self.table.to(clean.device)[:, times.t].view(4, -1, 1, 1, 1)
        low, target = self.process.shrink(clean, times.resolution), self.process.shrink(clean, times.target_resolution)
        noise = draws.normal("noise", *low.shape[1:])
        state = signal * low + sigma * noise
        if self.config.predicts == "noise":
            target = noise
        predict = prediction(net, self.config, times.target_resolution)
        error = predict(state, times.t, *condition.given).float() - target
        return error.square(), weight, of_held


def build_part(name: str, settings: SSDPart, folder: Path) -> ScaleSpacePart:
    """The denoiser of a section of the experiment, on the pixels in `folder`."""
    table = Table.open(folder / "targets.safetensors", "pixels", "label")
    _, channels, resolution, _ = table.arrays["pixels"].shape
    classes = read_json(folder / "statistics.json")["classes"]
    return ScaleSpacePart(name, table, settings, settings.config(channels, resolution, classes))
