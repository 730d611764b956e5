"""Encodes the images, downsampled in pixels to one resolution, into data/latents/RESOLUTION.

00000.safetensors ...   shards: mean and standard deviation of the posterior of each training image
validation              a folder with the same for the validation split, if there is one
statistics.json         the shift and scale that normalise each channel of the training images' means

A copy of the autoencoder is in the same folder.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"resolution": "the resolution in pixels, one of latents.resolutions"})

import shutil
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from multiscale.core import intact
from multiscale.core.device import autocast, cast_weights, default_device, placed, resolve_precision
from multiscale.core.moments import Moments
from multiscale.core.pixels import to_signed
from multiscale.core.resize import area_to
from multiscale.core.storage import read_json, sealed_folder, write_json
from multiscale.networks import autoencoder
from stages.common import codec, images, keys, shards
from stages.common.errors import refuse
from stages.common.paths import LATENTS, PIXELS, TRAIN, VAE, VALIDATION
from stages.schema import Experiment


class Encoder:
    """The encoder of an autoencoder, on the device."""

    def __init__(self, codec: autoencoder.Codec, precision: str):
        self.device = default_device()
        self.precision = resolve_precision(precision, self.device)
        self.codec = placed(cast_weights(codec, self.precision), self.device, torch.channels_last)

    @torch.inference_mode()
    def encode(self, pixels: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
        """uint8 images (n, C, H, W) -> mean and standard deviation (n, c, h, h) of their latents at a resolution."""
        images = area_to(to_signed(pixels), resolution).to(self.device, memory_format=torch.channels_last)
        with autocast(self.precision, self.device):
            mean, std = self.codec.encode(images)
        return mean.cpu(), std.cpu()


class Writer:
    """The encoder of the autoencoder in models/vae, and the images, on one worker."""

    def __init__(self, channels: int, precision: str, resolution: int, batch: int):
        self.encoder = Encoder(autoencoder.load(VAE, channels), precision)
        self.resolution, self.batch = resolution, batch

    def write(self, shard: Path, split: str, rows: slice) -> None:
        """Writes the latents and labels of rows of a split, and with them the moments of each batch."""
        table, encoded, moments = images.pixel_table(split), [], []
        for start in range(rows.start, rows.stop, self.batch):
            batch = table[slice(start, min(start + self.batch, rows.stop))]
            mean, std = self.encoder.encode(batch["pixels"], self.resolution)
            moments.append(Moments.of(mean))
            encoded.append((mean.half(), std.half(), batch["label"]))
        mean, std, label = (torch.cat(each) for each in zip(*encoded))
        shards.save(shard, {"mean": mean, "std": std, "label": label}, moments)


def _shares(split: str, resolution: int) -> list[shards.Share]:
    """The shards of a split."""
    rows = shards.slices(len(images.pixel_table(split)), resolution**2)  # latents are smaller than images
    name = "{:05}" if split == TRAIN.name else split + "-{:05}"
    return [shards.Share(name.format(k), each.stop - each.start, (split, each)) for k, each in enumerate(rows)]


def main(params: Experiment, resolution: str) -> None:
    if resolution not in map(str, params.latents.resolutions):
        raise refuse("latents", "RESOLUTION", resolution, f"one of {', '.join(map(str, params.latents.resolutions))}")
    splits = [path.name for path in (TRAIN, VALIDATION) if path is TRAIN or path.is_dir()]
    for split in splits:
        images.check(split)
    intact.check(VAE)
    title, precision = f"latents {resolution} px", resolve_precision(params.latents.precision, default_device())
    given = (params.data.channels, precision, int(resolution), params.run.batch)
    shares = [share for split in splits for share in _shares(split, int(resolution))]
    key = keys.key({"given": given}, [path / intact.LIST for path in (*map(PIXELS.joinpath, splits), VAE)], ["latents"])
    scratch = shards.folder_of(title, key)
    written = shards.write(title, params.run, partial(Writer, *given), scratch, shares)
    of = {split: [path for path, share in zip(written, shares) if share.told[0] == split] for split in splits}
    moments = Moments()
    for shard in of[TRAIN.name]:
        for of_batch in shards.about_of(shard):
            moments.include(*of_batch)
    with sealed_folder(LATENTS / resolution) as folder:
        shards.take(of[TRAIN.name], folder)
        if VALIDATION.name in of:
            shards.take(of[VALIDATION.name], folder / VALIDATION.name)
        codec.begin(VAE, folder, params.data.channels)
        about = {"classes": read_json(TRAIN / "statistics.json")["classes"], "images": images.count("train")}
        write_json(folder / "statistics.json", about | {"shift": moments.mean(), "scale": moments.std()})
    shutil.rmtree(scratch)
