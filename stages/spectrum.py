"""Proposes a schedule for a data set from its power spectrum, and draws the picture that justifies it.

At each noise level of the published 4 and 6 steps: the smallest side that discards no frequency which the noise leaves
visible. Prints the sides in pixels, ready for `students: NAME: schedule`, and writes reports/spectrum/SOURCE.png.
"""

from __future__ import annotations

from pathlib import Path

from multiscale.core.pixels import per_channel, to_signed
from multiscale.core.storage import Table, read_json
from multiscale.methods.swd.schedule import BOUNDARIES, Schedule, few_steps
from multiscale.methods.swd.spectrum import cutoff, proposed, radial_power, smallest_safe
from stages import figures
from stages.common import settings
from stages.common.harness import command
from stages.common.images import pixel_table
from stages.common.paths import LATENTS, REPORTS

BLOCK = 1024
PATCH = 2  # sides are such that a transformer's patches divide their latents


def blocks(table: Table, column: str, normalise):
    """The images of a table, block by block."""
    return (normalise(table[slice(k, k + BLOCK)][column]) for k in range(0, len(table), BLOCK))


def spectrum_of(source: str, size: int):
    """(frequencies, power, side of the grid) of the images or of the latents of one side, normalised."""
    if source == "pixels":
        table = pixel_table("train")
        return *radial_power(blocks(table, "pixels", to_signed), size), size
    folder = LATENTS / source
    if not folder.is_dir():
        made = ", ".join(["pixels", *sorted(path.name for path in LATENTS.glob("[!.]*"))])
        raise settings.refuse("spectrum", "SOURCE", source, f"one of {made}")
    about = read_json(folder / "statistics.json")
    shift, scale = per_channel(about["shift"]), per_channel(about["scale"])
    table = Table.open(folder / "latents.safetensors", "mean")
    grid = table.arrays["mean"].shape[-1]
    return *radial_power(blocks(table, "mean", lambda z: (z - shift) / scale), grid), grid


def main(source: str) -> None:
    size = settings.load("data").data.size
    frequencies, power, grid = spectrum_of(source, size)
    factor = size // grid if source == "pixels" else int(source) // grid
    grids = list(range(PATCH, grid, PATCH)) + [grid]
    levels = {}
    for steps in BOUNDARIES:
        sigmas = few_steps(steps, [grid] * steps).sigmas
        chosen = Schedule(tuple(proposed(frequencies, power, sigmas, grids)), sigmas)
        for sigma in sigmas:
            safe = smallest_safe(frequencies, power, sigma, grids)
            levels[sigma] = cutoff(frequencies, power, sigma), safe * factor
        sides, shown = [side * factor for side in chosen.sides], [round(sigma, 4) for sigma in sigmas]
        print(f"{steps} steps: {{sides: {sides}, sigmas: {shown}}}, {chosen.cost:.0%} of the full side's tokens")
    path = REPORTS / "spectrum" / f"{source}.png"
    title = f"Spectrum of {'the pixels' if source == 'pixels' else f'latents of {source} px'}"
    figures.spectrum(frequencies.tolist(), power.tolist(), levels, title, Path(path))
    print(f"picture: {path}")


if __name__ == "__main__":
    command(main, __doc__, {"source": "'pixels', or a side of `latents`"})
