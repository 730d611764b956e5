"""The network of a score model: a UNet in continuous time, and the map that whitens its data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multiscale.methods.wmgm.score import VP, Predicts
from multiscale.methods.wmgm.whitening import Whitening
from multiscale.networks.unet import UNetNetwork


class ScoreNet(nn.Module):
    """From (x (N, inputs, h, h), t (N,) in [0, 1], labels (N,), if any) to the noise in the first `outputs` channels.

    `predicts` says what the UNet F stands for:
    noise     eps = F. The error in the clean data is sigma / alpha times as large, 150 at t = 1: after a short training
              the samples are noise.
    velocity  eps = sigma(t) x + alpha(t) F: EDM's preconditioning for data of unit variance, such as whitened data
              (arXiv 2206.00364, table 1 with sigma_data = 1; v-prediction, arXiv 2202.00512, section 4). The target of
              F has unit variance at every t; near t = 0 it is the noise of the input, pixel by pixel.
    x0        eps = (x - alpha(t) F) / sigma(t): F is the data. What is constant in the data is learnt first.

    Further input channels hold the condition. `whitening`, of the coarse band alone, maps the data to what is diffused;
    its numbers are buffers, so that the weights of a model are complete.
    """

    whitening: Whitening

    def __init__(
        self, outputs: int, inputs: int, resolution: int, classes: int, network: UNetNetwork, predicts: Predicts
    ):
        super().__init__()
        self.outputs, self.predicts = outputs, predicts
        self.unet = network.build(inputs, resolution, classes=classes)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        alpha, sigma = (factor(t.double()).to(x).view(-1, 1, 1, 1) for factor in (VP.alpha, VP.sigma))
        made: Tensor = self.unet(x, 1000 * t, labels)[:, : self.outputs].float()
        noisy = x[:, : self.outputs]
        if self.predicts == "velocity":
            return torch.addcmul(sigma * noisy, alpha, made)
        return made if self.predicts == "noise" else (noisy - alpha * made) / sigma
