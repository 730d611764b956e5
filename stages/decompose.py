"""Splits the latents into a base and residuals, one target a scale, in data/decomposed/NAME (MSF's Algorithm 1).

A decomposition of one side leaves the normalised full latents as they are: what the full-resolution control trains on.
"""

from __future__ import annotations

import numpy as np

from multiscale.core.storage import Table, TensorWriter, atomic_folder, read_json, write_json
from multiscale.residual import decompose, per_channel
from stages.common import settings
from stages.common.harness import command, progress
from stages.common.paths import DECOMPOSED, LATENTS
from stages.statistics import Moments

BLOCK = 1024


def main(name: str) -> None:
    decompositions = settings.load("decompose").decompose
    if name not in decompositions:
        raise settings.refuse("decompose", "NAME", name, f"one of {', '.join(decompositions)}")
    sides = decompositions[name].sides
    full = Table.open(LATENTS / str(sides[-1]) / "latents.safetensors", "mean", "label")
    base = Table.open(LATENTS / str(sides[0]) / "latents.safetensors", "mean")
    statistics = read_json(LATENTS / str(sides[-1]) / "statistics.json")
    shift, scale = per_channel(statistics["shift"]), per_channel(statistics["scale"])
    count, channels, grid = full.arrays["mean"].shape[:3]
    grids = [side * grid // sides[-1] for side in sides]
    moments = [Moments() for _ in sides]
    with atomic_folder(DECOMPOSED / name) as folder, progress(f"decompose {name}", count) as reach:
        shapes = {f"y{k}": (np.float32, (count, channels, g, g)) for k, g in enumerate(grids)}
        writer = TensorWriter(folder / "targets.safetensors", {**shapes, "label": (np.int64, (count,))})
        for start in range(0, count, BLOCK):
            rows = full[slice(start, start + BLOCK)]
            z = (rows["mean"] - shift) / scale
            z_base = (base[slice(start, start + BLOCK)]["mean"] - shift) / scale
            for k, target in enumerate(decompose(z, z_base, grids)):
                moments[k].add(target)
                writer.write(f"y{k}", start, target)
            writer.write("label", start, rows["label"])
            reach(start + len(z))
        writer.close()
        scales = [
            {"side": side, "mean": each.mean(), "std": each.std(), "energy": each.energy()}
            for side, each in zip(grids, moments)
        ]
        write_json(folder / "statistics.json", {**statistics, "scales": scales})


if __name__ == "__main__":
    command(main, __doc__, {"name": "a key of `decompose`"})
