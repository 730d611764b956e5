"""What SSD's denoiser makes, while it is trained."""

from __future__ import annotations

from multiscale.methods.ssd.parts import ScaleSpacePart
from multiscale.methods.ssd.sampler import ScaleSpaceSampler
from multiscale.methods.ssd.settings import AncestralSolver
from multiscale.networks.autoencoder import Codec
from multiscale.networks.unet import FlexiUNet
from multiscale.training.part import Batch

SOLVER = AncestralSolver(steps=5, eta=0.0)


def sampler_of(part: ScaleSpacePart, net: FlexiUNet, rows: Batch, codec: Codec, precision: str) -> ScaleSpaceSampler:
    """The method's sampler, in few steps, besides those that change the resolution."""
    return ScaleSpaceSampler(net, part.config, SOLVER, precision)
