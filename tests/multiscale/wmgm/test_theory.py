"""The closed forms of the theory agree with dense matrices, with the sampler, and with the paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from multiscale.core.storage import Table
from multiscale.methods.wmgm import score, theory
from multiscale.methods.wmgm.bands import decompose_images, statistics
from multiscale.methods.wmgm.score import VP
from multiscale.methods.wmgm.theory import Modes
from multiscale.methods.wmgm.wavelet import analysis_matrix

RESOLUTIONS = [8, 16, 32, 64, 128]


def dense(spectrum: Tensor) -> Tensor:
    """The covariance (H^2, H^2) of the stationary field with a spectrum."""
    resolution = spectrum.shape[-1]
    waves = torch.fft.fft2(torch.eye(resolution**2, dtype=torch.float64).view(-1, resolution, resolution))
    return torch.fft.ifft2(waves * spectrum).real.reshape(resolution**2, resolution**2).mT


def whole_transform(name: str, resolution: int) -> Tensor:
    """One level in two dimensions as an orthonormal (H^2, H^2) matrix: low, cH, cV, cD one after another."""
    one, half = analysis_matrix(name, resolution), resolution // 2
    low, high = one[:half], one[half:]
    return torch.cat([torch.kron(a, b) for a, b in ((low, low), (high, low), (low, high), (high, high))])


@pytest.mark.parametrize("name", ["haar", "db2", "sym4"])
def test_the_bands_covariances_are_those_of_the_dense_matrices(name):
    spectrum = theory.power_law(8) + 0.1 * torch.rand(8, 8, generator=torch.Generator().manual_seed(0)).double()
    spectrum = (spectrum + spectrum.flip(0, 1).roll((1, 1), (0, 1))) / 2  # real fields
    T = whole_transform(name, 8)
    joint = T @ dense(spectrum) @ T.mT
    found = theory.band_covariances(spectrum, name)
    assert torch.allclose(torch.linalg.eigvalsh(found).flatten().sort()[0], torch.linalg.eigvalsh(joint), atol=1e-10)
    for band in range(4):
        block = joint[16 * band : 16 * band + 16, 16 * band : 16 * band + 16]
        own = found[..., band, band].real.flatten().sort()[0]
        assert torch.allclose(own, torch.linalg.eigvalsh(block), atol=1e-10)


def test_the_modes_of_the_details_are_those_of_their_conditional_covariance():
    spectrum, T = theory.power_law(8), whole_transform("haar", 8)
    joint = T @ dense(spectrum) @ T.mT
    low, cross, details = joint[:16, :16], joint[16:, :16], joint[16:, 16:]
    explained = cross @ torch.linalg.solve(low, cross.mT)
    scale = details.diagonal().rsqrt()
    conditional = (details - explained) * torch.outer(scale, scale)
    found, coarse = theory.wavelet_modes(spectrum, "haar", 1)
    assert torch.allclose(found.variance.sort()[0], torch.linalg.eigvalsh(conditional), atol=1e-10)
    assert found.mean_square.sum().item() == pytest.approx((explained * torch.outer(scale, scale)).trace().item())
    assert found.variance.sum() + found.mean_square.sum() == pytest.approx(48)  # unit variance in all 48 numbers
    assert torch.allclose(coarse.variance.sort()[0], torch.linalg.eigvalsh(low) / low.diagonal().mean(), atol=1e-10)


def test_whitened_bands_are_better_conditioned_than_pixels_whatever_the_resolution():
    rows = theory.field_conditioning(RESOLUTIONS)
    assert [row["resolution"] for row in rows] == RESOLUTIONS
    for row in rows:
        assert max(row["low"], row["details"]) < row["pixels"]
    assert max(row["low"] for row in rows) < 12 and max(row["details"] for row in rows) < 6  # bounded in H
    slopes = [math.log2(b["pixels"] / a["pixels"]) for a, b in zip(rows, rows[1:])]
    assert slopes == pytest.approx([2.0] * 4, rel=0.1)  # grows like H^2


def test_steps_grow_with_the_resolution_in_pixels_and_do_not_in_wavelets():
    for kind, error in (("worst", 0.02), ("wasserstein", 1e-3)):
        rows = theory.steps_table(RESOLUTIONS[1:], error, kind)
        pixels, wavelets = [row["pixels"] for row in rows], [row["wavelets"] for row in rows]
        assert pixels == sorted(pixels) and pixels[-1] > 3 * pixels[0]
        assert max(wavelets) - min(wavelets) <= 1
        assert rows[-1]["ratio"] == pixels[-1] / wavelets[-1] > 3


@pytest.mark.parametrize("kind", ["worst", "wasserstein", "kl"])
def test_the_steps_are_the_least_that_reach_the_error(kind):
    bands = theory.wavelet_modes(theory.power_law(16), "haar", 2)
    error = {"worst": 0.05, "wasserstein": 1e-3, "kl": 1e-3}[kind]
    steps = theory.steps_to_reach(error, bands, kind)
    groups = [theory.grouped(modes) for modes in bands]
    assert theory.euler_error(groups, steps, kind) <= error < theory.euler_error(groups, steps - 1, kind)
    falling = [theory.euler_error(groups, n, kind) for n in (1000, 2000, 4000)]
    order = 1 if kind == "worst" else 2  # the others are squares
    assert [math.log2(a / b) for a, b in zip(falling, falling[1:])] == pytest.approx([order] * 2, rel=0.2)


def test_the_euler_error_halves_when_the_steps_double():
    for bands in ([theory.pixel_modes(theory.power_law(16))], theory.wavelet_modes(theory.power_law(16), "haar", 2)):
        groups = [theory.grouped(modes) for modes in bands]
        errors = [theory.euler_error(groups, steps, "worst") for steps in (1000, 2000, 4000)]
        assert all(1.6 < a / b < 2.4 for a, b in zip(errors, errors[1:]))


def test_equal_modes_are_counted_once():
    modes = theory.pixel_modes(theory.power_law(32))
    few, count = theory.grouped(modes)
    assert len(count) < len(modes.variance) / 6 and count.sum() == 32**2
    assert (few.variance * count).sum().item() == pytest.approx(modes.variance.sum().item())


def test_an_error_out_of_reach_is_refused(monkeypatch):
    monkeypatch.setattr(theory, "MOST_STEPS", 64)
    with pytest.raises(ValueError, match="an error of 1e-09 takes more than 64 Euler steps; allowed: a larger one"):
        theory.steps_to_reach(1e-9, [Modes(torch.ones(1).double() * 2, torch.zeros(1).double())])


@pytest.mark.parametrize("resolution", [2, 4, 24])
def test_resolutions_that_are_no_doubling_of_the_coarsest_are_refused(resolution):
    with pytest.raises(ValueError, match=f"a resolution of {resolution} halved to 4; allowed: 4 times a power"):
        theory.levels_to_coarsest(resolution)


@pytest.mark.parametrize("name", ["haar", "db2"])
def test_diffusing_all_bands_is_diffusing_the_pixels(name):
    """The identity covariance is the same in every basis: alone, a wavelet basis changes nothing."""
    resolution, count, steps = 8, 5, 25
    covariance, T = dense(theory.power_law(resolution)), whole_transform(name, resolution)

    def exact(C: Tensor):
        def eps(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = VP.alpha(t[0].double()), VP.sigma(t[0].double())
            s = alpha**2 * C + sigma**2 * torch.eye(len(C), dtype=torch.float64)
            return sigma * torch.linalg.solve(s, x.flatten(1).mT).mT.view_as(x)

        return eps

    random = torch.Generator().manual_seed(0)
    start = torch.randn(count, resolution**2, generator=random, dtype=torch.float64)
    noise = [torch.randn(count, resolution**2, generator=random, dtype=torch.float64) for _ in range(steps)]
    paths: list[list[Tensor]] = [[], []]
    score.euler_maruyama(exact(covariance), start, steps, lambda k: noise[k], paths[0].append)
    score.euler_maruyama(exact(T @ covariance @ T.mT), start @ T.mT, steps, lambda k: noise[k] @ T.mT, paths[1].append)
    for pixels, bands in zip(*paths):
        assert (pixels @ T.mT - bands).abs().max() < 1e-9


def test_the_table_of_the_data_compares_every_band_with_the_pixels():
    images = torch.nn.functional.interpolate(
        torch.rand(300, 1, 4, 4, generator=torch.Generator().manual_seed(0)), size=(16, 16), mode="bilinear"
    )
    pixels = (255 * images + torch.rand(images.shape, generator=torch.Generator().manual_seed(1))).to(torch.uint8)
    table = Table({name: band.numpy() for name, band in decompose_images(pixels, "haar", 2).items()})
    rows = {row["band"]: row for row in theory.data_conditioning(statistics(table, "haar", 2))}
    assert set(rows) == {"ll", "details-1", "details-2", "pixels"}
    assert rows["pixels"]["condition_gain"] == 1 and rows["pixels"]["resolution"] == 16
    assert rows["ll"]["condition_gain"] > 100  # its 16 numbers are all there is to these images
    assert rows["ll"]["condition_spectral_gain"] > 10
    for row in rows.values():
        assert row["condition"] * row["condition_gain"] == pytest.approx(rows["pixels"]["condition"])
