"""The autoencoder: diffusers' `AutoencoderKL`, trained here or published, or none (pixels)."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from multiscale.core.compat import make_torchvision_importable
from multiscale.core.pixels import to_signed
from multiscale.core.resize import area_to
from multiscale.core.streams import Draws
from multiscale.training.part import Data, Nets, Part

if TYPE_CHECKING:
    from diffusers.models import AutoencoderKL


def kl_class() -> type[AutoencoderKL]:
    """diffusers' class. Importing it takes seconds, which who works on pixels alone has no use for."""
    make_torchvision_importable()
    from diffusers.models import AutoencoderKL

    return AutoencoderKL


class Codec(nn.Module):
    """Images in [-1, 1] (N, C, H, H) to latents (N, L, H/f, H/f) and back; without an autoencoder both are pixels."""

    def __init__(self, vae: AutoencoderKL | None, channels: int):
        super().__init__()
        self.vae = vae
        self.channels = channels  # of the images
        self.factor = 2 ** (len(vae.config.block_out_channels) - 1) if vae else 1
        self.latent_channels = vae.config.latent_channels if vae else channels

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior's mean and standard deviation: moments, not samples, are what is stored."""
        if self.vae is None:
            return images, torch.zeros_like(images)
        # A published RGB autoencoder takes grey images as three equal channels.
        posterior = self.vae.encode(images.expand(-1, self.vae.config.in_channels, -1, -1)).latent_dist
        return posterior.mean, posterior.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images in [-1, 1], not clipped."""
        if self.vae is None:
            return latents
        images = self.vae.decode(latents).sample
        return images if images.shape[1] == self.channels else images.mean(1, keepdim=True)


def build(channels: int, latent_channels: int, widths: tuple[int, ...], layers: int, groups: int) -> AutoencoderKL:
    """A new AutoencoderKL with downsampling factor 2^(len(widths) - 1)."""
    count = len(widths)
    return kl_class()(
        in_channels=channels,
        out_channels=channels,
        latent_channels=latent_channels,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * count,
        up_block_types=("UpDecoderBlock2D",) * count,
        layers_per_block=layers,
        norm_num_groups=groups,
        mid_block_add_attention=False,  # 64 tokens at most in the small recipes: the convolutions see them all
    )


def load(folder: Path, channels: int) -> Codec:
    """The codec of an autoencoder's folder; one without weights stands for pixels."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(errno.ENOENT, "no autoencoder", str(folder))
    if not (Path(folder) / "config.json").exists():
        return Codec(None, channels)
    vae = kl_class().from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    return Codec(vae.eval().requires_grad_(False), channels)


def load_or_pixels(folder: Path, channels: int) -> Codec:
    """The codec of an autoencoder's folder, or the one of pixels where there is no such folder."""
    return load(folder, channels) if Path(folder).is_dir() else Codec(None, channels)


class Reconstruction(nn.Module):
    """The autoencoder as it is trained: one call, which is what data-parallel training can wrap."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, C, H, H), unit noise shaped as latents -> reconstruction, posterior mean, log variance."""
        posterior = self.vae.encode(images).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        latents = mean + (0.5 * log_variance).exp() * noise
        return self.vae.decode(latents).sample.float(), mean, log_variance


class AutoencoderPart(Part):
    """Trains an AutoencoderKL: L1 reconstruction plus a small KL term, at every side that latents are needed of.

    One side a step, all sides equally often: MSF encodes small images too, and a network that has only seen large
    ones encodes them worse.
    """

    def __init__(self, name: str, data: Data, vae: AutoencoderKL, sides: list[int], kl_weight: float):
        super().__init__(name, data, {"net": Reconstruction(vae)})
        self.sides, self.kl_weight = sides, kl_weight
        self.channels, self.factor = vae.config.latent_channels, Codec(vae, 1).factor

    def loss(self, player: str, nets: Nets, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        images = area_to(to_signed(batch["pixels"]), self.sides[draws.choice("side", len(self.sides))])
        grid = images.shape[-1] // self.factor
        noise = draws.normal("posterior", self.channels, grid, grid)
        reconstruction, mean, log_variance = nets["net"](images, noise)
        l1 = (reconstruction - images).abs().mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return l1 + self.kl_weight * kl, {"l1": l1, "kl": kl}
