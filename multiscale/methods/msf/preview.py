"""What a scale of MSF makes on its own, while it is trained."""

from __future__ import annotations

from torch import Tensor

from multiscale.flow import Solver
from multiscale.methods.msf.parts import ScalePart
from multiscale.methods.msf.residual import prior
from multiscale.methods.msf.sampler import MSFSampler
from multiscale.networks.autoencoder import Codec
from multiscale.networks.dit import DiT
from multiscale.sampling import Trace
from multiscale.training.part import Batch

SOLVER = Solver(steps=6)


class ScaleSampler(MSFSampler):
    """Images at the resolution of one scale: its y_k from noise, on the data's own y_0 ... y_{k-1}.

    So scale 0 shows what it makes of nothing, and a later scale what it adds to a latent that is real so far.
    """

    def __init__(self, part: ScalePart, net: DiT, rows: Batch, codec: Codec, precision: str):
        scales = part.index + 1  # of which the last one alone is run
        super().__init__([net] * scales, [part.config] * scales, [SOLVER] * scales, codec, precision)
        self.given = [rows[f"y{k}"].to(self.device) for k in range(part.index)]
        self.resolution = part.resolutions[part.index]

    def images(self, seeds: list[int], labels: Tensor, trace: Trace | None) -> Tensor:
        latent = self.next_target(self.given, seeds, self.conditioner(labels), trace)
        if self.given:
            latent = latent + prior(self.given, self.resolution, self.full)
        return self.decoded(latent)


sampler_of = ScaleSampler
