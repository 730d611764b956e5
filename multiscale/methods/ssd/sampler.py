"""SSD's sampler: ancestral sampling through states that grow (Algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from multiscale.condition import Classes, Condition
from multiscale.core import models
from multiscale.core.pixels import to_unit
from multiscale.core.streams import noise_of_seeds
from multiscale.guidance import Predict, guided_by
from multiscale.methods.ssd.model import SSDConfig, build_network, prediction
from multiscale.methods.ssd.process import CLEAN, respaced
from multiscale.methods.ssd.settings import AncestralSolver, SSDMethod
from multiscale.networks.autoencoder import Codec
from multiscale.networks.unet import FlexiUNet
from multiscale.sampling import NetworkSampler, Trace


class ScaleSpaceSampler(NetworkSampler):
    """From noise of the smallest resolution to the image, state by state, each drawn from the exact posterior."""

    shows = "each image's state x_t above what the network predicts from it"

    def __init__(self, net: FlexiUNet, config: SSDConfig, solver: AncestralSolver, precision: str):
        super().__init__({"net": net}, precision)
        self.net, self.config, self.solver = net, config, solver
        self.conditioner = Classes(config.classes)
        self.process = process = config.process.build(config.resolution)
        states = [CLEAN, *respaced(process, solver.steps)]
        # From the noisiest state down; every coefficient of a step is computed here, in float64.
        self.plan = [(t, s, process.transition(s, t, solver.eta, solver.variance)) for s, t in zip(states, states[1:])][
            ::-1
        ]
        if solver.last_step == "as-released":  # the published code returns state 0, with its noise of sigma 0.01
            self.plan.pop()

    def images(self, seeds: list[int], labels: Tensor, trace: Trace | None) -> Tensor:
        """Algorithm 2: x_s ~ q(x_s | x_t, x_0) with the prediction, clipped to [-1, 1], in the place of x_0."""
        condition = self.conditioner(labels)
        predict = {resolution: self._predict(resolution, condition) for resolution in self.process.resolutions}
        first = self.plan[0][0]
        x = self._noise(seeds, first) * self.process.noise_factor ** self.process.levels[first]
        for t, s, transition in self.plan:
            resolution = self.process.resolution(s)
            clean = predict[resolution](x, torch.full((len(x),), t, device=self.device))
            if self.config.predicts == "noise":
                clean = self.process.clean(x, clean, t)
            clean.clamp_(-1, 1)
            x = transition.reverse(x, clean, self._noise(seeds, s) if transition.needs_noise else None)
            if trace is not None:
                trace(f"{resolution} px", to_unit(torch.stack([x, clean], 1).flatten(0, 1)))
        return to_unit(x)

    def _noise(self, seeds: list[int], state: int) -> Tensor:
        """The noise that goes into a state."""
        resolution = self.process.resolution(state)
        shape = (self.config.channels, resolution, resolution)
        return noise_of_seeds(seeds, f"state-{state}", shape, self.device)

    def _predict(self, resolution: int, condition: Condition) -> Predict:
        """What the network predicts at a resolution as a function of (x_t, t), guided."""
        predict = prediction(self.net, self.config, resolution)
        return guided_by(self.solver, predict, condition, self.config.process.steps)


def load_sampler(folders: Sequence[Path], settings: SSDMethod, codec: Codec, precision: str) -> ScaleSpaceSampler:
    """The sampler of the one trained part. Its images are pixels: the codec is not used."""
    (folder,) = folders
    config = models.config(folder, SSDConfig)
    return ScaleSpaceSampler(models.load_weights(build_network(config), folder), config, settings.solver, precision)
