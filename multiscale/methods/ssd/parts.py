"""SSD: diffusion whose states shrink while they get noisier, with one Flexi-UNet (arXiv 2603.08709).

The network sees x_t at the side r(t) and predicts the clean image at r(t-1). With one level, or with the operator
'identity', this is DDPM (arXiv 2006.11239). Three of them, which differ in what the UNet predicts, how its error
weighs and how much noise a step draws:

  ddpm      the clean image  Min-SNR     small variance, the posterior's: SSD with one level and nothing else changed
  ddpm-x0   the clean image  Min-SNR-5   large variance, beta_t: the paper's DDPM-x_0
  ddpm-eps  the noise        plain loss  large variance, beta_t: the paper's DDPM-eps

The published baselines are plain UNets, which run the block that Flexi-UNet leaves out (`network.top_block`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from multiscale.core.pixels import to_signed
from multiscale.core.resize import bilinear_to
from multiscale.core.storage import Table
from multiscale.core.streams import Draws
from multiscale.methods.ssd.process import CLEAN, ScaleSpace, TimeLaw, min_snr_weights, scale_space
from multiscale.networks.unet import FlexiUNet
from multiscale.training.part import Data, Nets, Part

Predict = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]  # (x, t, labels, out_side) -> x_0 there, or the noise


class ScaleSpacePart(Part):
    """The clean image at the side of the next state, from a noisy one; squared error with Min-SNR weights.

    With one side it may be the noise of the state that is predicted. Raises ValueError with several.
    """

    partial = True  # only the levels that the batch's sides need are run

    def __init__(self, name: str, data: Data, net: FlexiUNet, process: ScaleSpace, config: dict, part: dict):
        super().__init__(name, data, {"net": net})
        self.process, self.config = process, config
        self.law = TimeLaw(process, part["oversample"], part["reweight"])
        self.flip, self.label_dropout, self.null = part["flip"], part["label_dropout"], net.null_label
        states = range(process.steps)
        if config["predicts"] == "noise" and process.transitions:
            side, target = process.side(process.transitions[0]), process.side(CLEAN)
            raise ValueError(f"the noise of a state of side {side} at the side {target} of the next; allowed: x0")
        weights = min_snr_weights(process, part["snr_cap"], config["predicts"])
        columns = [[process.signal(t) for t in states], [process.sigma(t) for t in states], weights]
        self.table = torch.tensor(columns)  # (3, T): a_t, sigma_t, weight

    def loss(self, player: str, nets: Nets, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        clean = to_signed(batch["pixels"])
        if self.flip:
            mirrored = (draws.uniform("flip") < 0.5).view(-1, 1, 1, 1)
            clean = torch.where(mirrored, clean.flip(-1), clean)
        times = self.law.draw(draws)
        signal, sigma, weight = self.table.to(clean.device)[:, times.t].view(3, -1, 1, 1, 1)
        low, target = self.process.shrink(clean, times.side), self.process.shrink(clean, times.target_side)
        noise = draws.normal("noise", *low.shape[1:])
        state = signal * low + sigma * noise
        if self.config["predicts"] == "noise":
            target = noise
        predict = prediction(nets["net"], self.config)
        error = predict(state, times.t, self._labels(batch, draws), times.target_side).float() - target
        return times.weight * (weight * error.square()).mean(), {}

    def _labels(self, batch: dict[str, Tensor], draws: Draws) -> Tensor | None:
        if self.null is None:
            return None
        return torch.where(draws.uniform("label") < self.label_dropout, self.null, batch["label"])


def prediction(net: nn.Module, config: dict) -> Predict:
    """The network as it is called: 'flexi' and 'full' as they are, 'enlarged' always at the full side.

    A full UNet of one level takes small states itself; a side that no UNet can divide (gradual sizes) is enlarged to
    the full one before the network, and what it predicts is resized to the side asked for.
    """
    if config["unet"] != "enlarged":
        return net
    side = config["side"]
    return lambda x, t, labels, out: bilinear_to(net(bilinear_to(x, side), t, labels, side).float(), out)


def build_process(config: dict) -> ScaleSpace:
    """The forward process that a config describes."""
    return scale_space(config["side"], **config["process"])


def build_network(config: dict, process: ScaleSpace) -> FlexiUNet:
    """The UNet of a config: it has an entry level for each side of the process, or one for all.

    Raises ValueError for a side of the process that the network cannot take.
    """
    levels = len(process.sides) if config["unet"] == "flexi" else 1
    net = FlexiUNet(config["channels"], config["side"], levels=levels, classes=config["classes"], **config["network"])
    for side in process.sides if config["unet"] != "enlarged" else [config["side"]]:
        net.level_of(side)
    return net


def build_part(name: str, part: dict, folder: Path, classes: int) -> tuple[ScaleSpacePart, dict]:
    """The part `part` (its params section) on the pixels in `folder`."""
    table = Table.open(folder / "targets.safetensors", "pixels", "label")
    _, channels, side, _ = table.arrays["pixels"].shape
    config = {
        "channels": channels,
        "side": side,
        "classes": classes if part["conditional"] else 0,
        "process": part["process"],
        "unet": part["unet"],
        "predicts": part["predicts"],
        "network": part["network"],
    }
    process = build_process(config)
    net = build_network(config, process)
    return ScaleSpacePart(name, table, net, process, config, part), config
