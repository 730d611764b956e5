"""Encodes the training images, downsampled in pixels to one side, into data/latents/SIDE.

The posterior's mean and standard deviation are stored, not samples; beside them, in statistics.json, the shift and
scale that bring the means to zero mean and unit variance in each channel, and the autoencoder itself.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from multiscale.core.device import autocast, default_device, resolve_precision
from multiscale.core.moments import Moments
from multiscale.core.pixels import to_signed
from multiscale.core.resize import area_to
from multiscale.core.storage import TensorWriter, atomic_folder, write_json
from multiscale.networks import autoencoder
from stages.cluster import pool
from stages.common import codec, settings
from stages.common.harness import command, progress
from stages.common.images import pixel_table
from stages.common.paths import LATENTS, VAE


class Encoder:
    """The encoder of an autoencoder."""

    def __init__(self, codec: autoencoder.Codec, precision: str):
        self.device = default_device()
        self.precision = resolve_precision(precision, self.device)
        self.codec = codec.to(self.device, memory_format=torch.channels_last)

    def about(self, side: int) -> tuple[tuple[int, int, int], str]:
        """The shape (c, h, h) of the latents of one image at a side, and the precision that they are computed in."""
        grid = side // self.codec.factor
        return (self.codec.latent_channels, grid, grid), self.precision

    @torch.inference_mode()
    def encode(self, pixels: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """uint8 images (n, C, H, W) -> mean and standard deviation of their latents (n, c, h, h) at a side."""
        images = area_to(to_signed(pixels), side).to(self.device, memory_format=torch.channels_last)
        with autocast(self.precision, self.device):
            mean, std = self.codec.encode(images)
        return mean.cpu(), std.cpu()


def encoder(channels: int, precision: str) -> Encoder:
    """The encoder of the autoencoder that the stage `vae` leaves."""
    return Encoder(autoencoder.load(VAE, channels), precision)


def main(side: str) -> None:
    params = settings.load("run", "data", "latents")
    if side not in map(str, params.latents.sides):
        raise settings.refuse("latents", "SIDE", side, f"one of {', '.join(map(str, params.latents.sides))}")
    make = partial(encoder, params.data.channels, params.latents.precision)
    title, batch, moments = f"latents {side} px", params.latents.batch, Moments()
    with pool(title, params.run, make) as workers:
        table = pixel_table("train")
        count = len(table)
        ((shape, precision),) = workers.map("about", [(int(side),)])
        latents = (np.float16, (count, *shape))
        with atomic_folder(LATENTS / side) as folder, progress(title, count) as reach:
            writer = TensorWriter(
                folder / "latents.safetensors",
                {"mean": latents, "std": latents, "label": (np.int64, (count,))},
                {"side": side, "factor": str(int(side) // shape[-1]), "precision": precision},
            )
            writer.write("label", 0, torch.from_numpy(np.array(table.arrays["label"])))
            done = 0
            blocks = (slice(start, start + batch) for start in range(0, count, batch))
            batches = ((table[rows]["pixels"], int(side)) for rows in blocks)
            for mean, std in workers.map("encode", batches):
                moments.add(mean)
                writer.write("mean", done, mean.half())
                writer.write("std", done, std.half())
                done += len(mean)
                reach(done)
            writer.close()
            codec.begin(VAE, folder)
            write_json(folder / "statistics.json", {"shift": moments.mean(), "scale": moments.std(), "images": count})


if __name__ == "__main__":
    command(main, __doc__, {"side": "the side in pixels, one of latents.sides"})
