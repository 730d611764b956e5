"""The sampler of the resolution shift: Euler's steps, the first ones on small latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from multiscale import flow
from multiscale.condition import Classes, Conditioner, conditioner_of
from multiscale.core import models
from multiscale.core.streams import noise_of_seeds
from multiscale.guidance import guided_by
from multiscale.latent import LatentSampler
from multiscale.methods.shift.parts import ShiftConfig
from multiscale.methods.shift.schedule import corrected, enlarged
from multiscale.methods.shift.settings import ShiftMethod
from multiscale.networks.autoencoder import Codec
from multiscale.sampling import Trace


class ShiftSampler(LatentSampler):
    """The teacher's ODE; where the resolution grows, the predicted clean latent is enlarged and noised anew.

    conditioner: makes the conditions of the labels; None: they are classes.
    """

    def __init__(
        self,
        net: nn.Module,
        config: ShiftConfig,
        settings: ShiftMethod,
        codec: Codec,
        precision: str,
        conditioner: Conditioner | None = None,
    ):
        conditioner = conditioner or Classes(config.classes)
        super().__init__({config.role: net}, config.latent, conditioner, codec, precision)
        self.net, self.channels, self.solver = net, config.channels, settings.solver
        times = flow.shifted(torch.linspace(1, 0, self.solver.steps + 1), self.solver.shift)
        self.sides = [config.schedule.at(float(time)) for time in times]
        full = config.schedule.resolutions[-1] if settings.correction else None
        self.levels = [corrected(time, side / full) if full else time for time, side in zip(times, self.sides)]

    def images(self, seeds: list[int], labels: Tensor, trace: Trace | None) -> Tensor:
        velocity = guided_by(self.solver, self.net, self.conditioner(labels))
        x = self._white(seeds, 0)
        for k, (level, below) in enumerate(zip(self.levels, self.levels[1:])):
            slope = velocity(x, level.to(x).expand(len(x)))
            if self.sides[k + 1] == self.sides[k]:
                x = x + (below - level) * slope
            else:
                x = enlarged(x - level * slope, below, self._white(seeds, k + 1))
            self.show(x, trace)
        return self.decoded(x)

    def _white(self, seeds: list[int], step: int) -> Tensor:
        side = self.sides[step]
        return noise_of_seeds(seeds, f"step-{step}", (self.channels, side, side), self.device)


def load_sampler(folders: Sequence[Path], settings: ShiftMethod, codec: Codec, precision: str) -> ShiftSampler:
    """The sampler of the teacher in `folders`."""
    (folder,) = folders
    config = models.config(folder, ShiftConfig)
    net = models.load_weights(config.build(), folder)
    return ShiftSampler(net, config, settings, codec, precision, conditioner_of(folder, config.classes))
