"""The network of a score model: a UNet in continuous time that carries the map which whitens its data."""

from __future__ import annotations

from torch import Tensor, nn

from multiscale.networks.unet import FlexiUNet


class ScoreNet(nn.Module):
    """From (x (N, inputs, h, h), t (N,) in [0, 1], labels (N,) or None) to the noise in the first `outputs` channels.

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
        return self.unet(x, 1000 * t, labels, x.shape[-1])[:, : self.outputs]
