"""The quantities of claims that need no row of the leaderboard: of losses, wavelet bands, spectra, SSD's process.

Each gives a value and its standard error: 0 for what is computed from the training images or in closed form, None
where nothing tells it. What has no value raises `Unmeasured`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import polars as pl
from torch import Tensor

from multiscale.core import intact
from multiscale.core.storage import Table, read_json
from multiscale.methods.ssd import theory as ssd
from multiscale.methods.ssd.process import ScaleSpace, ScaleSpaceProcess
from multiscale.methods.swd.spectrum import divisible, radial_power, smallest_safe, visible
from multiscale.methods.wmgm.bands import LOW, PIXELS
from stages.common.images import evenly
from stages.common.paths import DECOMPOSED, parts_of
from stages.reporting.trainings import widened
from stages.schema import claims as schema

LAST = 3  # rows of a history, each a mean over some hundreds of images or more
IMAGES, BLOCK = 4096, 1024  # of a spectrum

Measured = tuple[float, float | None]


class Unmeasured(Exception):
    """Why a quantity has no value."""


class Lacking(Unmeasured):
    """A row, part or dataset that the experiment does not have."""


def _last_losses(part: str, folders: Sequence[Path]) -> list[float]:
    found = [folder / "history.jsonl" for folder in folders if folder.name == part]
    if not found or not found[0].exists():
        raise Lacking(f"needs the part {part}")
    intact.check_folder(found[0].parent, found[0].name)
    return pl.read_ndjson(found[0], infer_schema_length=None)["loss"].drop_nulls()[-LAST:].to_list()


def losses(quantity: schema.Losses, methods: Sequence[str]) -> Measured:
    """The ratio of the mean of the last losses, with the error that their scatter tells: so few rows tell little."""
    folders = [folder for name in methods for folder in parts_of(name)]
    of, over = (_last_losses(part, folders) for part in (quantity.of, quantity.over))
    value = mean(of) / mean(over)
    if min(len(of), len(over)) < LAST:
        return value, None
    error = value * sum((stdev(each) / mean(each)) ** 2 / LAST for each in (of, over)) ** 0.5
    return value, widened(LAST - 1) * error


def _statistics(dataset: str, key: str) -> dict[str, Any]:
    folder = DECOMPOSED / dataset
    if folder.is_dir():
        intact.check_folder(folder, "statistics.json")
        if key in (found := read_json(folder / "statistics.json")):
            return found
    raise Lacking(f"needs a dataset {dataset} with {key}")


def conditioning(quantity: schema.Conditioning) -> Measured:
    return relative_condition(_statistics(quantity.dataset, "bands")["bands"]), 0.0


def relative_condition(bands: Mapping[str, Any]) -> float:
    """The condition number of the coarse band over that of the pixels."""
    value: float = bands[LOW]["condition_spectral"] / bands[PIXELS]["condition_spectral"]
    return value


def sparsity(quantity: schema.Sparsity) -> Measured:
    return largest_shape(_statistics(quantity.dataset, "bands")["bands"]), 0.0


def largest_shape(bands: Mapping[str, Any]) -> float:
    """The shape of the least sparse details; 2: Gaussian, 1: Laplace."""
    value: float = max(max(band["shape"]) for name, band in bands.items() if name.startswith("details"))
    return value


def pyramid_power(dataset: str, grids: Mapping[str, int], count: int) -> tuple[Tensor, Tensor, int]:
    """The frequencies and the power of a pyramid's full latents, over at most `count` images, and their resolution.

    grids: resolution of the images -> that of their latents, as in the statistics of the dataset.
    """
    full, grid = max((int(resolution), grid) for resolution, grid in grids.items())
    # Not checked against its checksum, which would read the whole file: the training has done so.
    table = Table.open(DECOMPOSED / dataset / "targets.safetensors", f"z{full}")
    rows = evenly(len(table), min(len(table), count)).split(BLOCK)
    return *radial_power((table[some][f"z{full}"] for some in rows), grid), grid


def masked(quantity: schema.Masked) -> Measured:
    grids = _statistics(quantity.dataset, "grids")["grids"]
    frequencies, power, grid = pyramid_power(quantity.dataset, grids, IMAGES)
    if not visible(power, quantity.sigma).any():
        raise Unmeasured(f"noise of {quantity.sigma:g} masks every frequency of {quantity.dataset}, coarse ones too")
    return smallest_safe(frequencies, power, quantity.sigma, divisible(grid)) / grid, 0.0


def process_of(row: str) -> ScaleSpace:
    """The process of an SSD row, from the config of its part."""
    for part in parts_of(row):
        intact.check_folder(part, "config.json")
        if "process" in (config := read_json(part / "config.json")):
            return ScaleSpaceProcess.model_validate(config["process"]).build(config["resolution"])
    raise Unmeasured(f"{row} is not of SSD")


def information(row: str) -> Measured:
    value = ssd.excess_information(process_of(row))
    if value is None:
        raise Unmeasured(f"the states of {row} do not shrink")
    return value, 0.0


def like_ddpm(row: str) -> Measured:
    value = ssd.distance_to_ddpm(process_of(row))
    if value is None:
        raise Unmeasured(f"{row} has more than one level")
    return value, 0.0
