"""SSD's sampler: ancestral sampling through states that grow (Algorithm 2)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multiscale import flow
from multiscale.core.device import autocast, cast_weights, default_device, resolve_precision
from multiscale.core.pixels import to_unit
from multiscale.core.storage import read_json
from multiscale.core.streams import noise_of_seeds
from multiscale.methods.ssd.parts import build_network, build_process, prediction
from multiscale.methods.ssd.process import CLEAN, ScaleSpace, respaced
from multiscale.networks.unet import FlexiUNet
from multiscale.sampling import Trace

if TYPE_CHECKING:  # importing diffusers takes seconds that a method in pixels has no use for
    from multiscale.networks.autoencoder import Codec


class ScaleSpaceSampler:
    """From noise of the smallest side to the image, state by state, each drawn from the exact posterior."""

    shows = "each image's state x_t above what the network predicts from it"

    def __init__(self, net: FlexiUNet, config: dict, process: ScaleSpace, solver: dict, precision: str):
        self.device = default_device()
        self.precision = resolve_precision(precision, self.device)
        net = cast_weights(net.eval().requires_grad_(False), self.precision)
        self.net = net.to(self.device, memory_format=torch.channels_last)
        self.networks: dict[str, nn.Module] = {"net": self.net}
        self.config, self.process, self.cfg = config, process, solver["cfg"]
        if self.cfg != 1 and net.null_label is None:
            raise ValueError(f"a guidance weight of {self.cfg} for a network without classes; allowed: 1")
        states = [CLEAN, *respaced(process, solver["steps"])]
        eta, variance = solver["eta"], solver["variance"]
        # From the noisiest state down; every scalar of a step is decided here, in float64.
        self.plan = [(t, s, process.transition(s, t, eta, variance)) for s, t in zip(states, states[1:])][::-1]
        if solver["last_step"] == "as-released":  # the published code returns state 0, with its noise of sigma 0.01
            self.plan.pop()

    @torch.inference_mode()
    def __call__(self, seeds: list[int], labels: Tensor, trace: Trace | None = None) -> Tensor:
        labels = labels.to(self.device)
        predict = {side: self._predict(side, labels) for side in self.process.sides}
        first = self.plan[0][0]
        x = self._noise(seeds, first) * self.process.noise_factor ** self.process.levels[first]
        with autocast(self.precision, self.device):
            for t, s, transition in self.plan:
                side = self.process.side(s)
                clean = predict[side](x, torch.full((len(x),), t, device=self.device))
                if self.config["predicts"] == "noise":
                    clean = self.process.clean(x, clean, t)
                clean.clamp_(-1, 1)
                x = transition.reverse(x, clean, self._noise(seeds, s) if transition.needs_noise else None)
                if trace is not None:
                    trace(f"{side} px", to_unit(torch.stack([x, clean], 1).flatten(0, 1)))
        return to_unit(x)

    def _noise(self, seeds: list[int], state: int) -> Tensor:
        """The noise that goes into a state."""
        side = self.process.side(state)
        return noise_of_seeds(seeds, f"state-{state}", (self.config["channels"], side, side)).to(self.device)

    def _predict(self, side: int, labels: Tensor) -> flow.Velocity:
        """What the network predicts at a side as a function of (x_t, t), guided."""
        predict = prediction(self.net, self.config)
        if self.net.null_label is None:
            return lambda x, t: predict(x, t, None, side).float()
        return flow.guided(lambda x, t, c: predict(x, t, c, side).float(), labels, self.net.null_label, self.cfg)


def load_sampler(folders: list[Path], settings: dict, codec: Codec, precision: str) -> ScaleSpaceSampler:
    """The sampler of the one trained part; its images are pixels, so the codec has no say."""
    config = read_json(folders[0] / "config.json")
    process = build_process(config)
    net = build_network(config, process)
    net.load_state_dict(load_file(folders[0] / "model.safetensors"))
    return ScaleSpaceSampler(net, config, process, settings["solver"], precision)
