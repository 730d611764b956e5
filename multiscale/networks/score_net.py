"""The network of a score model: a preconditioned UNet in continuous time, and the map which whitens its data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multiscale.networks.unet import FlexiUNet
from multiscale.processes.score import VP


class ScoreNet(nn.Module):
    """From (x (N, inputs, h, h), t (N,) in [0, 1], labels (N,) or None) to the noise in the first `outputs` channels.

    eps = sigma(t) x + alpha(t) F(x, t), F the UNet: EDM's preconditioning for data of unit variance, which is what
    whitened data are (arXiv 2206.00364, table 1 with sigma_data = 1; v-prediction, arXiv 2202.00512). F has unit
    targets at every t, and the clean data alpha x - sigma F stay bounded. A UNet that predicts eps itself has its error
    magnified by sigma / alpha, 150 at t = 1: trained briefly, it leaves samples of noise.

    Further input channels hold what the model is conditioned on. `whitening` maps the data to what is diffused; its
    numbers are buffers, so the weights of a model are complete in themselves.
    """

    def __init__(self, outputs: int, inputs: int, side: int, classes: int, network: dict, whitening: nn.Module | None):
        super().__init__()
        self.outputs = outputs
        self.unet = FlexiUNet(inputs, side, levels=1, classes=classes, **network)
        self.whitening = whitening

    @property
    def null_label(self) -> int | None:
        """The label that stands for 'no class'; None where the network knows no classes."""
        return self.unet.null_label

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma = (factor(t.double()).to(x).view(-1, 1, 1, 1) for factor in (VP.alpha, VP.sigma))
        made = self.unet(x, 1000 * t, labels, x.shape[-1])[:, : self.outputs]
        return torch.addcmul(sigma * x[:, : self.outputs], alpha, made.float())
