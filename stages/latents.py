"""Encodes the images, downsampled in pixels to one resolution, into data/latents/RESOLUTION.

latents.safetensors      mean and standard deviation of the posterior of each training image
validation.safetensors   the same of the validation split, if there is one
statistics.json          the shift and scale that normalise each channel of the training images' means

A copy of the autoencoder lies beside them.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"resolution": "the resolution in pixels, one of latents.resolutions"})

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from multiscale.core import intact
from multiscale.core.device import autocast, default_device, placed, resolve_precision
from multiscale.core.moments import Moments
from multiscale.core.pixels import to_signed
from multiscale.core.resize import area_to
from multiscale.core.storage import sealed_folder, write_blocks, write_json
from multiscale.networks import autoencoder
from stages.cluster import pool
from stages.common import codec, images
from stages.common.errors import refuse
from stages.common.harness import progress
from stages.common.images import pixel_table
from stages.common.paths import HELD_OUT, IMAGES, LATENTS, VAE
from stages.schema import Experiment


class Encoder:
    """The encoder of an autoencoder, on the device."""

    def __init__(self, codec: autoencoder.Codec, precision: str):
        self.device = default_device()
        self.precision = resolve_precision(precision, self.device)
        self.codec = placed(codec, self.device, torch.channels_last)

    def about(self, resolution: int) -> tuple[tuple[int, int, int], str]:
        """The shape (c, h, h) of a latent at a resolution, and the precision of the encoder."""
        grid = resolution // self.codec.factor
        return (self.codec.latent_channels, grid, grid), self.precision

    @torch.inference_mode()
    def encode(self, pixels: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
        """uint8 images (n, C, H, W) -> mean and standard deviation (n, c, h, h) of their latents at a resolution."""
        images = area_to(to_signed(pixels), resolution).to(self.device, memory_format=torch.channels_last)
        with autocast(self.precision, self.device):
            mean, std = self.codec.encode(images)
        return mean.cpu(), std.cpu()


def encoder(channels: int, precision: str) -> Encoder:
    """The encoder of the autoencoder in models/vae."""
    return Encoder(autoencoder.load(VAE, channels), precision)


def main(params: Experiment, resolution: str) -> None:
    if resolution not in map(str, params.latents.resolutions):
        raise refuse("latents", "RESOLUTION", resolution, f"one of {', '.join(map(str, params.latents.resolutions))}")
    intact.check(IMAGES, VAE)
    make = partial(encoder, params.data.channels, params.latents.precision)
    title, batch, moments = f"latents {resolution} px", params.run.batch, Moments()
    splits = [split for split in ("train", "validation") if images.count(split)]
    total = sum(map(images.count, splits))
    with (
        pool(title, params.run, make) as workers,
        sealed_folder(LATENTS / resolution) as folder,
        progress(title, total) as reach,
    ):
        ((shape, precision),) = workers.map("about", [(int(resolution),)])
        about = {"resolution": resolution, "factor": str(int(resolution) // shape[-1]), "precision": precision}

        def write(name: str, split: str, seen: Callable[[Tensor], None], before: int) -> int:
            """Writes the latents of a split, shows their means to `seen`, and gives how many there are."""
            table = pixel_table(split)
            count = len(table)
            labels = torch.from_numpy(np.array(table.arrays["label"])).split(batch)

            def blocks() -> Iterator[dict[str, Tensor]]:
                slices = (slice(start, start + batch) for start in range(0, count, batch))
                batches = ((table[rows]["pixels"], int(resolution)) for rows in slices)
                for label, (mean, std) in zip(labels, workers.map("encode", batches)):
                    seen(mean)
                    yield {"mean": mean.half(), "std": std.half(), "label": label}

            latents = (np.float16, (count, *shape))
            shapes = {"mean": latents, "std": latents, "label": (np.int64, (count,))}
            write_blocks(folder / name, shapes, blocks(), about, lambda done: reach(before + done))
            return count

        count = write("latents.safetensors", "train", moments.add, 0)
        codec.begin(VAE, folder, params.data.channels)
        statistics = {"classes": images.classes(), "shift": moments.mean(), "scale": moments.std(), "images": count}
        write_json(folder / "statistics.json", statistics)
        if "validation" in splits:
            write(HELD_OUT, "validation", lambda mean: None, count)
