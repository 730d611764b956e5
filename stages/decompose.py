"""Computes the training data of parts, in data/decomposed/NAME. The method in `kind` decides the decomposition.

ssd       the images as they are, for every method on pixels
msf       a base and residuals of the latents, one target a scale; with one resolution, the normalised latents
swd       the latents at each resolution, normalised by the statistics of the full resolution
wmgm      the wavelet bands of the images
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"name": "a key of `decompose`"})

from pathlib import Path

import numpy as np
from torch import Tensor

from multiscale import methods
from multiscale.core import intact
from multiscale.core.normalisation import Normalisation
from multiscale.core.storage import Table, read_json, sealed_folder, write_blocks, write_json
from stages.common import codec, images, texts
from stages.common.errors import refuse
from stages.common.harness import progress
from stages.common.paths import DECOMPOSED, EMBEDDINGS, LATENTS, TRAIN
from stages.schema import Decomposition, Experiment

BLOCK = 1024
STATISTICS = "statistics.json"


class Dataset:
    """The training images and their latents, from the outputs of earlier stages."""

    def pixels(self) -> Table:
        images.check("train")
        return images.pixel_table("train")

    def latents(self, resolution: int) -> Table:
        folder = LATENTS / str(resolution)
        intact.check(folder)
        return Table.open(folder, "mean", "label")

    def normalisation(self, resolution: int) -> Normalisation:
        folder = LATENTS / str(resolution)
        intact.check_folder(folder, STATISTICS)
        found = read_json(folder / STATISTICS)
        return Normalisation(shift=found["shift"], scale=found["scale"])

    def captions(self, text: str) -> Tensor:
        intact.check(EMBEDDINGS / text)
        return texts.captions(text)


def decompose(out: Path, section: Decomposition) -> None:
    """Writes the decomposition of a section of `decompose`, its statistics, and the autoencoder of its latents."""
    made = methods.decomposition(section.kind).decompose(section, Dataset())
    with sealed_folder(out) as folder, progress(f"decompose {out.name}", made.count) as reach:
        path, shapes = folder / "targets.safetensors", {**made.shapes, "label": (np.int64, (made.count,))}
        blocks = (made.block(slice(start, start + BLOCK)) for start in range(0, made.count, BLOCK))
        write_blocks(path, shapes, blocks, reach=reach)
        source = LATENTS / str(made.resolution) if made.resolution else TRAIN
        kinds = read_json(source / STATISTICS)["classes"]
        write_json(folder / STATISTICS, {"classes": kinds, **made.statistics(Table.open(path, *made.shapes))})
        codec.carry(source, folder)
        if text := getattr(section, "text", None):
            texts.begin(text, folder)


def main(params: Experiment, name: str) -> None:
    if name not in params.decompose:
        raise refuse("decompose", "NAME", name, f"one of {', '.join(params.decompose)}")
    decompose(DECOMPOSED / name, params.decompose[name])
