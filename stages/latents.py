"""Encodes the training images, downsampled in pixels to one side, into data/latents/SIDE.

The posterior's mean and standard deviation are stored, not samples; beside them, in statistics.json, the shift and
scale that bring the means to zero mean and unit variance in each channel.
"""

from __future__ import annotations

import numpy as np
import torch

from multiscale import autoencoder
from multiscale.core.device import autocast, default_device, resolve_precision, set_threads
from multiscale.core.pixels import to_signed
from multiscale.core.resize import area_to
from multiscale.core.storage import TensorWriter, atomic_folder, write_json
from stages.common import settings
from stages.common.harness import command, progress
from stages.common.images import pixel_table
from stages.common.paths import LATENTS, VAE
from stages.statistics import Moments


@torch.inference_mode()
def main(side: str) -> None:
    params = settings.load("data", "latents")
    if side not in map(str, params.latents.sides):
        raise settings.refuse("latents", "SIDE", side, f"one of {', '.join(map(str, params.latents.sides))}")
    set_threads()
    device = default_device()
    precision = resolve_precision(params.latents.precision, device)
    codec = autoencoder.load(VAE, params.data.channels).to(device, memory_format=torch.channels_last)
    table = pixel_table("train")
    count, grid, batch = len(table), int(side) // codec.factor, params.latents.batch
    shape = (count, codec.latent_channels, grid, grid)
    moments = Moments()
    with atomic_folder(LATENTS / side) as folder, progress(f"latents {side} px", count) as reach:
        writer = TensorWriter(
            folder / "latents.safetensors",
            {"mean": (np.float16, shape), "std": (np.float16, shape), "label": (np.int64, (count,))},
            {"side": side, "factor": str(codec.factor), "precision": precision},
        )
        for start in range(0, count, batch):
            rows = table[slice(start, start + batch)]
            images = area_to(to_signed(rows["pixels"]), int(side)).to(device, memory_format=torch.channels_last)
            with autocast(precision, device):
                mean, std = codec.encode(images)
            moments.add(mean)
            writer.write("mean", start, mean.cpu().half())
            writer.write("std", start, std.cpu().half())
            writer.write("label", start, rows["label"])
            reach(start + len(images))
        writer.close()
        write_json(folder / "statistics.json", {"shift": moments.mean(), "scale": moments.std(), "images": count})


if __name__ == "__main__":
    command(main, __doc__, {"side": "the side in pixels, one of latents.sides"})
