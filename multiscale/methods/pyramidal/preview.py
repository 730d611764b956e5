"""What pyramidal flow matching makes, while it is trained."""

from __future__ import annotations

from multiscale.flow import Solver
from multiscale.methods.pyramidal.parts import FlowPart
from multiscale.methods.pyramidal.sampler import PyramidalSampler
from multiscale.methods.pyramidal.settings import PyramidalMethod
from multiscale.networks.autoencoder import Codec
from multiscale.networks.dit import DiT
from multiscale.training.part import Batch

SOLVER = Solver(steps=3)


def sampler_of(part: FlowPart, net: DiT, rows: Batch, codec: Codec, precision: str) -> PyramidalSampler:
    """The sampler in few steps at each resolution."""
    settings = PyramidalMethod(kind="pyramidal", scales=[SOLVER] * len(part.segments))
    return PyramidalSampler(net, part.config, settings, codec, precision)
