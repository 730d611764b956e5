"""MSF's sampler: scale by scale, from the coarsest on (Algorithm 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from multiscale import flow
from multiscale.condition import Classes, Condition
from multiscale.core import models
from multiscale.core.streams import noise_of_seeds
from multiscale.guidance import concatenated, guided_by
from multiscale.latent import LatentSampler
from multiscale.methods.msf.parts import ScaleConfig
from multiscale.methods.msf.residual import accumulate, prior
from multiscale.methods.msf.settings import MSFMethod
from multiscale.networks.autoencoder import Codec
from multiscale.networks.dit import DiT
from multiscale.sampling import Trace


class MSFSampler(LatentSampler):
    """F = sum_k Up(y_k), decoded; y_k solves the ODE of scale k from noise, given the prior Down_k(F) so far.

    nets, configs and solvers: one of each for a scale, coarsest first.
    """

    def __init__(
        self, nets: list[DiT], configs: list[ScaleConfig], solvers: list[flow.Solver], codec: Codec, precision: str
    ):
        networks, (first, *_) = {f"scale-{k}": net for k, net in enumerate(nets)}, configs
        super().__init__(networks, first.latent, Classes(first.classes), codec, precision)
        self.scales, self.full = list(zip(nets, configs, solvers)), first.resolutions[-1]

    def images(self, seeds: list[int], labels: Tensor, trace: Trace | None) -> Tensor:
        targets: list[Tensor] = []
        condition = self.conditioner(labels)
        for _ in self.scales:
            targets.append(self.next_target(targets, seeds, condition, trace))
        return self.decoded(accumulate(targets, self.full))

    def next_target(self, targets: list[Tensor], seeds: list[int], condition: Condition, trace: Trace | None) -> Tensor:
        """y_k given y_0 ... y_{k-1}, as latents."""
        k = len(targets)
        net, config, solver = self.scales[k]
        resolution = config.resolutions[k]
        before = prior(targets, resolution, self.full) if targets else None
        network = concatenated(net, before)
        velocity = guided_by(solver, network, condition)

        def watch(x: Tensor) -> None:
            if trace is not None:  # the image so far, at the resolution of this scale
                y = config.target.undo(x)
                self.show(y if before is None else before + y, trace)

        shape = (config.target.channels, resolution, resolution)
        x = noise_of_seeds(seeds, f"scale-{k}", shape, self.device)
        return config.target.undo(flow.solve(velocity, x, solver, watch))


def load_sampler(folders: Sequence[Path], settings: MSFMethod, codec: Codec, precision: str) -> MSFSampler:
    """The sampler of the trained parts in `folders`, in any order. Raises as `sampler_of` does."""
    configs = [models.config(folder, ScaleConfig) for folder in folders]
    parts = [(config, models.load_weights(config.build(), folder)) for config, folder in zip(configs, folders)]
    return sampler_of(parts, settings, codec, precision, str(folders[0].parent))


def sampler_of(
    parts: Sequence[tuple[ScaleConfig, DiT]], settings: MSFMethod, codec: Codec, precision: str, place: str
) -> MSFSampler:
    """The sampler of networks in memory, in any order; `place` is where they come from.

    Raises ForeignModel where they are not the scales of one model, ValueError for solvers of other scales.
    """
    parts = sorted(parts, key=lambda part: part[0].index)
    configs, nets = [config for config, _ in parts], [net for _, net in parts]
    if [config.index for config in configs] != list(range(len(configs[0].resolutions))):
        raise models.ForeignModel(
            f"{place}: index: {[config.index for config in configs]} is not allowed; "
            f"allowed: the parts of all {len(configs[0].resolutions)} scales"
        )
    solvers = settings.scales or [flow.Solver()] * len(configs)
    if len(solvers) != len(configs):
        raise ValueError(f"scales: {len(solvers)} is not allowed; allowed: {len(configs)}, one a scale, or none")
    return MSFSampler(nets, configs, solvers, codec, precision)
