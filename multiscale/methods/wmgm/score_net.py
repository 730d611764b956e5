"""The network of a score model: a UNet in continuous time, and the map which whitens its data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multiscale.methods.wmgm.score import VP
from multiscale.networks.unet import FlexiUNet


class ScoreNet(nn.Module):
    """From (x (N, inputs, h, h), t (N,) in [0, 1], labels (N,) or None) to the noise in the first `outputs` channels.

    `predicts` says what the UNet F stands for:
    noise     eps = F. Its error in the clean data is magnified by sigma / alpha, 150 at t = 1: trained briefly, it
              leaves samples of noise.
    velocity  eps = sigma(t) x + alpha(t) F: EDM's preconditioning for data of unit variance, which is what whitened
              data are (arXiv 2206.00364, table 1 with sigma_data = 1; v-prediction, arXiv 2202.00512). F has unit
              targets at every t; near t = 0 it must take the noise out of its input, pixel by pixel.
    x0        eps = (x - alpha(t) F) / sigma(t): F is the data. What is constant in the data is learnt at once.

    Further input channels hold what the model is conditioned on. `whitening` maps the data to what is diffused; its
    numbers are buffers, so the weights of a model are complete in themselves.
    """

    def __init__(
        self,
        outputs: int,
        inputs: int,
        side: int,
        classes: int,
        network: dict,
        whitening: nn.Module | None,
        predicts: str,
    ):
        super().__init__()
        self.outputs, self.predicts = outputs, predicts
        self.unet = FlexiUNet(inputs, side, levels=1, classes=classes, **network)
        self.whitening = whitening

    @property
    def null_label(self) -> int | None:
        """The label that stands for 'no class'; None where the network knows no classes."""
        return self.unet.null_label

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma = (factor(t.double()).to(x).view(-1, 1, 1, 1) for factor in (VP.alpha, VP.sigma))
        made = self.unet(x, 1000 * t, labels, x.shape[-1])[:, : self.outputs].float()
        noisy = x[:, : self.outputs]
        if self.predicts == "velocity":
            return torch.addcmul(sigma * noisy, alpha, made)
        return made if self.predicts == "noise" else (noisy - alpha * made) / sigma
