"""The pictures and spectra of the page: the first images of every row, the same seeds and classes side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from multiscale.core.pixels import to_signed
from multiscale.core.storage import Table
from multiscale.methods.swd.spectrum import masking, radial_power
from stages.common.paths import SAMPLES

ACROSS, TURNS = 10, 3  # tiles of a picture, pictures of a row
LARGEST = 64  # pixels of a tile
SPECTRUM = 1024  # images, at most


def first(name: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images (n, C, H, W) of a row, at most `count`, and their classes."""
    table = Table.open(SAMPLES / name / "images.safetensors")
    rows = table[slice(0, min(count, len(table)))]
    return rows["pixels"], rows["label"]


def like(labels: Tensor, classes: Tensor) -> list[int]:
    """For each class in turn the next place where it occurs in `labels`; the next place at all where it no longer does.

    So the images of a floor, which have no seeds, stand under those of their class.
    """
    free, found = list(range(len(labels))), []
    for kind in classes.tolist():
        place = next((k for k in free if int(labels[k]) == kind), free[0] if free else 0)
        found.append(place)
        if place in free:
            free.remove(place)
    return found


def tiles(pixels: Tensor) -> list[Image.Image]:
    """Pictures of ACROSS images each, from images (n, C, H, W), with transparent gaps."""
    side = min(pixels.shape[-1], LARGEST)
    gap, found = max(1, side // 32), []
    for start in range(0, len(pixels), ACROSS):
        sheet = Image.new("RGBA", (ACROSS * (side + gap) - gap, side))
        for column, image in enumerate(pixels[start : start + ACROSS]):
            picture = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
            sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (column * (side + gap), 0))
        found.append(sheet)
    return found


def spectra(names: Sequence[str], real: str | None) -> list[dict[str, Any]]:
    """The radial power spectra of rows, the noise levels that mask them, and their ratio to that of the row `real`."""
    powers = {}
    for name in names:
        pixels, _ = first(name, SPECTRUM)
        frequencies, powers[name] = radial_power([to_signed(pixels)], pixels.shape[-1])
    found = []
    for name, power in powers.items():
        columns = {"frequency": frequencies, "power": power, "masked": masking(power)}
        if real:
            columns["ratio"] = power / powers[real]
        values = {key: [round(float(value), 6) for value in column] for key, column in columns.items()}
        found += [{"method": name, **dict(zip(values, row))} for row in zip(*values.values())]
    return found


def masked_half(spectrum: list[dict[str, Any]], name: str) -> float | None:
    """The noise level that masks the upper half of the frequencies of a row."""
    upper = [each["masked"] for each in spectrum if each["method"] == name and each["frequency"] >= 0.25]
    return max(upper) if upper else None


def is_exact(resolution: int) -> bool:
    """Whether tiles are kept to the last bit: small ones are shown enlarged."""
    return resolution <= 32
