"""What samplers on normalised latents share: a codec, which decodes them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from multiscale.condition import Conditioner
from multiscale.core.normalisation import Normalisation
from multiscale.core.pixels import to_unit
from multiscale.networks.autoencoder import Codec
from multiscale.sampling import NetworkSampler, Trace


class LatentSampler(NetworkSampler):
    """Base of samplers on latents, which `latent` normalises and `codec` decodes.

    conditioner: makes the conditions of the labels. Subclasses define `images`.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        latent: Normalisation,
        conditioner: Conditioner,
        codec: Codec,
        precision: str,
    ):
        super().__init__(networks, precision)
        self.codec, self.latent, self.conditioner = self.placed(codec), latent, conditioner

    def decoded(self, z: Tensor) -> Tensor:
        """Images (N, C, H, H) in [0, 1] of normalised latents."""
        return to_unit(self.codec.decode(self.latent.undo(z)))

    def show(self, z: Tensor, trace: Trace | None) -> None:
        """Shows the images of normalised latents to a trace, if there is one."""
        if trace is not None:
            image = self.decoded(z)
            trace(f"{image.shape[-1]} px", image)
