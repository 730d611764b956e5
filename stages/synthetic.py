"""Generates training images with a trained teacher and its sampler, in data/decomposed/NAME, for students.

The folder is made like the decomposition `dataset`, whose statistics, held-out images, autoencoder and text it reuses:
images are downsampled in pixels and encoded as in the stages `latents` and `decompose`. Until all are complete, each
batch is a shard in .scratch: an interrupted stage resumes after the last one.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"name": "a key of `synthetic`"})

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from multiscale import methods, sampling
from multiscale.core import intact
from multiscale.core.device import default_device, resolve_precision
from multiscale.core.models import TEXT
from multiscale.core.storage import sealed_folder, write_blocks
from multiscale.networks import autoencoder
from stages.common import codec, keys, shards, teachers
from stages.common.errors import refuse
from stages.common.paths import DECOMPOSED, HELD_OUT
from stages.latents import Encoder
from stages.schema import Experiment, Synthetic


def images(section: Synthetic, teacher: Path, dataset: Path) -> Any:
    """What `section` asks for, of the teacher and like the dataset in these folders; see `multiscale.methods`."""
    return methods.synthetic(section.kind).Images(section, teacher, dataset)


class Generator:
    """A teacher's sampler, and the encoder of its images, on one worker."""

    def __init__(self, section: Synthetic, teacher: Path, dataset: Path, precision: str):
        self.made = images(section, teacher, dataset)
        self.sampler, self.batch = self.made.sampler(), section.batch
        self.encoder = Encoder(autoencoder.codec_of(dataset), precision)

    def make(self, seeds: list[int], labels: Tensor) -> dict[str, Tensor]:
        """The latents of at most a batch."""
        pixels = next(sampling.generate(self.sampler, seeds, labels, self.batch))
        latents: dict[str, Tensor] = self.made.latents(pixels, lambda *images: self.encoder.encode(*images)[0])
        return latents

    def write(self, shard: Path, seeds: list[int], labels: Tensor) -> None:
        """Writes the latents of at most a batch."""
        shards.save(shard, self.make(seeds, labels))


def key(section: Synthetic, inputs: list[Path], precision: str) -> str:
    """Of the shards: a change of anything that decides them starts anew."""
    device = default_device()
    settings = {
        "section": section.model_dump(),
        "precision": [resolve_precision(each, device) for each in (precision, "auto")],  # of encoding, of sampling
    }
    return keys.key(settings, inputs, [f"synthetic-{section.kind}"])


def main(params: Experiment, name: str) -> None:
    if name not in params.synthetic:
        raise refuse("synthetic", "NAME", name, f"one of {', '.join(params.synthetic) or 'none'}")
    section, title, precision = params.synthetic[name], f"synthetic {name}", params.latents.precision
    dataset, teacher = DECOMPOSED / section.dataset, teachers.trained(section.teacher, f"synthetic@{name}")
    intact.check(dataset, teacher)
    made = images(section, teacher, dataset)
    labels, count = made.labels(), section.images
    rows = [slice(start, min(start + section.batch, count)) for start in range(0, count, section.batch)]
    told = [(made.seeds[batch], labels[batch]) for batch in rows]
    shares = [shards.Share(f"{batch.start:09}", len(each[0]), each) for batch, each in zip(rows, told)]
    scratch = shards.folder_of(title, key(section, [dataset, teacher], precision))
    make = partial(Generator, section, teacher, dataset, precision)
    written = shards.write(title, params.run, make, scratch, shares)
    with sealed_folder(DECOMPOSED / name) as folder:
        blocks = (made.targets(load_file(shard)) | {"label": labels[batch]} for batch, shard in zip(rows, written))
        write_blocks(folder / "targets.safetensors", {**made.shapes, "label": (np.int64, (count,))}, blocks)
        shutil.copyfile(dataset / "statistics.json", folder / "statistics.json")
        codec.carry(dataset, folder)
        if (dataset / HELD_OUT).exists():  # students of generated images are measured on real ones
            shutil.copyfile(dataset / HELD_OUT, folder / HELD_OUT)
        if (dataset / TEXT).is_dir():
            shutil.copytree(dataset / TEXT, folder / TEXT)
        made.finish(folder)
    shutil.rmtree(scratch)
