"""Measures real images as if a method had sampled them, as a floor for all methods.

Writes samples/FLOOR and, like `evaluate`, reports/measurements/FLOOR.json.

real         images of the test split, at most as many as a method samples
autoencoder  their reconstructions by the autoencoder, the floor of methods on latents
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"floor": "one of evaluate.floors"})

import numpy as np
import torch
from torch import Tensor

from multiscale.core import intact
from multiscale.core.device import autocast, default_device, placed, resolve_precision
from multiscale.core.pixels import to_pixels, to_signed, to_unit
from multiscale.core.storage import sealed_folder, write_blocks
from multiscale.networks import autoencoder
from stages import evaluate
from stages.common import enough, grids, images
from stages.common.errors import refuse
from stages.common.images import CAPTION, captions, count, evenly, has_captions, pixel_table
from stages.common.paths import IMAGES, PROMPTS, SAMPLES, VAE
from stages.schema import Experiment


def reconstruct(pixels: Tensor, params: Experiment) -> Tensor:
    """Encodes uint8 images (N, C, H, H) and decodes the mean of the posterior, in the precision of sampling."""
    device = default_device()
    codec = placed(autoencoder.load(VAE, params.data.channels), device, torch.channels_last)
    precision = resolve_precision(params.sample.precision, device)
    decoded = []
    with torch.inference_mode(), autocast(precision, device):
        for batch in pixels.split(params.sample.batch):
            mean, _ = codec.encode(to_signed(batch).to(device, memory_format=torch.channels_last))
            decoded.append(to_pixels(to_unit(codec.decode(mean))))
    return torch.cat(decoded)


def main(params: Experiment, floor: str) -> None:
    if floor not in params.evaluate.floors:
        allowed = f"one of evaluate.floors ({', '.join(params.evaluate.floors) or 'none'})"
        raise refuse("floor", "FLOOR", floor, allowed)
    intact.check(IMAGES, *([VAE] if floor == "autoencoder" else []))
    enough.check_floors(params, count("test"))
    images.check("test")
    table = pixel_table("test")
    chosen = evenly(len(table), min(len(table), params.sample.images))
    rows = table[chosen]
    pixels, labels = rows["pixels"], rows["label"]
    if floor == "autoencoder":
        pixels = reconstruct(pixels, params)
    with sealed_folder(SAMPLES / floor) as folder:
        shapes = {"pixels": (np.uint8, tuple(pixels.shape)), "label": (np.int64, tuple(labels.shape))}
        write_blocks(folder / "images.safetensors", shapes, [{"pixels": pixels, "label": labels}])
        if has_captions():
            captions("test")[chosen.tolist()].select(prompt=CAPTION).write_parquet(folder / PROMPTS)
        shown = {"real": "held-out images", "autoencoder": "reconstructions of held-out images"}[floor]
        grids.grid(pixels, labels, params.sample, f"{floor}: {shown}").save(folder / "grid.png")
    evaluate.measure(floor, params)
