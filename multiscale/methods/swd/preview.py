"""What SwD's teacher or student makes, while it is trained."""

from __future__ import annotations

from torch import nn

from multiscale.flow import Solver
from multiscale.methods.swd.adapter import merged
from multiscale.methods.swd.parts import TeacherPart
from multiscale.methods.swd.sampler import StudentSampler, SwDSampler, TeacherSampler
from multiscale.methods.swd.student import StudentPart
from multiscale.networks.autoencoder import Codec
from multiscale.training.part import Batch

SOLVER = Solver(steps=6)


def sampler_of(
    part: TeacherPart | StudentPart, net: nn.Module, rows: Batch, codec: Codec, precision: str
) -> SwDSampler:
    """The teacher's sampler in few steps, or the student's with its own."""
    if isinstance(part, StudentPart):
        return StudentSampler(merged(net), part.config, codec, precision, part.conditioner)
    return TeacherSampler(net, part.config, codec, SOLVER, precision, part.conditioner)
