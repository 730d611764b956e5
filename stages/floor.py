"""Makes and measures what no method can be expected to beat, as it measures a method: samples/FLOOR, reports/metrics.

real         images of the test split, at most as many as a method samples
autoencoder  the same images through the autoencoder: the floor of every method that works on latents
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from multiscale import pictures
from multiscale.core.device import autocast, default_device, resolve_precision
from multiscale.core.pixels import to_pixels, to_signed, to_unit
from multiscale.core.storage import TensorWriter, atomic_folder
from multiscale.networks import autoencoder
from stages import evaluate
from stages.common import settings
from stages.common.harness import command
from stages.common.images import classes, count, evenly, pixel_table
from stages.common.paths import IMAGES, SAMPLES, VAE


def reconstruct(pixels: Tensor, params) -> Tensor:
    """uint8 images (N, C, H, H) encoded to the mean of their latents and decoded, in the precision of sampling."""
    device = default_device()
    codec = autoencoder.load(VAE, params.data.channels).to(device, memory_format=torch.channels_last)
    precision = resolve_precision(params.sample.precision, device)
    made = []
    with torch.inference_mode(), autocast(precision, device):
        for batch in pixels.split(params.sample.batch):
            mean, _ = codec.encode(to_signed(batch).to(device, memory_format=torch.channels_last))
            made.append(to_pixels(to_unit(codec.decode(mean))))
    return torch.cat(made)


def main(floor: str) -> None:
    params = settings.load("run", "data", "sample", "evaluate")
    if floor not in params.evaluate.floors:
        allowed = f"one of evaluate.floors ({', '.join(params.evaluate.floors) or 'none'})"
        raise settings.refuse("floor", "FLOOR", floor, allowed)
    fewest = max(4, params.evaluate.is_splits, params.evaluate.prc_neighborhood + 1)  # 4: for the standard error
    if count("test") < fewest:
        allowed = f"[]: {IMAGES} has fewer than {fewest} images of split 'test'"
        raise settings.refuse(settings.EXPERIMENT, "evaluate.floors", params.evaluate.floors, allowed)
    table = pixel_table("test")
    rows = table[evenly(len(table), min(len(table), params.sample.images))]
    pixels, labels = rows["pixels"], rows["label"]
    if floor == "autoencoder":
        pixels = reconstruct(pixels, params)
    with atomic_folder(SAMPLES / floor) as folder:
        shapes = {"pixels": (np.uint8, tuple(pixels.shape)), "label": (np.int64, tuple(labels.shape))}
        writer = TensorWriter(folder / "images.safetensors", shapes)
        writer.write("pixels", 0, pixels)
        writer.write("label", 0, labels)
        writer.close()
        title = {"real": "held-out images", "autoencoder": "reconstructions of held-out images"}[floor]
        of_classes = labels if classes() > 1 else None
        sheet, title = (params.sample.grid_rows, params.sample.grid_columns), f"{floor}: {title}"
        pictures.of_classes(pixels, of_classes, *sheet, title).save(folder / "grid.png")
    evaluate.measure(floor, params)


if __name__ == "__main__":
    command(main, __doc__, {"floor": "one of evaluate.floors"})
