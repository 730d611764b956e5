"""Computes the training data of the parts in data/decomposed/NAME. The method in `kind` decides the decomposition.

ssd       the images as they are, for every method on pixels
msf       a base and residuals of the latents, one target per scale; with one resolution, the normalised latents
swd       the latents at each resolution, normalised by the statistics of the full resolution
wmgm      the wavelet bands of the images

The training images are in targets.safetensors, those of the validation split in validation.safetensors.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"name": "a key of `decompose`"})

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from multiscale import methods
from multiscale.core import intact
from multiscale.core.normalisation import Normalisation
from multiscale.core.storage import Table, read_json, sealed_folder, write_blocks, write_json
from multiscale.decomposition import Decomposition as Decomposed
from stages.common import codec, images, texts
from stages.common.errors import refuse
from stages.common.harness import progress
from stages.common.paths import DECOMPOSED, EMBEDDINGS, HELD_OUT, LATENTS, TRAIN, VALIDATION
from stages.schema import Decomposition, Experiment

BLOCK = 1024
STATISTICS = "statistics.json"


class Dataset:
    """The training images and their latents, from the outputs of earlier stages; or those held out for validation."""

    def __init__(self, held_out: bool = False):
        self.split = "validation" if held_out else "train"

    def pixels(self) -> Table:
        images.check(self.split)
        return images.pixel_table(self.split)

    def latents(self, resolution: int) -> Table:
        folder = LATENTS / str(resolution)
        intact.check(folder)
        return Table.open(folder / VALIDATION.name if self.split == "validation" else folder, "mean", "label")

    def normalisation(self, resolution: int) -> Normalisation:
        folder = LATENTS / str(resolution)
        intact.check_folder(folder, STATISTICS)
        found = read_json(folder / STATISTICS)
        return Normalisation(shift=found["shift"], scale=found["scale"])

    def captions(self, text: str) -> Tensor:
        intact.check(EMBEDDINGS / text)
        return texts.captions(text, self.split)


def write(path: Path, made: Decomposed, reach: Callable[[int], None]) -> None:
    """Writes the arrays of a decomposition block by block."""
    shapes = {**made.shapes, "label": (np.int64, (made.count,))}
    write_blocks(path, shapes, (made.block(slice(k, k + BLOCK)) for k in range(0, made.count, BLOCK)), reach=reach)


def decompose(out: Path, section: Decomposition) -> None:
    """Writes the decomposition of a section of `decompose`, its statistics, and the autoencoder of its latents."""
    make = methods.decomposition(section.kind).decompose
    made: Decomposed = make(section, Dataset())
    with sealed_folder(out) as folder, progress(f"decompose {out.name}", made.count) as reach:
        path = folder / "targets.safetensors"
        write(path, made, reach)
        source = LATENTS / str(made.resolution) if made.resolution else TRAIN
        kinds = read_json(source / STATISTICS)["classes"]
        write_json(folder / STATISTICS, {"classes": kinds, **made.statistics(Table.open(path, *made.shapes))})
        codec.carry(source, folder)
        if text := getattr(section, "text", None):
            texts.begin(text, folder)
        if (source / VALIDATION.name if made.resolution else VALIDATION).is_dir():
            write(folder / HELD_OUT, make(section, Dataset(held_out=True)), lambda done: None)


def main(params: Experiment, name: str) -> None:
    if name not in params.decompose:
        raise refuse("decompose", "NAME", name, f"one of {', '.join(params.decompose)}")
    decompose(DECOMPOSED / name, params.decompose[name])
