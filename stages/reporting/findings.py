"""What the training images, and the latents made of them, hold at each scale, and whether methods may build on it.

Each analysis gives findings about assumptions of multi-scale generation, and the tables behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import mean
from typing import Any

from torch import Tensor

from multiscale.core.models import AUTOENCODER
from multiscale.core.resize import area_to
from multiscale.core.storage import read_sealed_json
from multiscale.methods.ssd import theory as ssd
from multiscale.methods.ssd.process import linear_alpha_bar
from multiscale.methods.swd.schedule import BOUNDARIES, few_steps
from multiscale.methods.swd.spectrum import cutoff, divisible, proposed, radial_power, smallest_safe, visible
from multiscale.methods.wmgm.bands import PIXELS, decompose_images
from multiscale.methods.wmgm.whitening import BandStatistics
from stages.common.paths import MEASUREMENTS, parts_of
from stages.reporting import analyses, fields, gallery, wavelets
from stages.reporting.observed import IMAGES, Data, Finding, Found
from stages.reporting.page import Section

STATES = 1000  # of SSD's process
SNR = [each / (1 - each) for each in linear_alpha_bar(STATES)]
FALLING, BETTER, SPARSE, RESIDUAL, ENOUGH, LOST = 1.0, 2.0, 1.0, 0.5, 0.95, 0.5  # what counts as holding
OF_PIXELS = "pixels"
HELD, KEPT = "Noisy states hold no more than small images", "What noise leaves is at coarse scales"


def spectrum(data: Data) -> Found:
    rows = [
        [
            f"up to {row['resolution']} px",
            *(f"{row[key]:.3g}" for key in ("power", "masked")),
            f"{row['share']:.1%}",
        ]
        for row in fields.octaves(data.variance)
    ]
    fall = fields.exponent(*radial_power([data.x - data.x.mean(0)], data.full))
    holds = fall >= FALLING
    words = (
        "Coarse scales hold most of what there is; fine ones add detail."
        if holds
        else "Fine scales hold about as much as coarse ones: a small image tells little of the large one."
    )
    wanted = f"a >= {FALLING:g} (photographs: about 2)"
    found = Finding(
        "Power falls with the frequency, as 1/f^a", "all", OF_PIXELS, f"a = {fall:.2f}", wanted, holds, words
    )
    lines = [
        "What each doubling of the resolution adds. White noise has power 1; masked from: the noise level s at 1 - s."
    ]
    return [found], [
        Section("Octaves of the images", lines, ["frequencies", "power", "masked from", "share"], rows, [])
    ]


def _spectra(data: Data) -> Iterator[tuple[str, Tensor, Tensor, int]]:
    """Of the pixels and of the full latents of each pyramid: name, frequencies, power, resolution."""
    yield OF_PIXELS, *radial_power([data.x], data.full), data.full
    for name, each in data.statistics.items():
        if "grids" in each:
            yield f"latents of {name}", *analyses.pyramid_power(name, each["grids"], len(data.x))


def resolutions(data: Data) -> Found:
    found, rows, lines = [], [], []
    for name, frequencies, power, grid in _spectra(data):
        grids, factor = divisible(grid), data.full // grid
        useful = 0
        for sigma in sorted({sigma for steps in BOUNDARIES for sigma in few_steps(steps)}, reverse=True):
            cut, safe = cutoff(frequencies, power, sigma), smallest_safe(frequencies, power, sigma, grids)
            # Noise that masks everything makes any resolution safe.
            useful += int(safe < grid and bool(visible(power, sigma).any()))
            rows.append([name, f"{sigma:.4f}", f"{cut:.3g}", f"{safe * factor}"])
        for steps in BOUNDARIES:
            shown = [resolution * factor for resolution in proposed(frequencies, power, few_steps(steps), grids)]
            lines.append(f"Proposed for {name}, {steps} steps: {shown}.")
        words = (
            "The first steps may run at a lower resolution and lose nothing that could be seen."
            if useful
            else "No step hides fine scales and leaves coarse ones visible: a growing resolution loses what a full one "
            "shows, or hides nothing."
        )
        measured = f"{useful} noise levels"
        wanted = "at 1 or more, a lower resolution keeps all that is visible"
        found.append(Finding("High noise masks high frequencies", "SwD", name, measured, wanted, useful > 0, words))
    headings = ["data", "noise level", "masked from, cycles a pixel", "smallest safe resolution, px"]
    return found, [Section("Resolutions that the noise allows (SwD)", lines, headings, rows, [])]


def of_bands(pixels: Tensor, levels: int) -> dict[str, Any]:
    """Statistics of the Haar bands of images, as those that a wavelet decomposition keeps."""
    bands = {PIXELS: pixels.float() / 255, **decompose_images(pixels, "haar", levels)}
    found = {}
    for name, band in bands.items():
        gathered = BandStatistics(name, band.double().mean((0, 2, 3)))
        gathered.add(band)
        found[name] = gathered.summary()
    return {"wavelet": "haar", "levels": levels, "bands": found}


def bands(data: Data) -> Found:
    known = {name: each for name, each in data.statistics.items() if each.get("wavelet", PIXELS) != PIXELS}
    levels = len([each for each in fields.doublings(data.full)[:-1] if each >= 4])
    if not known and not levels:
        return [], []
    name, found = next(iter(known.items())) if known else (OF_PIXELS, of_bands(data.pixels, min(levels, 3)))
    gain = 1 / analyses.relative_condition(found["bands"])
    shape = analyses.largest_shape(found["bands"])
    better, sparse = gain >= BETTER, shape < SPARSE
    words = (
        "A model of the coarse band needs fewer steps than one of the pixels."
        if better
        else "The coarse band is as hard for a diffusion model as the pixels are: wavelets save no steps."
    )
    of_sparse = (
        "Most details are near zero, so a small generator can add them."
        if sparse
        else "Details are about as large everywhere: to add them is no small task."
    )
    measured = f"{gain:.3g} times", f"shape {shape:.2f}"
    wanted = f"at least {BETTER:g} times", f"shape below {SPARSE:g} (Laplace 1, Gaussian 2)"
    findings = [
        Finding("The coarse band is better conditioned", "WMGM", name, measured[0], wanted[0], better, words),
        Finding("Details are sparse", "WMGM", name, measured[1], wanted[1], sparse, of_sparse),
    ]
    return findings, [wavelets.bands(name if known else "the pixels", found)]


def scales(data: Data) -> Found:
    found, rows = [], []
    measured = {}
    if data.full % 2 == 0:
        grids = [data.full // 2, data.full]
        measured[OF_PIXELS] = list(zip(grids, fields.energies(data.x, grids)))
    for name, each in data.statistics.items():
        if len(each.get("scales", [])) > 1:  # of latents that are normalised to variance 1
            of_scale = [(scale["resolution"], mean(std**2 for std in scale["std"])) for scale in each["scales"]]
            measured[f"latents of {name}"] = of_scale
    for name, of_scale in measured.items():
        rows += [[name, f"{k}", f"{grid}", f"{energy:.1%}"] for k, (grid, energy) in enumerate(of_scale)]
        last = of_scale[-1][1]
        holds = last < RESIDUAL
        words = (
            "The first scale settles most of the image; the last has little left to learn."
            if holds
            else "Most of the image is in the residual: the first scale settles little, and the last has all to learn."
        )
        wanted = f"below {RESIDUAL:.0%} of the images' variance"
        found.append(Finding("The residual holds little energy", "MSF", name, f"{last:.1%}", wanted, holds, words))
    lines = ["The variance of a number of each scale, over that of the full image or latent. Scales overlap."]
    return found, [Section("Energy of the scales (MSF)", lines, ["data", "scale", "resolution", "variance"], rows, [])]


def information(data: Data) -> Found:
    smaller = fields.doublings(data.full)[:-1]
    if not smaller:
        return [], []
    half = smaller[-1]
    small = fields.variances(area_to(data.x, half))
    rows = []
    for t in (*range(0, STATES, STATES // 10), STATES - 1):
        bits = fields.information(data.variance, SNR[t], data.full)
        holds = next(resolution for resolution, held in data.held.items() if held >= bits)
        shares = [f"{fields.share(data.variance, SNR[t], resolution):.1%}" for resolution in smaller[::-1][:3]]
        state = fields.information(small, SNR[t], half) / bits
        row = [f"{t}", f"{SNR[t]:.3g}", f"{bits / data.full**2:.3g}", f"{holds}", *shares, f"{state:.1%}"]
        rows.append([*row, f"{ssd.information(SNR[t]):.1%}"])
    lines = [
        "Bits a pixel and channel that x_t tells of the image: exact for a stationary Gaussian field of this spectrum, "
        "the most for any other. Then the smallest image that holds as many, down to its 8-bit rounding; the share of "
        "them in the frequencies of smaller images; what a state of half the resolution tells, with the same noise on "
        "each of its pixels; and the share of pixels that the signal dominates, the paper's measure."
    ]
    kept = [f"kept at {resolution} px" for resolution in smaller[::-1][:3]]
    headings = ["t", "signal-to-noise", "bits a pixel", "held by an image of, px", *kept]
    headings += [f"told by a state of {half} px", "paper's measure"]
    found = [_held(data, half), _kept(data.variance, half)]
    for name in (name for name, each in data.params.methods.items() if each.kind == "ssd"):
        found += _of_process(name, data)
    return found, [Section("Information of x_t against resolution (SSD)", lines, headings, rows, [])]


def _held(data: Data, half: int) -> Finding:
    bits = data.held[half]
    first = next((t for t in range(STATES) if fields.information(data.variance, SNR[t], data.full) <= bits), None)
    words = (
        "From there on, an image of half the resolution can hold all that the noise has left."
        if first is not None
        else "However strong the noise, it leaves more than an image of half the resolution can hold."
    )
    measured = "at no state" if first is None else f"from t = {first} of {STATES} on"
    wanted = f"from some t on, {half} px hold as many bits as x_t"
    return Finding(HELD, "SSD", OF_PIXELS, measured, wanted, first is not None, words)


def _kept(variance: Tensor, half: int) -> Finding:
    shares = [fields.share(variance, each, half) for each in SNR]
    first = next((t for t, share in enumerate(shares) if share >= ENOUGH), None)
    words = (
        "From there on, half of the resolution keeps nearly all that the noise has left."
        if first is not None
        else f"However strong the noise, half of the resolution loses {1 - max(shares):.0%} or more of what it leaves."
    )
    measured = f"at most {max(shares):.1%}" if first is None else f"from t = {first} of {STATES} on"
    wanted = f"from some t on, {half} px keep {ENOUGH:.0%} of the information of x_t"
    return Finding(KEPT, "SSD", OF_PIXELS, measured, wanted, first is not None, words)


def _of_process(name: str, data: Data) -> list[Finding]:
    """Whether the process of a row of SSD shrinks where that loses little."""
    try:
        process = analyses.process_of(name)
    except analyses.Unmeasured:  # not trained yet
        return []
    levels = {t: process.resolution(t) for t in process.transitions}
    if not levels or process.resolutions[0] != data.full or not data.held.keys() >= {*levels.values()}:
        return []
    snr = {t: process.alpha_bar[t] / (1 - process.alpha_bar[t]) for t in levels}
    over = {t: fields.information(data.variance, snr[t], data.full) / data.held[levels[t]] for t in levels}
    kept = {t: fields.share(data.variance, snr[t], levels[t]) for t in levels}
    most, least = max(over, key=over.__getitem__), min(kept, key=kept.__getitem__)
    fits, keeps = over[most] <= 1, kept[least] >= ENOUGH
    can = (
        "Each level begins where its images can hold what the noise has left."
        if fits
        else f"At t = {most} it goes to {levels[most]} px, which cannot hold what the noise has left."
    )
    does = (
        "Each level begins where what it leaves out is masked."
        if keeps
        else f"At t = {least} it goes to {levels[least]} px while finer scales are still visible."
    )
    return [
        Finding(HELD, "SSD", name, f"{over[most]:.1%} of it", "at most 100% where a level begins", fits, can),
        Finding(KEPT, "SSD", name, f"{kept[least]:.1%}", f"{ENOUGH:.0%} kept where a level begins", keeps, does),
    ]


def floor(data: Data) -> Found:
    paths = {name: MEASUREMENTS / f"{name}.json" for name in ("real", "autoencoder")}
    if not all(path.exists() for path in paths.values()):
        return [], []
    real, decoded = (read_sealed_json(path) for path in paths.values())
    latent = [
        (read_sealed_json(path)["kid"], name)
        for name in data.params.methods
        if any((part / AUTOENCODER).is_dir() for part in parts_of(name))
        and (path := MEASUREMENTS / f"{name}.json").exists()
    ]
    errors = [_error(name) for name in paths]
    rows = [
        [name, f"{each['kid']:.4f} +- {each['kid_se']:.4f}", error]
        for name, each, error in zip(paths, (real, decoded), errors)
    ]
    found = []
    if latent:
        best, name = min(latent)
        share = (decoded["kid"] - real["kid"]) / (best - real["kid"]) if best > real["kid"] else 1.0
        holds = share < LOST
        words = (
            "What methods on latents lack is their own, not the autoencoder's."
            if holds
            else "The autoencoder, not the method, limits latents: train a better one, or work on pixels."
        )
        wanted = f"below {LOST:.0%} of what the best method on latents lacks in KID"
        found.append(Finding("The autoencoder loses little", "all", name, f"{share:.0%}", wanted, holds, words))
    headings = ["held-out images", "KID", "rms error of a pixel, of 255"]
    return found, [Section("What the autoencoder loses", [], headings, rows, [])]


def _error(name: str) -> str:
    """The root mean square error of a floor's pixels against those of `real`, of the same images."""
    if name == "real":
        return "0"
    pixels, real = (gallery.first(each, IMAGES)[0].float() for each in (name, "real"))
    return f"{(pixels - real).square().mean().sqrt().item():.2f}" if pixels.shape == real.shape else "-"


ANALYSES: dict[str, Callable[[Data], Found]] = {
    "spectrum": spectrum,
    "resolutions": resolutions,
    "bands": bands,
    "scales": scales,
    "information": information,
    "floor": floor,
}
