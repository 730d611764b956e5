"""The autoencoder: diffusers' `AutoencoderKL`, trained here or published, or none (pixels)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from multiscale.core.compat import make_torchvision_importable
from multiscale.core.pixels import to_signed
from multiscale.core.resize import area_to, bilinear_to
from multiscale.core.streams import Draws
from multiscale.training.part import Data, Nets, Part

make_torchvision_importable()
from diffusers.models import AutoencoderKL  # noqa: E402


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
    return AutoencoderKL(
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
    """The codec of a `vae` stage's folder; a folder without weights stands for pixels."""
    if not (Path(folder) / "config.json").exists():
        return Codec(None, channels)
    vae = AutoencoderKL.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    return Codec(vae.eval().requires_grad_(False), channels)


class AutoencoderPart(Part):
    """Trains an AutoencoderKL: L1 reconstruction plus a small KL term, at every side that latents are needed of.

    One side a step, all sides equally often: MSF encodes small images too, and a network that has only seen large
    ones encodes them worse. With `shrunk_latents`, that share of the steps at a small side encodes the full image and
    decodes its latents shrunk to the small side instead: latents of two sides then agree (the scale equivariance of
    arXiv 2502.09509), which is what makes residuals small.
    """

    def __init__(
        self, name: str, data: Data, vae: AutoencoderKL, sides: list[int], kl_weight: float, shrunk_latents: float
    ):
        super().__init__(name, data, {"net": vae})
        self.sides, self.kl_weight, self.shrunk_latents = sides, kl_weight, shrunk_latents

    def loss(self, player: str, nets: Nets, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        full = to_signed(batch["pixels"])
        side = self.sides[draws.choice("side", len(self.sides))]
        images = area_to(full, side)
        shrink = side < full.shape[-1] and draws.choice("shrink", 1000) < 1000 * self.shrunk_latents
        posterior = nets["net"].encode(full if shrink else images).latent_dist
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        latents = mean + (0.5 * log_variance).exp() * draws.normal("posterior", *mean.shape[1:])
        if shrink:
            latents = bilinear_to(latents, latents.shape[-1] * side // full.shape[-1])
        l1 = (nets["net"].decode(latents).sample.float() - images).abs().mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return l1 + self.kl_weight * kl, {"l1": l1, "kl": kl}
