"""Wavelets on tensors match PyWavelets, preserve energy and are invertible; bands and their statistics are correct."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import pywt
import torch
from scipy import stats

from multiscale.core.normalisation import Normalisation
from multiscale.core.storage import Table
from multiscale.methods.wmgm.bands import coarse, decompose_images, detail, shapes, statistics, transform_of
from multiscale.methods.wmgm.wavelet import ORTHOGONAL, Wavelet, filters
from multiscale.methods.wmgm.whitening import (
    BandStatistics,
    fully_whitened,
    gaussian_shape,
    scaled,
    unfitted,
)

NAMES = ["haar", *(f"db{n}" for n in range(2, 9)), *(f"sym{n}" for n in range(2, 9))]
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}
DTYPES = list(TOLERANCES)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def dwt(x: torch.Tensor, name: str, levels: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The transform of several levels: the low band x_J and the details [d_1, ..., d_J]."""
    wavelet, details = Wavelet(name), []
    for _ in range(levels):
        x, bands = wavelet.split(x)
        details.append(bands)
    return x, details


def idwt(low: torch.Tensor, details: list[torch.Tensor], name: str) -> torch.Tensor:
    for bands in reversed(details):
        low = Wavelet(name).merge(low, bands)
    return low


def cases(resolutions: tuple[int, ...] = (8, 16, 32, 64, 256)) -> list[tuple[str, int, int]]:
    """Every wavelet on every resolution, with as many levels as leave a resolution of 4, at most 4."""
    return [(name, resolution, min(4, int(math.log2(resolution)) - 2)) for name in NAMES for resolution in resolutions]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "resolution", "levels"), cases())
def test_several_levels_are_those_of_pywavelets(name, resolution, levels, dtype):
    x = random(2, 3, resolution, resolution, dtype=dtype)
    low, details = dwt(x, name, levels)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
    theirs = x.numpy()
    for made in details:
        theirs, bands = pywt.dwt2(theirs, name, "periodization")
        assert made.shape == (2, 9, *theirs.shape[2:]) and made.dtype == dtype
        assert np.abs(np.concatenate(bands, 1) - made.numpy()).max() < tolerance
    assert np.abs(theirs - low.numpy()).max() < tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "resolution", "levels"), cases())
def test_the_inverse_undoes_the_transform_and_the_energy_stays(name, resolution, levels, dtype):
    x = random(2, 3, resolution, resolution, dtype=dtype)
    low, details = dwt(x, name, levels)
    assert (idwt(low, details, name) - x).abs().max() < TOLERANCES[dtype]
    energy = sum(band.double().square().sum() for band in (low, *details))
    assert energy.item() == pytest.approx(x.double().square().sum().item(), rel=TOLERANCES[dtype])


def test_filters_are_those_of_pywavelets_made_orthonormal_to_rounding():
    """The products of each filter with itself and with the other, moved by even lags, are 0 but for its energy, 1."""
    for name in ORTHOGONAL:
        theirs, pair = pywt.Wavelet(name), np.array(filters(name))
        assert np.abs(pair - [theirs.dec_lo, theirs.dec_hi]).max() < 1e-11
        for a, b in itertools.product((0, 1), repeat=2):
            products = np.correlate(pair[a], pair[b], "full")[1::2]
            wanted = np.eye(len(products))[len(products) // 2] * (a == b)
            assert np.abs(products - wanted).max() < 1e-14, name


@pytest.mark.parametrize("name", NAMES)
def test_the_adjoint_of_the_transform_is_its_inverse(name):
    x = (random(1, 2, 16, 16, dtype=torch.float64) - 0.5).requires_grad_()
    low, details = dwt(x, name, 2)
    weights = [random(*band.shape, dtype=torch.float64, seed=k) - 0.5 for k, band in enumerate((low, *details))]
    inner = sum((weight * band).sum() for weight, band in zip(weights, (low, *details)))
    back = idwt(weights[0], weights[1:], name)
    assert inner.item() == pytest.approx((x * back).sum().item(), abs=1e-10)
    inner.backward()  # the gradient of <w, T x> is the adjoint itself: the transform is differentiable
    assert (x.grad - back).abs().max() < 1e-10


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_a_constant_image_doubles_each_level_and_has_no_details(levels):
    low, details = dwt(torch.full((1, 3, 16, 16), 0.7, dtype=torch.float64), "haar", levels)
    assert (low - 2**levels * 0.7).abs().max() < 1e-12
    assert all(band.abs().max() < 1e-12 for band in details)


def test_resolutions_may_differ_and_layouts_and_batches_do_not_matter():
    x = random(3, 2, 16, 32)
    for name in ("haar", "db3"):
        whole = Wavelet(name).split(x)
        assert whole[0].shape == (3, 2, 8, 16) and whole[1].shape == (3, 6, 8, 16)
        last = Wavelet(name).split(x.to(memory_format=torch.channels_last))
        alone = [torch.cat(pieces) for pieces in zip(*(Wavelet(name).split(image[None]) for image in x))]
        for band, other, single in zip(whole, last, alone):
            assert torch.allclose(band, other, atol=1e-6) and torch.allclose(band, single, atol=1e-6)
        assert (Wavelet(name).merge(*whole) - x).abs().max() < 1e-6


def test_haar_can_be_differentiated_twice_and_takes_any_batch():
    x, weight = random(3, 2, 4, 6, dtype=torch.float64).requires_grad_(), random(3, 6, 2, 3, dtype=torch.float64)
    haar = Wavelet("haar")
    assert torch.autograd.gradcheck(haar.split, x) and torch.autograd.gradgradcheck(haar.split, x)
    assert torch.autograd.gradcheck(lambda x: haar.merge(*haar.split(x)), x)
    assert torch.autograd.gradgradcheck(lambda w: haar.merge(w[:, :2] ** 2, w), weight.requires_grad_())
    low, details = haar.split(torch.zeros(0, 2, 4, 4))
    assert low.shape == (0, 2, 2, 2) and haar.merge(low, details).shape == (0, 2, 4, 4)


@pytest.mark.parametrize("name", ["haar", "db3"])
def test_the_batch_is_worked_on_in_blocks_without_a_trace(name, monkeypatch):
    x = random(5, 3, 16, 16)
    whole = dwt(x, name, 2)
    together = idwt(*whole, name)
    monkeypatch.setattr("multiscale.methods.wmgm.wavelet.BLOCK", 2 * 3 * 16 * 16)
    low, details = dwt(x, name, 2)
    assert torch.equal(low, whole[0]) and all(torch.equal(a, b) for a, b in zip(details, whole[1]))
    assert torch.equal(idwt(low, details, name), together)


def test_reduced_precision_around_it_does_not_reach_the_transform():
    x = random(1, 1, 16, 16)
    plain = dwt(x, "db2", 2)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dwt(x, "db2", 2)[0], plain)


@pytest.mark.parametrize(
    ("resolution", "name", "levels", "message"),
    [
        (12, "haar", 3, "a resolution of 12 cannot be halved 3 times; allowed: multiples of 8"),
        (16, "haar", 0, "0 levels of a wavelet transform; allowed: at least 1"),
        (16, "bior2.2", 1, "the wavelet 'bior2.2' is not orthogonal; allowed: haar, db1"),
        (16, "dmey", 1, "the wavelet 'dmey' is not orthogonal; allowed: haar, db1"),
        (16, "morl", 1, "the wavelet 'morl' is unknown; allowed: haar, db1"),
        (16, "harr", 1, "the wavelet 'harr' is unknown; allowed: haar, db1"),
    ],
)
def test_what_cannot_be_transformed_is_refused_in_one_line(resolution, name, levels, message):
    with pytest.raises(ValueError, match=message) as raised:
        decompose_images(torch.zeros(1, 1, resolution, resolution, dtype=torch.uint8), name, levels)
    assert "\n" not in str(raised.value)


def test_an_odd_resolution_is_refused():
    with pytest.raises(ValueError, match="a resolution of 7 cannot be halved 1 times; allowed: multiples of 2"):
        Wavelet("haar").split(random(1, 1, 8, 7))


# ---- Bands of images


def pixels(count: int = 64, channels: int = 3, resolution: int = 16) -> torch.Tensor:
    """Smooth random images with a few sharp edges."""
    x = torch.nn.functional.interpolate(random(count, channels, 4, 4), size=(resolution, resolution), mode="bilinear")
    x[:, :, resolution // 2 :] *= random(count, channels, 1, 1, seed=1)
    return (255 * x).round().to(torch.uint8)


def table(images: torch.Tensor, wavelet: str, levels: int) -> Table:
    bands = decompose_images(images, wavelet, levels)
    return Table({name: band.numpy() for name, band in bands.items()})


@pytest.mark.parametrize("wavelet", ["haar", "db2", "pixels"])
@pytest.mark.parametrize("levels", [1, 2])
def test_the_bands_of_an_image_give_it_back(wavelet, levels):
    images = pixels()
    bands = decompose_images(images, wavelet, levels)
    assert set(bands) == {"ll", *(detail(j) for j in range(1, levels + 1))}
    assert {name: tuple(band.shape[1:]) for name, band in bands.items()} == shapes(3, 16, wavelet, levels)
    assert all(band.dtype == torch.float32 for band in bands.values())
    lows = coarse(bands, transform_of(wavelet), levels)
    assert (lows[0] - images / 255).abs().max() < 1e-6
    assert torch.equal(lows[levels], bands["ll"])
    assert [lows[j].shape[-1] for j in range(levels + 1)] == [16 >> j for j in range(levels + 1)]


def test_wavelet_bands_have_the_published_shapes_and_ranges():
    bands = decompose_images(pixels(), "haar", 2)
    assert bands["ll"].shape == (64, 3, 4, 4)
    assert bands["details-2"].shape == (64, 9, 4, 4) and bands["details-1"].shape == (64, 9, 8, 8)
    assert 0 <= bands["ll"].min() and bands["ll"].max() <= 4
    assert bands["details-1"].abs().max() <= 1 and bands["details-2"].abs().max() <= 2


@pytest.mark.parametrize("wavelet", ["haar", "pixels"])
def test_statistics_seen_block_by_block_are_those_of_the_whole(wavelet, monkeypatch):
    images = pixels()
    monkeypatch.setattr("multiscale.methods.wmgm.bands.BLOCK", 2000)  # a few images at once
    found = statistics(table(images, wavelet, 2), wavelet, 2)
    bands = decompose_images(images, wavelet, 2)
    assert (found["levels"], found["channels"], found["resolution"]) == (2, 3, 16)
    for name, band in [*bands.items(), ("pixels", images / 255)]:
        summary, flat = found["bands"][name], band.double().transpose(0, 1).flatten(1)
        assert summary["mean"] == pytest.approx(flat.mean(1).tolist(), abs=1e-7)
        assert summary["std"] == pytest.approx(flat.std(1, correction=0).tolist(), rel=1e-6)
        assert torch.allclose(torch.tensor(summary["covariance"]).double(), torch.cov(flat, correction=0), atol=1e-8)
        assert summary["kurtosis"] == pytest.approx(stats.kurtosis(flat, axis=1, fisher=False).tolist(), rel=1e-5)
        assert summary["energy"] == pytest.approx(band.double().square().mean().item(), rel=1e-6)
    for level, x in coarse(bands, transform_of(wavelet), 2).items():
        assert found["coarse"][level]["mean"] == pytest.approx(x.double().mean((0, 2, 3)).tolist(), abs=1e-6)
        assert found["coarse"][level]["std"] == pytest.approx(
            x.double().std((0, 2, 3), correction=0).tolist(), rel=1e-4
        )


def test_condition_numbers_are_those_of_the_standardised_covariance():
    band = random(400, 2, 4, 4, dtype=torch.float64) @ random(4, 4, dtype=torch.float64, seed=1)
    gathered = BandStatistics("band", torch.tensor([0.5, 0.4]))
    for block in band.split(150):
        gathered.add(block)
    std = band.transpose(0, 1).flatten(1).std(1, correction=0).view(1, 2, 1, 1)
    z = ((band - band.mean((0, 2, 3), keepdim=True)) / std).flatten(1)
    rounding = 1 / (12 * 255**2)  # the variance of a uniform number of width 1/255
    floor = torch.diag((rounding / std**2).flatten().repeat_interleave(16))
    eigenvalues = torch.linalg.eigvalsh(torch.cov(z.T, correction=0) + floor)
    assert gathered.summary()["condition"] == pytest.approx((eigenvalues[-1] / eigenvalues[0]).item(), rel=1e-6)


def test_the_spectral_condition_number_of_a_stationary_field_is_that_of_its_spectrum():
    resolution, count = 16, 6000
    f = torch.fft.fftfreq(resolution, 1 / resolution, dtype=torch.float64)
    spectrum = 1 / (1 + f[:, None] ** 2 + f[None] ** 2)
    noise = torch.randn(
        count, 1, resolution, resolution, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    field = 10 + torch.fft.ifft2(torch.fft.fft2(noise) * spectrum.sqrt()).real
    gathered = BandStatistics("field", torch.tensor([10.0]))
    gathered.add(field)
    summary = gathered.summary()
    assert summary["condition_spectral"] == pytest.approx((spectrum.max() / spectrum.min()).item(), rel=0.1)
    assert summary["condition"] == pytest.approx(summary["condition_spectral"], rel=0.7)  # with sampling noise in 256-D


def test_the_spectral_condition_number_is_about_the_mean_image():
    """A mean image +- a point in each channel: every frequency has the variance of the point, 1 / 64, in each."""
    mean = random(1, 1, 8, 8, dtype=torch.float64)
    mean = torch.cat([mean, mean.flip(-1)], 1)  # channels of one variance, in which a frequency has other phases
    point = torch.zeros(8, 8, dtype=torch.float64)
    point[2, 3] = 1
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    gathered = BandStatistics("band", mean.mean((0, 2, 3)))
    for block in (mean + signs.view(4, 2, 1, 1) * point).split(3):
        gathered.add(block)
    assert gathered.summary()["condition_spectral"] == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("shape", [0.6, 1.0, 2.0, 5.0])
def test_the_shape_of_a_generalised_gaussian_is_found(shape):
    distribution = stats.gennorm(shape)
    assert gaussian_shape(distribution.var(), distribution.expect(abs)) == pytest.approx(shape, rel=1e-3)
    x = torch.from_numpy(distribution.rvs((2000, 1, 8, 8), random_state=0))
    gathered = BandStatistics("band", torch.zeros(1))
    gathered.add(3 * x)
    assert gathered.summary()["shape"][0] == pytest.approx(shape, rel=0.05)


def test_a_centre_beside_the_mean_changes_no_statistic():
    band = random(200, 2, 4, 4, dtype=torch.float64) ** 3
    summaries = []
    for beside in (0.0, 0.4):
        gathered = BandStatistics("band", band.mean((0, 2, 3)) + beside)
        gathered.add(band)
        summaries.append(gathered.summary())
    for key in ("mean", "std", "kurtosis", "energy", "condition", "condition_spectral"):
        assert summaries[1][key] == pytest.approx(summaries[0][key], rel=1e-6), key
    flat = band.transpose(0, 1).flatten(1)
    assert summaries[1]["kurtosis"] == pytest.approx(stats.kurtosis(flat, axis=1, fisher=False).tolist(), rel=1e-6)


def test_details_of_edges_are_sparser_than_the_coarse_band():
    images = (random(200, 1, 32, 32) > 2).to(torch.uint8)
    for k in range(200):
        images[k, :, k % 17 + 5 :, (7 * k) % 13 + 3 :] = 255
    found = statistics(table(images, "haar", 1), "haar", 1)["bands"]
    assert min(found["details-1"]["kurtosis"]) > 10 > found["ll"]["kurtosis"][0]
    assert max(found["details-1"]["shape"]) < 1 < found["ll"]["shape"][0]


def test_a_band_without_images_is_refused_in_one_line():
    with pytest.raises(ValueError, match="the band ll has no images; allowed: at least 1"):
        BandStatistics("ll", torch.zeros(1)).summary()
    with pytest.raises(ValueError, match="no images has no statistics; allowed: at least 1 image"):
        statistics(table(pixels(2)[:0], "haar", 1), "haar", 1)


# ---- Whitening


def test_scaling_gives_each_channel_mean_zero_and_variance_one_and_can_be_undone():
    found = statistics(table(pixels(), "haar", 1), "haar", 1)
    low = decompose_images(pixels(), "haar", 1)["ll"]
    scale = scaled(Normalisation(shift=found["bands"]["ll"]["mean"], scale=found["bands"]["ll"]["std"]))
    z = scale(low)
    assert z.mean((0, 2, 3)).abs().max() < 1e-4 and (z.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert (scale.undo(z) - low).abs().max() < 1e-5


def test_full_whitening_makes_the_covariance_the_identity_and_can_be_undone():
    band = torch.randn(5000, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    band = (band.flatten(1) @ (torch.eye(32) + random(32, 32, seed=1))).view_as(band) + 3
    whitening = fully_whitened((2, 4, 4), band.split(1500))
    z = whitening(band)
    covariance = torch.cov(z.flatten(1).T, correction=0)
    eigenvalues = torch.linalg.eigvalsh(covariance)
    raw = torch.linalg.eigvalsh(torch.cov(band.flatten(1).T, correction=0))
    shrunk = raw / (raw + 1e-4 * raw[-1])  # the floor leaves the least directions below one
    assert torch.allclose(eigenvalues, shrunk, atol=1e-3)
    assert eigenvalues[-1] / eigenvalues[0] < 10 < 1e4 < raw[-1] / raw[0]
    assert (whitening.undo(z) - band).abs().max() < 1e-3
    copy = unfitted("full", 2, 4)
    copy.load_state_dict(whitening.state_dict())
    assert torch.equal(copy(band), z)


def test_a_band_too_large_for_full_whitening_is_refused_in_one_line():
    with pytest.raises(ValueError, match="full whitening of a band of 12288 numbers; allowed: at most 4096"):
        fully_whitened((3, 64, 64), iter(()))
