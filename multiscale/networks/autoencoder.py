"""The autoencoder: diffusers' `AutoencoderKL`, trained here or published, or none (pixels)."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from multiscale.core.compat import without_pipelines
from multiscale.core.models import AUTOENCODER, IMAGES, ModelConfig, checked
from multiscale.core.pixels import to_signed
from multiscale.core.resize import area_to
from multiscale.core.storage import read_json
from multiscale.core.streams import Draws
from multiscale.networks.group_norm import use_in
from multiscale.training.part import Batch, Data, Loss, Nets, Part

if TYPE_CHECKING:
    from diffusers.models import AutoencoderKL


def kl_class() -> type[AutoencoderKL]:
    """diffusers' class, imported only when needed because that takes seconds."""
    with without_pipelines():
        from diffusers.models import AutoencoderKL

    found: type[AutoencoderKL] = AutoencoderKL
    return found


class Codec(nn.Module):
    """Images in [-1, 1] (N, C, H, H) to latents (N, L, H/f, H/f) and back; the identity without an autoencoder."""

    def __init__(self, vae: AutoencoderKL | None, channels: int):
        super().__init__()
        self.vae = vae
        self.channels = channels  # of the images
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1) if vae else 1
        self.latent_channels = vae.config.latent_channels if vae else channels

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and standard deviation of the posterior."""
        if self.vae is None:
            return images, torch.zeros_like(images)
        # A published RGB autoencoder takes grey images as three equal channels.
        posterior = self.vae.encode(images.expand(-1, self.vae.config.in_channels, -1, -1)).latent_dist
        return posterior.mean, posterior.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images in [-1, 1], not clipped."""
        if self.vae is None:
            return latents
        images: Tensor = self.vae.decode(latents).sample
        return images if images.shape[1] == self.channels else images.mean(1, keepdim=True)


def build(channels: int, latent_channels: int, widths: tuple[int, ...], layers: int, groups: int) -> AutoencoderKL:
    """A new AutoencoderKL with downsampling factor 2^(len(widths) - 1)."""
    count = len(widths)
    vae = kl_class()(
        in_channels=channels,
        out_channels=channels,
        latent_channels=latent_channels,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        layers_per_block=layers,
        norm_num_groups=groups,
        mid_block_add_attention=False,  # in the small recipes the convolutions already see the whole latent
    )
    return use_in(vae)


def load(folder: Path, channels: int) -> Codec:
    """The codec of an autoencoder's folder; the identity for a folder without weights.

    Raises ForeignModel for weights that are not finite.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(errno.ENOENT, "no autoencoder", str(folder))
    if not (Path(folder) / "config.json").exists():
        return Codec(None, channels)
    vae = kl_class().from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False, local_files_only=True)
    return Codec(use_in(checked(vae, folder).eval().requires_grad_(False)), channels)


def codec_of(folder: Path) -> Codec:
    """The codec of the latents, decomposition or model in a folder; the identity for pixels."""
    own = folder / AUTOENCODER
    return load(own, read_json(own / IMAGES)["channels"]) if own.is_dir() else Codec(None, 0)


class Reconstruction(nn.Module):
    """The autoencoder in training: a single call, so that data-parallel training can wrap it."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def recompute(self) -> None:
        """Keeps only the inputs of the blocks for the backward pass."""
        self.vae.enable_gradient_checkpointing()

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, C, H, H), unit noise shaped as latents -> reconstruction, posterior mean, log variance."""
        posterior = self.vae.encode(images).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        latents = mean + (0.5 * log_variance).exp() * noise
        return self.vae.decode(latents).sample.float(), mean, log_variance


class AutoencoderPart(Part):
    """Trains an AutoencoderKL: L1 reconstruction loss plus a small KL term, at one random resolution a step.

    MSF also encodes downsampled images, which a network trained at one resolution encodes worse.
    """

    def __init__(self, name: str, data: Data, vae: AutoencoderKL, resolutions: list[int], kl_weight: float):
        super().__init__(name, data, {"net": Reconstruction(vae)}, ModelConfig(kind="vae", role="autoencoder"))
        self.resolutions, self.kl_weight = resolutions, kl_weight
        self.channels, self.factor = vae.config.latent_channels, Codec(vae, 1).factor

    def loss(self, network: str, nets: Nets, batch: Batch, draws: Draws) -> Loss:
        resolution = self.resolutions[draws.choice("side", len(self.resolutions))]  # the name seeds the draw
        images = area_to(to_signed(batch["pixels"]), resolution)
        grid = images.shape[-1] // self.factor
        noise = draws.normal("posterior", self.channels, grid, grid)
        reconstruction, mean, log_variance = nets["net"](images, noise)
        l1 = (reconstruction - images).abs().mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return l1 + self.kl_weight * kl, {"l1": l1, "kl": kl}

    def save(self, folder: Path) -> None:
        """In the format of diffusers, for `AutoencoderKL.from_pretrained`."""
        self.vae.save_pretrained(folder, safe_serialization=True)

    @property
    def vae(self) -> AutoencoderKL:
        """The autoencoder in training."""
        return cast(Reconstruction, self.networks["net"]).vae
