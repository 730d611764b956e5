"""Makes what parts are trained on, in data/decomposed/NAME, as the method says that params: decompose names by `kind`.

ssd       the decoded images as they are, for every method on pixels
msf       latents split into a base and residuals, one target a scale; with one side the normalised full latents
swd       the latents of each side, normalised by the full side's statistics
wmgm      the bands of the images
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from multiscale import methods
from multiscale.core.storage import Table, TensorWriter, atomic_folder, read_json, write_json
from multiscale.settings import Section
from stages.common import codec, settings
from stages.common.harness import command, progress
from stages.common.images import pixel_table
from stages.common.paths import DECOMPOSED, LATENTS

BLOCK = 1024


class Dataset:
    """What earlier stages left of the training images."""

    def pixels(self) -> Table:
        return pixel_table("train")

    def latents(self, side: int) -> Table:
        return Table.open(LATENTS / str(side) / "latents.safetensors", "mean", "label")

    def statistics(self, side: int) -> dict:
        return read_json(LATENTS / str(side) / "statistics.json")


def decompose(out: Path, section: Section) -> None:
    """The decomposition of a section of `decompose`, with its statistics and the autoencoder of its latents."""
    made = methods.decomposition(section.kind).decompose(section, Dataset())
    with atomic_folder(out) as folder, progress(f"decompose {out.name}", made.count) as reach:
        path = folder / "targets.safetensors"
        writer = TensorWriter(path, {**made.shapes, "label": (np.int64, (made.count,))})
        for start in range(0, made.count, BLOCK):
            rows = made.block(slice(start, start + BLOCK))
            for name, values in rows.items():
                writer.write(name, start, values)
            reach(start + len(rows["label"]))
        writer.close()
        if statistics := made.statistics(Table.open(path, *made.shapes)):
            write_json(folder / "statistics.json", statistics)
        if made.side is not None:
            codec.carry(LATENTS / str(made.side), folder)


def main(name: str) -> None:
    decompositions = settings.load("decompose").decompose
    if name not in decompositions:
        raise settings.refuse("decompose", "NAME", name, f"one of {', '.join(decompositions)}")
    decompose(DECOMPOSED / name, decompositions[name])


if __name__ == "__main__":
    command(main, __doc__, {"name": "a key of `decompose`"})
