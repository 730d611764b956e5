"""Whether a data set is as multi-scale generation assumes, on fields whose answers are known in closed form."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import write_set

from multiscale.core.storage import Table, write_sealed_json
from multiscale.methods.wmgm import bands
from stages import assumptions
from stages.common.errors import BadInput
from stages.reporting import fields, findings, observed

NOTHING = SimpleNamespace(methods={})


def test_white_noise_tells_a_bit_a_pixel_and_a_quarter_of_it_at_half_the_resolution():
    """log2(1 + 1 * 3) / 2 = 1 bit at each of 16 x 16 frequencies, of which 8 x 8 are those of 8 px."""
    white = torch.full((16, 16), 3.0)
    assert fields.information(white, 1.0, 16) == 256 and fields.information(white, 1.0, 8) == 64
    assert fields.share(white, 1.0, 8) == 0.25 and fields.share(white, 1.0, 7) == 49 / 256


def test_information_is_that_of_the_covariance_of_a_stationary_field():
    """log2 det(I + snr C) / 2 of the whole covariance C, which the spectrum diagonalises."""
    place = np.fft.fftfreq(6, 1 / 6)
    power = 1 / (1 + place[:, None] ** 2 + place**2)
    of_shift = np.fft.ifft2(power).real
    pixels = [(i, j) for i in range(6) for j in range(6)]
    covariance = np.array([[of_shift[(i - k) % 6, (j - m) % 6] for k, m in pixels] for i, j in pixels])
    _, wanted = np.linalg.slogdet(np.eye(36) + 5 * covariance)
    assert fields.information(torch.from_numpy(power), 5.0, 6) == pytest.approx(wanted / 2 / np.log(2), rel=1e-12)
    images = torch.from_numpy(np.random.default_rng(0).multivariate_normal(np.full(36, 2), covariance, 50000))
    assert fields.variances(images.view(-1, 1, 6, 6)).numpy() == pytest.approx(power, rel=0.05), "the mean left out"


def test_a_wave_is_in_the_octave_that_first_has_its_frequency():
    """3 cycles an image need 8 of 16 px. Amplitudes of +-1 have variance 1 a pixel's half, 16 * 16 / 4 a frequency."""
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(16) / 16).expand(1, 16, 16)
    images = torch.stack([wave, -wave] * 500)
    coarse, below, octave, above = fields.octaves(fields.variances(images))
    assert [each["resolution"] for each in (coarse, below, octave, above)] == [2, 4, 8, 16]
    assert octave["share"] == pytest.approx(1) and coarse["share"] == pytest.approx(0, abs=1e-9)
    power = 2 * 64 * 1000 / 999 / (64 - 16)  # over the frequencies of the octave
    assert octave["power"] == pytest.approx(power)
    assert (1 - octave["masked"]) ** 2 * power == pytest.approx(octave["masked"] ** 2)


def test_the_exponent_is_that_of_a_power_law():
    frequencies = torch.arange(1, 17).double() / 32
    assert fields.exponent(frequencies, 7 * frequencies**-1.5) == pytest.approx(1.5)


def test_energy_is_in_the_residual_of_noise_and_not_in_that_of_flat_images():
    """White noise: a pixel is 1/4 of its area. With u = 20.75 / 32 and c = 24.5 / 32, means over a row of the squares
    of the weights of bilinear enlargement and of that of the own area, 1 + u^2 / 4 - c^2 / 2 = 0.812 is left."""
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(2000, 1, 32, 32)))
    base, rest = fields.energies(noise, [16, 32])
    assert base == pytest.approx(0.25, abs=0.003) and rest == pytest.approx(0.812, abs=0.003)
    flat = torch.randn(50, 1, 1, 1).expand(50, 1, 32, 32)
    assert fields.energies(flat, [16, 32]) == pytest.approx([1, 0], abs=1e-6)


def verdicts(pixels: np.ndarray) -> dict[str, bool]:
    data = observed.Data(NOTHING, torch.from_numpy(pixels))
    table, *_ = assumptions.sections(data, [name for name in findings.ANALYSES if name != "floor"])
    broken = [row[0] for row in table.rows if row[5] == "false"]
    assert len(table.lines) == 1 + len(broken) and all(" no. " in line for line in table.lines[1:])
    return {row[0]: row[5] == "true" for row in table.rows}


def test_noise_has_no_scales_and_large_shapes_have(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draws = np.random.default_rng(0)
    noise = verdicts(draws.integers(0, 256, (500, 1, 32, 32), np.uint8))
    assert noise.pop(findings.HELD), "an image of half the resolution has few bits, but enough for much noise"
    assert len(noise) == 6 and not any(noise.values()), noise
    y, x = np.mgrid[:32, :32]
    places, sizes = draws.uniform(8, 24, (500, 2)), draws.uniform(6, 12, 500)
    distances = (np.hypot(x - px, y - py) - size for (px, py), size in zip(places, sizes))
    discs = np.stack([np.clip(127 - 64 * each, 0, 255).astype(np.uint8) for each in distances])[:, None]
    assert all(verdicts(discs).values()), verdicts(discs)


def test_the_bands_of_a_decomposition_are_printed_with_what_is_found_about_them():
    images = torch.randint(0, 256, (8, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    table = Table({name: band.numpy() for name, band in bands.decompose_images(images, "haar", 1).items()})
    data = SimpleNamespace(pixels=images, statistics={"wavelet": bands.statistics(table, "haar", 1)}, full=8)
    verdicts, found = assumptions.sections(data, ["bands"])
    assert [row[2] for row in verdicts.rows] == ["wavelet"] * 2
    assert found.title == "Bands of wavelet: haar, 1 levels"
    assert [row[0] for row in found.rows] == ["ll", "pixels", "details-1"]


@pytest.mark.parametrize("decoded, holds, shown", [(0.02, "true", "20%"), (0.07, "false", "120%")])
def test_the_autoencoder_is_measured_by_what_the_best_method_on_latents_lacks(project, decoded, holds, shown):
    """Above the real images' 0.01, the method lacks 0.05."""
    for name, kid in (("real", 0.01), ("autoencoder", decoded), ("msf", 0.06), ("ddpm", 0.005)):
        Path("reports/measurements").mkdir(parents=True, exist_ok=True)
        write_sealed_json(Path(f"reports/measurements/{name}.json"), {"kid": kid, "kid_se": 0.001})
        write_set(Path("data/images.parquet"), ["train"] * 2, np.eye(2, dtype=np.uint8)[:, None, None] * 255, [0, 1])
        Path("samples", name).mkdir(parents=True, exist_ok=True)
    Path("models/msf/msf-1/autoencoder").mkdir(parents=True)
    Path("models/ddpm/ddpm").mkdir(parents=True)
    from safetensors.torch import save_file

    for name, value in (("real", 10), ("autoencoder", 13)):
        pixels = torch.full((4, 1, 8, 8), value, dtype=torch.uint8)
        save_file({"pixels": pixels, "label": torch.zeros(4).long()}, f"samples/{name}/images.safetensors")
    params = SimpleNamespace(methods={"msf": None, "ddpm": None, "dit": None})
    table, losses = assumptions.sections(observed.Data(params, torch.zeros(2, 1, 8, 8).byte()), ["floor"])
    assert [row[2:4] + [row[5]] for row in table.rows] == [["msf", shown, holds]]
    assert losses.rows[1] == ["autoencoder", f"{decoded:.4f} +- 0.0010", "3.00"]


def test_images_that_are_all_the_same_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_set(Path("data/images.parquet"), ["train"] * 3, np.full((3, 1, 8, 8), 7, np.uint8), [0, 0, 0])
    with pytest.raises(BadInput, match="data/pixels/train: 3 images, all the same; allowed: at least 2 that differ"):
        observed.look(NOTHING)


def test_an_analysis_that_there_is_not_is_refused(project):
    done = project.stage("assumptions", "wavelets")
    assert done.returncode == 2
    assert done.stderr.startswith("error: assumptions: ANALYSIS: 'wavelets' is not allowed; allowed: one of spectrum")


def test_the_report_shows_what_holds_and_says_what_does_not(measured):
    done = measured().stage("report")
    assert done.returncode == 0, done.stderr
    page = Path("reports/report.html").read_text()
    assert assumptions.TITLE in page and "Information of x_t against resolution" in page
    assert " assumptions hold, of " in done.stdout
