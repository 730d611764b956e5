"""The report's sections on wavelets: statistics of the bands, theory of their conditioning, diversity of generators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from multiscale.adversarial import COLLAPSED
from multiscale.core import intact
from multiscale.core.storage import read_json
from multiscale.methods.wmgm import theory
from multiscale.methods.wmgm.bands import PIXELS
from stages.common.paths import DECOMPOSED, MODELS
from stages.reporting import figures
from stages.reporting.page import Section

RESOLUTIONS = [16, 32, 64, 128]  # of the Gaussian fields of the theory
ERRORS = {"worst": 0.02, "wasserstein": 1e-3, "kl": 1e-3}  # of a mode; squared, a dimension; nats a dimension
COLLAPSE = "mode collapse:"
BANDS = {
    "band": "band",
    "resolution": "resolution",
    "std": "standard deviation",
    "energy": "energy",
    "kurtosis": "kurtosis (3: Gaussian)",
    "shape": "shape (2: Gaussian, 1: Laplace)",
    "condition": "condition number",
    "condition_spectral": "condition number, spectral",
    "condition_spectral_gain": "times better than pixels",
}
DIVERSITY = {
    "part": "part",
    "level": "level",
    "spread": "variance over the noise",
    "residual": "the data's, given the coarse band",
    "ratio": "ratio",
    "noise_share": "noise's share of the energy",
    "energy_ratio": "energy, generated / real",
    "kurtosis_generated": "kurtosis, generated",
    "kurtosis_real": "kurtosis, real",
}


def sections(pictures: Path) -> list[Section]:
    """The sections, with their plots written into `pictures`; none for an experiment without wavelets."""
    for path in (*DECOMPOSED.glob("[!.]*/statistics.json"), *MODELS.glob("*/*/examined.json")):
        intact.check_folder(path.parent, path.name)
    statistics = {path.parent.name: read_json(path) for path in sorted(DECOMPOSED.glob("[!.]*/statistics.json"))}
    found = [_drawn(name, each, pictures) for name, each in statistics.items() if "bands" in each]
    examined = {path.parent.name: read_json(path)["diversity"] for path in sorted(MODELS.glob("*/*/examined.json"))}
    return found + ([_diversity(examined)] if examined else [])


def warnings(sections: list[Section]) -> list[str]:
    """The lines of sections that are warnings."""
    return [line for section in sections for line in section.lines if line.startswith(COLLAPSE)]


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_cell(each) for each in value)
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(headings: dict[str, str], rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    return list(headings.values()), [[_cell(row[key]) for key in headings] for row in rows]


def bands(name: str, statistics: dict[str, Any]) -> Section:
    """The table of the bands of a decomposition, from its statistics."""
    rows = [{**statistics["bands"][row["band"]], **row} for row in theory.data_conditioning(statistics)]
    title = f"Bands of {name}: {statistics['wavelet']}, {statistics['levels']} levels"
    return Section(title, [], *_table(BANDS, rows), [])


def _drawn(name: str, statistics: dict[str, Any], pictures: Path) -> Section:
    wavelet, conditions, found = statistics["wavelet"], theory.data_conditioning(statistics), bands(name, statistics)
    if wavelet == PIXELS:
        return found
    fields = theory.field_conditioning(RESOLUTIONS, wavelet=wavelet)
    steps = {kind: theory.steps_table(RESOLUTIONS, error, kind, wavelet=wavelet) for kind, error in ERRORS.items()}
    plots = [f"{name}-conditioning.png", f"{name}-euler-steps.png"]
    figures.conditioning(fields, conditions, pictures / plots[0])
    figures.euler_steps(steps, ERRORS, pictures / plots[1])
    note = (
        "Condition numbers are of bands divided by the standard deviation of each channel, with 8-bit rounding added; "
        "the spectral one assumes stationary images. The fields are Gaussian with spectrum 1/f^2 and a coarsest band "
        "of 4 x 4 coefficients; Euler steps are computed in closed form for the exact score."
    )
    return replace(found, lines=[note], plots=plots)


def _diversity(examined: dict[str, list[dict[str, Any]]]) -> Section:
    rows = [{"part": part, **row} for part, levels in examined.items() for row in levels]
    collapsed = [
        f"{COLLAPSE} {row['part']} at level {row['level']} varies {row['ratio']:.2g} times as much as the data"
        for row in rows
        if row["collapsed"]
    ]
    note = (
        "The ratio is the variance of generated details for one coarse image over that of the data: 1 is ideal; below "
        f"{COLLAPSED} the generator ignores its noise."
    )
    return Section("Diversity of the adversarial details", [*collapsed, note], *_table(DIVERSITY, rows), [])
