"""Generates training images with a trained teacher and its sampler, in data/decomposed/NAME, for students.

The folder is made like the decomposition `dataset`, whose statistics, held-out images, autoencoder and text it takes
over: images are downsampled in pixels and encoded as in the stages `latents` and `decompose`. Until all are there, each
batch is a shard in .scratch/synthetic: an interrupted stage goes on after the last one.
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
from safetensors.torch import load_file, save_file
from torch import Tensor

from multiscale import methods, sampling
from multiscale.core import intact
from multiscale.core.device import default_device, resolve_precision
from multiscale.core.models import TEXT
from multiscale.core.storage import CHECKSUM, atomic_file, sealed_folder, write_blocks
from multiscale.networks import autoencoder
from stages.cluster import pool
from stages.common import codec, keys, teachers
from stages.common.errors import refuse
from stages.common.harness import progress, tell
from stages.common.paths import DECOMPOSED, HELD_OUT, SCRATCH
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
        self.encoder = Encoder(autoencoder.beside(dataset), precision)

    def make(self, seeds: list[int], labels: Tensor) -> dict[str, Tensor]:
        """The latents of at most a batch."""
        pixels = next(sampling.generate(self.sampler, seeds, labels, self.batch))
        latents: dict[str, Tensor] = self.made.latents(pixels, lambda *images: self.encoder.encode(*images)[0])
        return latents


def key(section: Synthetic, inputs: list[Path], precision: str) -> str:
    """Of the shards: a change of anything that decides them starts anew."""
    device = default_device()
    settings = {
        "section": section.model_dump(),
        "precision": [resolve_precision(each, device) for each in (precision, "auto")],  # of encoding, of sampling
    }
    return keys.key(settings, inputs, [f"synthetic-{section.kind}"])


def whole(shard: Path) -> bool:
    """Whether a shard is there, as it was written."""
    try:
        intact.check_file(shard)
    except (FileNotFoundError, intact.Damaged):
        return False
    return True


def main(params: Experiment, name: str) -> None:
    if name not in params.synthetic:
        raise refuse("synthetic", "NAME", name, f"one of {', '.join(params.synthetic) or 'none'}")
    section, title, precision = params.synthetic[name], f"synthetic {name}", params.latents.precision
    dataset, teacher = DECOMPOSED / section.dataset, teachers.trained(section.teacher, f"synthetic@{name}")
    intact.check(dataset, teacher)
    made = images(section, teacher, dataset)
    labels, count = made.labels(), section.images
    folder_of_shards = SCRATCH / "synthetic" / key(section, [dataset, teacher], precision)
    rows = [slice(start, min(start + section.batch, count)) for start in range(0, count, section.batch)]
    shards = [folder_of_shards / f"{each.start:09}.safetensors" for each in rows]
    missing = [(batch, shard) for batch, shard in zip(rows, shards) if not whole(shard)]
    left = sum(batch.stop - batch.start for batch, _ in missing)
    if left < count:
        tell(title, f"{count - left} of {count} images are there already")
    make = partial(Generator, section, teacher, dataset, precision)
    with pool(title, params.run, make) as workers, progress(title, left) as reach:
        done = 0
        items = ((made.seeds[batch], labels[batch]) for batch, _ in missing)
        for latents, (batch, shard) in zip(workers.map("make", items), missing):
            with atomic_file(shard) as temporary:
                contiguous = {name: each.contiguous() for name, each in latents.items()}
                save_file(contiguous, temporary, {CHECKSUM: intact.BLANK})
                intact.seal_file(temporary)
            done += batch.stop - batch.start
            reach(done)
    with sealed_folder(DECOMPOSED / name) as folder:
        blocks = (made.targets(load_file(shard)) | {"label": labels[batch]} for batch, shard in zip(rows, shards))
        write_blocks(folder / "targets.safetensors", {**made.shapes, "label": (np.int64, (count,))}, blocks)
        shutil.copyfile(dataset / "statistics.json", folder / "statistics.json")
        codec.carry(dataset, folder)
        if (dataset / HELD_OUT).exists():  # students of generated images are measured on real ones
            shutil.copyfile(dataset / HELD_OUT, folder / HELD_OUT)
        if (dataset / TEXT).is_dir():
            shutil.copytree(dataset / TEXT, folder / TEXT)
        made.finish(folder)
    shutil.rmtree(folder_of_shards)
