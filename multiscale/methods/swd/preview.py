"""What SwD's teacher or student makes, while it is trained."""

from __future__ import annotations

from typing import cast

from multiscale.flow import Solver
from multiscale.methods.swd.adapter import merged
from multiscale.methods.swd.parts import TeacherPart
from multiscale.methods.swd.sampler import LatentSampler, StudentSampler, TeacherSampler
from multiscale.methods.swd.student import StudentPart
from multiscale.networks.autoencoder import Codec
from multiscale.networks.dit import DiT
from multiscale.training.part import Batch

SOLVER = Solver(steps=6)


def sampler_of(part: TeacherPart | StudentPart, net: DiT, rows: Batch, codec: Codec, precision: str) -> LatentSampler:
    """The teacher's sampler in few steps, or the student's with its own."""
    if isinstance(part, StudentPart):
        return StudentSampler(cast(DiT, merged(net)), part.config, codec, precision)
    return TeacherSampler(net, part.config, codec, SOLVER, precision)
