"""The sampler of pyramidal flow matching: segments with a jump between two (arXiv 2410.05954, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from multiscale import flow
from multiscale.condition import Classes, Condition
from multiscale.core import models
from multiscale.core.streams import noise_of_seeds
from multiscale.guidance import guided_by
from multiscale.latent import LatentSampler
from multiscale.methods.pyramidal import path
from multiscale.methods.pyramidal.parts import PyramidalConfig
from multiscale.methods.pyramidal.settings import PyramidalMethod, resolutions
from multiscale.networks.autoencoder import Codec
from multiscale.networks.dit import DiT
from multiscale.sampling import Trace


class PyramidalSampler(LatentSampler):
    """Solves the flow of each segment from its start (u = 1) to its end (u = 0); a solver's times are those u."""

    def __init__(self, net: DiT, config: PyramidalConfig, settings: PyramidalMethod, codec: Codec, precision: str):
        super().__init__({"flow": net}, config.latent, Classes(config.classes), codec, precision)
        self.net, self.noise = net, settings.noise
        self.segments = path.segments(config.jumps)
        self.solvers = settings.scales or [flow.Solver()] * len(self.segments)
        if len(self.solvers) != len(self.segments):
            allowed = f"{len(self.segments)}, one a resolution, or none"
            raise ValueError(f"scales: {len(self.solvers)} is not allowed; allowed: {allowed}")
        self.shapes = [(config.channels, side, side) for side in resolutions(config.resolution, config.jumps)]

    def images(self, seeds: list[int], labels: Tensor, trace: Trace | None) -> Tensor:
        condition = self.conditioner(labels)
        x = noise_of_seeds(seeds, "segment-0", self.shapes[0], self.device)
        x = self.through(0, x, condition, trace)
        for k in range(1, len(self.segments)):
            x = self.through(k, self.jumped(k, x, seeds), condition, trace)
        return self.decoded(x)

    def jumped(self, k: int, x: Tensor, seeds: list[int]) -> Tensor:
        """The start of segment k from the end x of the one before."""
        white = noise_of_seeds(seeds, f"segment-{k}", self.shapes[k], self.device) if self.noise else None
        return path.jump(x, self.segments[k - 1], self.segments[k], white)

    def through(self, k: int, x: Tensor, condition: Condition, trace: Trace | None) -> Tensor:
        """The end of segment k from its start x."""
        segment, solver = self.segments[k], self.solvers[k]

        def network(x: Tensor, u: Tensor, *given: Tensor) -> Tensor:
            velocity: Tensor = self.net(x, segment.level(u), *given)
            return velocity

        return flow.solve(guided_by(solver, network, condition), x, solver, lambda x: self.show(x, trace))


def load_sampler(folders: Sequence[Path], settings: PyramidalMethod, codec: Codec, precision: str) -> PyramidalSampler:
    """The sampler of the trained part. Raises ValueError for solvers of other resolutions."""
    (folder,) = folders
    config = models.config(folder, PyramidalConfig)
    return PyramidalSampler(models.load_weights(config.build(), folder), config, settings, codec, precision)
