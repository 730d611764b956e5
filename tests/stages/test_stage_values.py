"""The numbers that the stages write, computed by hand: latents, decompositions, reference and metrics."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import pywt
import torch
from conftest import sealed, write_images, write_pixels, write_set
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multiscale.core import models
from multiscale.core.storage import Table
from multiscale.core.streams import noise_of_seeds
from multiscale.methods.msf.settings import Residual
from multiscale.methods.ssd.settings import Pixels
from multiscale.methods.swd.parts import TeacherConfig
from multiscale.methods.swd.settings import Pyramid, Synthetic
from multiscale.methods.wmgm.settings import Wavelet
from stages import decompose
from stages.common.errors import BadInput
from stages.common.paths import (
    CLASSIFIER,
    HELD_OUT,
    IMAGES,
    LATENTS,
    MEASUREMENTS,
    METRICS,
    NEIGHBOURS,
    PAIRED,
    REFERENCE,
    SAMPLES,
    TRAIN,
    VAE,
    VALIDATION,
)
from stages.schema.data import Evaluate, Latents, Run

COUNT = 20


def normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def bilinear(before: int, after: int) -> np.ndarray:
    """Linear interpolation between pixel centres, with a triangle kernel scaled by the step when shrinking."""
    step = before / after
    centres, places = (np.arange(after) + 0.5) * step, np.arange(before) + 0.5
    weights = np.clip(1 - np.abs(places - centres[:, None]) / max(step, 1), 0, None)
    return weights / weights.sum(1, keepdims=True)


def resized(x: np.ndarray, resolution: int) -> np.ndarray:
    matrix = bilinear(x.shape[-1], resolution)
    return matrix @ x @ matrix.T


def averaged(x: np.ndarray, resolution: int) -> np.ndarray:
    """The mean of all input pixels that overlap an output pixel."""
    ends = np.arange(resolution + 1) * x.shape[-1] / resolution
    matrix = np.array([np.arange(x.shape[-1]) for _ in range(resolution)])
    low, high = np.floor(ends[:-1]), np.ceil(ends[1:])
    matrix = ((matrix >= low[:, None]) & (matrix < high[:, None])).astype(float)
    matrix /= matrix.sum(1, keepdims=True)
    return matrix @ x @ matrix.T


def near(found: Tensor, wanted: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=0, atol=tolerance)


@pytest.fixture
def given(tmp_path, monkeypatch) -> Callable:
    """An experiment with these sections, for stages in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda run=None, **sections: SimpleNamespace(run=run or Run(), **sections)


# ---- Latents


def test_latents_are_mean_and_deviation_of_the_posterior_of_images_averaged_in_pixels(given):
    from multiscale.networks import autoencoder
    from stages import latents

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"in_channels": 1, "out_channels": 1, "latent_channels": 2, "norm_num_groups": 4}
    vae = autoencoder.kl_class()(block_out_channels=(4, 8), layers_per_block=1, **blocks, **sizes).eval()
    vae.save_pretrained(VAE, safe_serialization=True)
    sealed(VAE)
    write_images(Path("data/images.parquet"), 30)
    encoded, run = Latents(resolutions=[24], precision="fp32"), Run(batch=8)
    latents.main(given(run, data=SimpleNamespace(channels=1), latents=encoded), "24")

    rows = Table.open(TRAIN)[slice(None)]
    small = averaged(rows["pixels"].numpy() / 127.5 - 1, 24)
    with torch.no_grad():
        posterior = vae.encode(torch.from_numpy(small).float()).latent_dist
    found = Table.open(LATENTS / "24")[slice(None)]
    assert torch.equal(found["label"], rows["label"])
    near(found["mean"], posterior.mean.numpy(), 2e-3)  # stored in half precision
    near(found["std"], posterior.std.numpy(), 2e-3)
    assert posterior.mean.std() > 0.1 and posterior.std.std() > 0.05
    about = json.loads((LATENTS / "24" / "statistics.json").read_text())
    assert about["images"] == len(small) == 23
    assert about["shift"] == pytest.approx(posterior.mean.numpy().mean((0, 2, 3)).tolist(), abs=1e-5)
    assert about["scale"] == pytest.approx(posterior.mean.numpy().std((0, 2, 3)).tolist(), abs=1e-5)
    assert about["classes"] == 10
    held_out, rows = Table.open(LATENTS / "24" / "validation")[slice(None)], Table.open(VALIDATION)[slice(None)]
    small = averaged(rows["pixels"].numpy() / 127.5 - 1, 24)
    with torch.no_grad():
        posterior = vae.encode(torch.from_numpy(small).float()).latent_dist
    assert torch.equal(held_out["label"], rows["label"]) and len(small) > 1
    near(held_out["mean"], posterior.mean.numpy(), 2e-3)
    beside = autoencoder.codec_of(LATENTS / "24")
    assert beside.channels == 1
    with torch.no_grad():
        assert torch.allclose(beside.decode(posterior.mean), vae.decode(posterior.mean).sample, atol=1e-5)


def test_latents_of_training_images_are_the_same_bytes_whatever_is_held_out(given):
    from stages import latents

    run, found = Run(batch=8), []
    VAE.mkdir(parents=True)
    sealed(VAE)
    write_images(Path("data/images.parquet"), 30)
    for name in ("validation", "unused"):
        VALIDATION.rename(VALIDATION.with_name(name))
        sections = {"data": SimpleNamespace(channels=1), "latents": Latents(resolutions=[24], precision="fp32")}
        latents.main(given(run, **sections), "24")
        found.append({path.name: path.read_bytes() for path in (LATENTS / "24").iterdir() if path.is_file()})
        assert (LATENTS / "24" / "validation").exists() == (name == "validation")
    for name in ("00000.safetensors", "statistics.json"):
        assert found[0][name] == found[1][name]


# ---- Decompositions


@pytest.fixture
def latents(tmp_path, monkeypatch) -> dict[int, np.ndarray]:
    """Latents at three resolutions, each with its own distribution, on grids of a quarter, in small blocks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decompose, "BLOCK", 7)
    made = {}
    for seed, resolution in enumerate((16, 24, 32)):
        x = (seed + 1) * normal(COUNT, 2, resolution // 4, resolution // 4, seed=seed) + np.array([0.5, -seed]).reshape(
            2, 1, 1
        )
        made[resolution] = x.astype(np.float16).astype(float)
        folder = LATENTS / str(resolution)
        folder.mkdir(parents=True)
        rows = {"mean": torch.from_numpy(made[resolution]).half(), "std": torch.full(x.shape, 9.0).half()}
        save_file(rows | {"label": torch.arange(COUNT) % 3}, folder / "latents.safetensors")
        about = {"shift": [0.5 + seed, -1.0], "scale": [2.0, 0.5 + seed], "images": COUNT, "classes": 3}
        (folder / "statistics.json").write_text(json.dumps(about))
        sealed(folder)
    return made


SHIFT, SCALE = np.array([2.5, -1.0]).reshape(2, 1, 1), np.array([2.0, 2.5]).reshape(2, 1, 1)  # of the full resolution


def test_residual_targets_are_those_of_algorithm_1_with_the_base_of_the_small_image(latents):
    decompose.decompose(Path("out"), Residual(kind="msf", resolutions=[16, 24, 32]))
    found = load_file("out/targets.safetensors")
    z = (latents[32] - SHIFT) / SCALE
    base = (latents[16] - SHIFT) / SCALE
    rest = z - resized(base, 8)
    middle = resized(rest, 6)
    last = rest - resized(middle, 8)
    targets = [base, middle, last]
    for k, target in enumerate(targets):
        near(found[f"y{k}"], target)
    near(sum(torch.from_numpy(resized(found[f"y{k}"].double().numpy(), 8)) for k in range(3)), z)
    assert found["label"].tolist() == [k % 3 for k in range(COUNT)]
    about = json.loads(Path("out/statistics.json").read_text())
    assert about["latent"] == {"shift": SHIFT.ravel().tolist(), "scale": SCALE.ravel().tolist()}
    assert about["classes"] == 3
    assert [scale["resolution"] for scale in about["scales"]] == [4, 6, 8]
    for scale, target in zip(about["scales"], targets):
        assert scale["mean"] == pytest.approx(target.mean((0, 2, 3)).tolist(), abs=1e-6)
        assert scale["std"] == pytest.approx(target.std((0, 2, 3)).tolist(), rel=1e-5)
        assert scale["energy"] == pytest.approx(np.square(target).mean(), rel=1e-5)


def test_one_scale_is_the_normalised_latent(latents):
    decompose.decompose(Path("out"), Residual(kind="msf", resolutions=[32]))
    near(load_file("out/targets.safetensors")["y0"], (latents[32] - SHIFT) / SCALE)


def test_held_out_images_are_decomposed_by_the_statistics_of_the_training_images(latents):
    section = Residual(kind="msf", resolutions=[16, 32])
    decompose.decompose(Path("without"), section)
    assert not Path("without", HELD_OUT).exists()
    for resolution, x in latents.items():
        folder = LATENTS / str(resolution)
        rows = {"mean": torch.from_numpy(2 * x[:9]).half(), "std": torch.ones(x[:9].shape).half()}
        (folder / "validation").mkdir()
        save_file(rows | {"label": torch.full((9,), 2)}, folder / "validation" / "00000.safetensors")
        sealed(folder)
    decompose.decompose(Path("with"), section)
    found, z, base = load_file(Path("with", HELD_OUT)), *((2 * latents[k][:9] - SHIFT) / SCALE for k in (32, 16))
    near(found["y0"], base)
    near(found["y1"], z - resized(base, 8), 1e-4)
    assert found["label"].tolist() == [2] * 9
    for name in ("targets.safetensors", "statistics.json"):
        assert Path("with", name).read_bytes() == Path("without", name).read_bytes()


def test_a_pyramid_holds_the_latents_of_each_resolution_in_the_full_resolutions_normalisation(latents):
    decompose.decompose(Path("out"), Pyramid(kind="swd", resolutions=[16, 24, 32]))
    found = load_file("out/targets.safetensors")
    for resolution, x in latents.items():
        near(found[f"z{resolution}"], (x - SHIFT) / SCALE)
    assert found["label"].tolist() == [k % 3 for k in range(COUNT)]
    about = json.loads(Path("out/statistics.json").read_text())
    assert about["grids"] == {"16": 4, "24": 6, "32": 8}
    assert about["latent"] == {"shift": SHIFT.ravel().tolist(), "scale": SCALE.ravel().tolist()}
    assert about["classes"] == 3


@pytest.fixture
def pixels(tmp_path, monkeypatch) -> np.ndarray:
    """A dataset of colour images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decompose, "BLOCK", 7)
    made = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 16, 16), np.uint8)
    write_pixels(TRAIN, made, [index % 3 for index in range(COUNT)], 3)
    return made


def test_pixels_are_kept_as_they_are(pixels):
    decompose.decompose(Path("out"), Pixels(kind="ssd"))
    found = load_file("out/targets.safetensors")
    assert np.array_equal(found["pixels"].numpy(), pixels)
    assert json.loads(Path("out/statistics.json").read_text()) == {"classes": 3}
    assert found["label"].tolist() == [k % 3 for k in range(COUNT)]


@pytest.mark.parametrize("name", ["haar", "db2"])
def test_bands_are_those_of_pywavelets_on_images_from_0_to_1(name, pixels):
    decompose.decompose(Path("out"), Wavelet(kind="wmgm", filter=name, levels=2))
    found = load_file("out/targets.safetensors")
    low, about = pixels / 255, json.loads(Path("out/statistics.json").read_text())
    for level in (1, 2):
        low, bands = pywt.dwt2(low, name, "periodization")
        details = np.concatenate(bands, 1)
        near(found[f"details-{level}"], details)
        assert about["bands"][f"details-{level}"]["std"] == pytest.approx(details.std((0, 2, 3)).tolist(), rel=1e-4)
        assert about["coarse"][level]["mean"] == pytest.approx(low.mean((0, 2, 3)).tolist(), rel=1e-5)
        assert about["coarse"][level]["std"] == pytest.approx(low.std((0, 2, 3)).tolist(), rel=1e-4)
    near(found["ll"], low)
    assert found["label"].tolist() == [k % 3 for k in range(COUNT)]


# ---- The teacher's images


def test_images_of_a_teacher_are_decoded_to_8_bits_averaged_in_pixels_and_normalised(tmp_path, monkeypatch):
    """The velocity of a new network is zero, so the teacher returns the noise of its seeds."""
    from stages import synthetic

    monkeypatch.chdir(tmp_path)
    about = {"shift": [0.1, -0.3], "scale": [0.5, 0.25]}
    size = {"depth": 1, "width": 16, "heads": 2, "patch": 2}
    config = {"kind": "swd", "role": "teacher", "channels": 2, "resolution": 8, "classes": 3, "network": size}
    config = TeacherConfig.model_validate(config | {"latent": {"shift": [0.2, 0.0], "scale": [0.3, 0.4]}})
    for folder in ("pyramid", "teacher"):  # without an autoencoder latents are pixels
        Path(folder).mkdir()
    Path("pyramid/statistics.json").write_text(json.dumps({"classes": 3, "latent": about, "grids": {"4": 4, "8": 8}}))
    models.save(Path("teacher"), config.network.build(2, 2, 3).state_dict(), config)
    solver = {"steps": 2, "name": "euler", "guidance_scale": 2.0}
    asked = {"kind": "swd", "teacher": "teacher", "dataset": "pyramid", "images": 6, "batch": 4, "solver": solver}
    section = Synthetic.model_validate(asked)
    given = section, Path("teacher"), Path("pyramid")
    made, worker = synthetic.images(*given), synthetic.Generator(*given, "fp32")
    batches = [made.targets(worker.make(made.seeds[k : k + 4], made.labels()[k : k + 4])) for k in (0, 4)]
    found = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]} | {"label": made.labels()}

    noise = noise_of_seeds([10**9 + k for k in range(6)], "teacher", (2, 8, 8)).double().numpy()
    image = noise * np.array([0.3, 0.4]).reshape(2, 1, 1) + np.array([0.2, 0.0]).reshape(2, 1, 1)
    signed = np.round((image.clip(-1, 1) + 1) / 2 * 255) / 127.5 - 1
    shift, scale = (np.array(about[key]).reshape(2, 1, 1) for key in ("shift", "scale"))
    for resolution in (4, 8):
        wanted = (
            averaged(signed, resolution).astype(np.float16) - shift
        ) / scale  # latents are stored in half precision
        off = np.abs(found[f"z{resolution}"].double().numpy() - wanted)
        assert np.quantile(off, 0.99) < 1e-4 and off.max() < 1.01 / 127.5 / 0.25  # a half may be rounded either way
    assert found["label"].tolist() == [0, 1, 2, 0, 1, 2]


# ---- Reference and metrics

N, M, K = 24, 40, 20  # images that a method made, training and held-out images


class Halves:
    """An extractor of three features: the means of both halves, and the corner that encodes the class."""

    def __init__(self, name: str, weights: str | None):
        self.factor = 2 if name == "efficientnet-lite2" else 1

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.float() / 255
        features = torch.stack([x[:, 0, :16].mean((1, 2)), x[:, 0, 16:].mean((1, 2)), x[:, 0, 0, 0]], 1)
        return self.factor * features, 5 * features[:, :2]


class Corner(nn.Module):
    """A classifier that reads the class in the corner."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(((images[:, 0, 0, 0] + 1) * 127.5).round().long() % 10, 10).float()


def drawn(count: int, seed: int, spread: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    images = random.integers(0, spread, (count, 1, 1, 1)) + random.integers(0, 40, (count, 1, 32, 32))
    images[:, :, :16] += random.integers(0, 60, (count, 1, 1, 1))
    images[:, 0, 0, 0] = np.arange(count) % 10
    return images.astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, "PNG")
    return encoded.getvalue()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|^2 + Tr(A + B - 2 (A^1/2 B A^1/2)^1/2), by eigenvalues of symmetric matrices alone."""
    A, B = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(A)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    middle = np.sqrt(np.linalg.eigvalsh(root @ B @ root).clip(0)).sum()
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(A) + np.trace(B) - 2 * middle


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared MMD of all images under the kernel (x . y / d + 1)^3."""

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    within = [(kernel(x, x).sum() - np.trace(kernel(x, x))) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return sum(within) - 2 * kernel(a, b).mean()


def covered(a: np.ndarray, b: np.ndarray, neighbours: int = 3) -> float:
    """The share of a that is within the distance of some b to its third nearest neighbour."""
    own = np.linalg.norm(b[:, None] - b, axis=2)
    radius = np.sort(own, 1)[:, neighbours]  # the nearest is itself
    return (np.linalg.norm(a[:, None] - b, axis=2) <= radius).any(1).mean()


def test_metrics_of_a_method_are_those_of_their_formulas(given, monkeypatch):
    from stages import evaluate, reference

    training, held_out, made = drawn(M, 0, 60), drawn(K, 2, 60), drawn(N, 1, 120)
    made[:10] = training[10:20]
    pixels, splits = np.concatenate([training, held_out]), ["train"] * len(training) + ["test"] * len(held_out)
    write_set(IMAGES, splits, pixels, [index % 10 for index in range(len(pixels))])
    for module in (reference, evaluate):
        monkeypatch.setattr(module, "Extractor", Halves)
    monkeypatch.setattr(evaluate, "load", lambda folder: Corner())
    about = {"extractor": "efficientnet-lite0", "second_extractor": "efficientnet-lite2", "reference_images": N}
    params = given(Run(batch=7), evaluate=Evaluate(**about, is_splits=1))
    labels = np.arange(N) % 10
    labels[:6] = 9  # a quarter of them, but for the one that is right
    folder = SAMPLES / "dit"
    folder.mkdir(parents=True)
    images = {"pixels": torch.from_numpy(made), "label": torch.from_numpy(labels)}
    save_file(images, folder / "images.safetensors", {"first_seed": "0", "labels": "uniform"})
    save_file({key: value[::3].contiguous() for key, value in images.items()}, folder / "images-5.safetensors")
    (folder / "steps.json").write_text(json.dumps({"5": {"network_calls": 9.0}}))
    CLASSIFIER.mkdir(parents=True)
    sealed(folder), sealed(CLASSIFIER)
    reference.main(params)
    evaluate.main(params, "dit")

    def features(x: np.ndarray) -> np.ndarray:
        return Halves("efficientnet-lite0", None).extract(torch.from_numpy(x))[0].double().numpy()

    chosen = [k * M // N for k in range(N)]  # evenly over the set
    a, b, c = features(made), features(training[chosen]), features(held_out)
    kept = load_file(REFERENCE / "features.safetensors")
    near(kept["real"], b, 1e-6)
    near(kept["test"], c, 1e-6)
    assert json.loads((REFERENCE / "reference.json").read_text())["n"] == N
    found = json.loads((MEASUREMENTS / "dit.json").read_text())
    p = np.exp(5 * a[:, :2])
    p /= p.sum(1, keepdims=True)
    wanted = {
        "kid": kernel_distance(a, b),
        "kid_test": kernel_distance(a, c),
        "kid_second": kernel_distance(2 * a, 2 * b),
        "fd": frechet(a, b),
        "precision": covered(a, b),
        "recall": covered(b, a),
        "inception_score": np.exp((p * np.log(p / p.mean(0))).sum(1).mean()),
        "label_accuracy": (labels == np.arange(N) % 10).mean(),
    }
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-3), name
    assert wanted["precision"] != wanted["recall"] and found["protocol"]["n"] == found["protocol"]["n_reference"] == N
    assert found["memorised"] >= 10 / N and found["copies"]
    headline = ("kid", "kid_se", "fd", "label_accuracy", "recall")
    assert json.loads((METRICS / "dit.json").read_text()) == {key: found[key] for key in headline}
    assert (NEIGHBOURS / "dit.png").exists()
    (few,) = found["steps"]
    right = labels == np.arange(N) % 10
    wanted = {"kid": kernel_distance(a[::3], b), "label_accuracy": right[::3].mean(), "n": len(a[::3])}
    assert few == pytest.approx({"steps": 5, "network_calls": 9.0, "kid_se": few["kid_se"], **wanted}, rel=1e-3)
    images = pl.read_parquet(PAIRED / "dit.parquet")
    assert images["seed"].to_list() == list(range(N)) and images["label"].to_list() == labels.tolist()
    assert images["correct"].to_list() == right.tolist() and images["kid"].std() > 0


@pytest.mark.parametrize(
    "count, same, told",
    [
        (11, False, "images: 11 are too few; allowed: at least 12"),
        (40, True, "all 40 are the same; allowed: images that differ"),
    ],
)
def test_images_that_have_no_covariance_are_refused_in_a_line(tmp_path, count, same, told):
    from stages import evaluate

    pixels = np.zeros((count, 1, 4, 4), np.uint8)
    pixels[0, 0, 0, 0] = not same
    table = Table({"pixels": pixels})
    section = Evaluate(extractor="efficientnet-lite0", is_splits=12)
    with pytest.raises(BadInput, match=f"^images.safetensors: .*{told}"):
        evaluate.check_images(Path("images.safetensors"), table, section)
    pixels[-1, 0, 0, 0] = 1
    evaluate.check_images(Path("images.safetensors"), Table({"pixels": np.concatenate([pixels, pixels])}), section)


def test_distances_are_taken_of_the_pooled_features_and_the_inception_score_of_the_class_scores():
    from stages.common.extraction import Extractor

    extractor = Extractor("efficientnet-lite0", None)
    images = torch.from_numpy(drawn(2, 0, 100))
    distance, scores = extractor.extract(images)
    net = extractor.net.net
    x = nn.functional.interpolate(images.expand(-1, 3, -1, -1).float(), size=128, mode="bicubic", antialias=True)
    with torch.no_grad():
        pooled = net.extract_features((x.clamp(0, 255) - 127) / 128).mean((2, 3))
        torch.testing.assert_close(distance, pooled, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(scores, net._fc(pooled), rtol=1e-3, atol=1e-3)
