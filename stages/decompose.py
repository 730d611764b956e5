"""Makes what parts are trained on, in data/decomposed/NAME, by the kind that params: decompose states.

pixels    the decoded images as they are (SSD and its control DDPM)
residual  latents split into a base and residuals, one target a scale (MSF's Algorithm 1); with one side the
          normalised full latents (its control DiT)
pyramid   the latents of each side, normalised by the full side's statistics (SwD)
wavelet   the bands of the images (WMGM)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from multiscale.core.storage import Table, TensorWriter, atomic_folder, read_json, write_json
from multiscale.scales import bands
from multiscale.scales.residual import decompose, per_channel
from stages import schema
from stages.common import codec, settings
from stages.common.harness import command, progress
from stages.common.images import pixel_table
from stages.common.paths import DECOMPOSED, LATENTS
from stages.statistics import Moments

BLOCK = 1024


def main(name: str) -> None:
    decompositions = settings.load("decompose").decompose
    if name not in decompositions:
        raise settings.refuse("decompose", "NAME", name, f"one of {', '.join(decompositions)}")
    KINDS[decompositions[name].kind](DECOMPOSED / name, decompositions[name])


def pixels(out: Path, section: schema.Pixels) -> None:
    """The training images (N, C, H, W) and labels, ready to be mapped."""
    table = pixel_table("train")
    with atomic_folder(out) as folder, progress(f"decompose {out.name}", len(table)) as reach:
        shapes = {key: (array.dtype.type, array.shape) for key, array in table.arrays.items()}
        writer = TensorWriter(folder / "targets.safetensors", shapes)
        for start in range(0, len(table), BLOCK):
            rows = table[slice(start, start + BLOCK)]
            for key, values in rows.items():
                writer.write(key, start, values)
            reach(start + len(rows["label"]))
        writer.close()


def wavelet(out: Path, section: schema.Wavelet) -> None:
    """The bands of each image in fp32 (half precision would lose 8-bit steps), and their statistics."""
    table = pixel_table("train")
    count, channels, side, _ = table.arrays["pixels"].shape
    shapes = bands.shapes(channels, side, section.filter, section.levels)
    with atomic_folder(out) as folder, progress(f"decompose {out.name}", count) as reach:
        path = folder / "targets.safetensors"
        whole = {name: (np.float32, (count, *shape)) for name, shape in shapes.items()}
        writer = TensorWriter(path, whole | {"label": (np.int64, (count,))})
        for start in range(0, count, BLOCK):
            rows = table[slice(start, start + BLOCK)]
            for name, band in bands.decompose_images(rows["pixels"], section.filter, section.levels).items():
                writer.write(name, start, band)
            writer.write("label", start, rows["label"])
            reach(start + len(rows["label"]))
        writer.close()
        statistics = bands.statistics(Table.open(path, *shapes), section.filter, section.levels)
        write_json(folder / "statistics.json", statistics)


def residual(out: Path, section: schema.Residual) -> None:
    """The targets y_k of each scale, with their statistics."""
    sides = section.sides
    full = Table.open(LATENTS / str(sides[-1]) / "latents.safetensors", "mean", "label")
    base = Table.open(LATENTS / str(sides[0]) / "latents.safetensors", "mean")
    statistics = read_json(LATENTS / str(sides[-1]) / "statistics.json")
    shift, scale = per_channel(statistics["shift"]), per_channel(statistics["scale"])
    count, channels, grid = full.arrays["mean"].shape[:3]
    grids = [side * grid // sides[-1] for side in sides]
    moments = [Moments() for _ in sides]
    with atomic_folder(out) as folder, progress(f"decompose {out.name}", count) as reach:
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
        codec.carry(LATENTS / str(sides[-1]), folder)


def pyramid(out: Path, section: schema.Pyramid) -> None:
    """The latents z{side} of every side, encoded from the image downsampled to it.

    SwD downsamples twice to get to the smaller side of a step; here every side comes from the image at once, so that
    one latent serves as the target of one step and the low version of the next. The posterior's means are taken, as
    for every method here, not samples of it.
    """
    tables = {side: Table.open(LATENTS / str(side) / "latents.safetensors", "mean", "label") for side in section.sides}
    full = section.sides[-1]
    statistics = read_json(LATENTS / str(full) / "statistics.json")
    shift, scale = per_channel(statistics["shift"]), per_channel(statistics["scale"])
    count = len(tables[full])
    with atomic_folder(out) as folder, progress(f"decompose {out.name}", count) as reach:
        shapes = {f"z{side}": (np.float32, table.arrays["mean"].shape) for side, table in tables.items()}
        writer = TensorWriter(folder / "targets.safetensors", {**shapes, "label": (np.int64, (count,))})
        for start in range(0, count, BLOCK):
            for side, table in tables.items():
                rows = table[slice(start, start + BLOCK)]
                writer.write(f"z{side}", start, (rows["mean"] - shift) / scale)
            writer.write("label", start, rows["label"])
            reach(start + len(rows["label"]))
        writer.close()
        grids = {side: table.arrays["mean"].shape[-1] for side, table in tables.items()}
        write_json(folder / "statistics.json", {**statistics, "grids": grids})
        codec.carry(LATENTS / str(full), folder)


KINDS = {"pixels": pixels, "pyramid": pyramid, "residual": residual, "wavelet": wavelet}

if __name__ == "__main__":
    command(main, __doc__, {"name": "a key of `decompose`"})
