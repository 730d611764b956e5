"""Proposes SwD schedules for a dataset from its power spectrum, and plots the spectrum.

For each noise level of the published 4- and 6-step schedules it finds the smallest resolution that keeps all
frequencies visible above the noise. Prints schedules for `students: NAME: schedule`, with resolutions in pixels, and
writes reports/spectrum/SOURCE.png.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"source": "'pixels', or a resolution of `latents`"})

from collections.abc import Callable, Iterator

from torch import Tensor

from multiscale.core import intact
from multiscale.core.normalisation import Normalisation
from multiscale.core.pixels import to_signed
from multiscale.core.storage import Table, read_json
from multiscale.methods.swd.schedule import BOUNDARIES, Schedule, few_steps
from multiscale.methods.swd.spectrum import cutoff, divisible, proposed, radial_power, smallest_safe
from stages.common import images
from stages.common.errors import refuse
from stages.common.paths import LATENTS, REPORTS
from stages.reporting import figures
from stages.schema import Experiment

BLOCK = 1024


def blocks(table: Table, column: str, normalise: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Yields the images of a table, normalised, block by block."""
    return (normalise(table[slice(k, k + BLOCK)][column]) for k in range(0, len(table), BLOCK))


def spectrum_of(source: str, resolution: int) -> tuple[Tensor, Tensor, int]:
    """(frequencies, power, resolution) of the images, or of the normalised latents of one resolution."""
    if source == "pixels":
        images.check("train")
        return *radial_power(blocks(images.pixel_table("train"), "pixels", to_signed), resolution), resolution
    folder = LATENTS / source
    if not folder.is_dir():
        made = ", ".join(["pixels", *sorted(path.name for path in LATENTS.glob("[!.]*"))])
        raise refuse("spectrum", "SOURCE", source, f"one of {made}")
    intact.check(folder)
    about = read_json(folder / "statistics.json")
    latent = Normalisation(shift=about["shift"], scale=about["scale"])
    table = Table.open(folder, "mean")
    grid = table.arrays["mean"].shape[-1]
    return *radial_power(blocks(table, "mean", latent.apply), grid), grid


def main(params: Experiment, source: str) -> None:
    full = params.data.resolution
    frequencies, power, grid = spectrum_of(source, full)
    factor = full // grid if source == "pixels" else int(source) // grid
    grids = divisible(grid)
    levels, proposals = {}, set()
    for steps in BOUNDARIES:
        sigmas = few_steps(steps)
        chosen = Schedule(resolutions=proposed(frequencies, power, sigmas, grids), sigmas=sigmas)
        for sigma in sigmas:
            safe = smallest_safe(frequencies, power, sigma, grids)
            levels[sigma] = cutoff(frequencies, power, sigma), safe * factor
        resolutions = [resolution * factor for resolution in chosen.resolutions]
        proposals |= {*resolutions}
        shown = f"{{resolutions: {resolutions}, sigmas: {[round(sigma, 4) for sigma in sigmas]}}}"
        print(f"{steps} steps: {shown}, {chosen.cost:.0%} of the full resolution's tokens")
    if source != "pixels" and (missing := sorted(proposals - {*params.latents.resolutions})):
        print(f"{missing}: add them to latents.resolutions and to the resolutions of the student's dataset")
    path = REPORTS / "spectrum" / f"{source}.png"
    title = f"Spectrum of {'the pixels' if source == 'pixels' else f'latents of {source} px'}"
    figures.spectrum(frequencies.tolist(), power.tolist(), levels, title, path)
    print(f"picture: {path}")
