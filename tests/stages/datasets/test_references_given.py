"""References that are not the training images: ADM's batches and folders, and what their numbers are."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from conftest import sealed, write_images
from corpus import zipped
from PIL import Image
from safetensors.torch import save_file

from multiscale.evaluation import features, metrics
from stages import download, evaluate, reference
from stages.common import extraction
from stages.common.errors import BadInput
from stages.common.paths import CLASSIFIER, MEASUREMENTS, SAMPLES
from stages.datasets import item, references
from stages.reporting import leaderboard
from stages.reporting.rows import grouped
from stages.schema.data import Evaluate, Run

EDGE, POOLED, SPATIAL = 8, 2048, 2023


def params(channels: int = 3, **section: object) -> SimpleNamespace:
    about = {"extractor": "inception-v3-compat", "second_extractor": None, "floors": [], "is_splits": 1, **section}
    data = SimpleNamespace(channels=channels, resolution=EDGE)
    return SimpleNamespace(run=Run(), data=data, evaluate=Evaluate.model_validate(about))


def images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *(shape or (EDGE, EDGE)), 3), np.uint8)


def gaussian(size: int) -> dict[str, np.ndarray]:
    return {"mu": np.zeros(size), "sigma": np.eye(size)}


def test_a_batch_of_adm_gives_its_images_and_statistics(tmp_path):
    made, spatial = images(6), gaussian(SPATIAL)
    path = tmp_path / "batch.npz"
    np.savez(path, arr_0=made, **gaussian(POOLED), mu_s=spatial["mu"], sigma_s=spatial["sigma"])
    given = references.of(params(reference=str(path)))
    assert given.count == 6 and given.name.startswith("batch.npz ")
    assert torch.equal(given.rows(torch.tensor([4, 1])), torch.from_numpy(made[[4, 1]]).permute(0, 3, 1, 2))
    assert {name: found["mu"].shape for name, found in given.statistics.items()} == {
        "real": (POOLED,),
        "spatial": (SPATIAL,),
    }
    assert references.of(params()) is None
    assert references.of(params(1, reference=str(path))).rows(torch.tensor([0])).shape == (1, 1, EDGE, EDGE)


def test_a_folder_is_read_in_the_order_of_its_names_by_lanczos_and_centre_crop(tmp_path):
    """COCO's val2014 is flat, MJHQ-30K has a folder for each of its ten categories."""
    wide, tall = images(2, 16, 32)[0], images(1, 40, 16, seed=1)[0]
    (tmp_path / "people").mkdir()
    Image.fromarray(wide).save(tmp_path / "people" / "b.png")
    Image.fromarray(tall).save(tmp_path / "a.png")
    (tmp_path / "captions.txt").write_text("none")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a-checkpoint.png").write_bytes((tmp_path / "a.png").read_bytes())
    given = references.of(params(reference=str(tmp_path), resolution=4, prc_neighborhood=1))
    assert given.count == 2 and given.statistics == {}
    small = [
        np.asarray(Image.fromarray(x).resize(size, Image.LANCZOS)) for x, size in ((tall, (4, 10)), (wide, (8, 4)))
    ]
    wanted = np.stack([small[0][3:7], small[1][:, 2:6]])
    assert np.array_equal(given.rows(torch.arange(2)).permute(0, 2, 3, 1), wanted)
    square = torch.from_numpy(images(1)).permute(0, 3, 1, 2)
    halved = np.asarray(Image.fromarray(images(1)[0]).resize((4, 4), Image.LANCZOS))
    assert np.array_equal(references.resized(square, 4)[0].permute(1, 2, 0), halved)
    assert references.resized(square, None) is square


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_a_folder_is_decoded_as_one_of_the_dataset(channels, tmp_path):
    """Turned as its EXIF says, and of 16 bits the upper 8: Pillow would clip them to white."""
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(images(1)[0]).save(tmp_path / "a.png", exif=turned)
    Image.fromarray((np.arange(EDGE**2, dtype=np.uint16) * 1000).reshape(EDGE, EDGE)).save(tmp_path / "b.png")
    given = references.of(params(channels, reference=str(tmp_path), prc_neighborhood=1))
    wanted = [download.fit_image((tmp_path / name).read_bytes(), EDGE, channels) for name in ("a.png", "b.png")]
    assert np.array_equal(given.rows(torch.arange(2)), np.stack(wanted))
    assert wanted[1].max() == 63 * 1000 >> 8


def claimed(shape: tuple[int, ...], version: int = 1, kind: str = "|u1") -> bytes:
    """An array that claims a shape, and holds nothing."""
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": kind, "fortran_order": False, "shape": shape})
    return content.getvalue().replace(b"NUMPY\1", b"NUMPY%c" % version)


def packed(**members: bytes) -> bytes:
    return zipped({f"{name}.npy": content for name, content in members.items()})


CASES = {
    "an array of terabytes": (packed(arr_0=claimed((10**9, EDGE, EDGE, 3))), {}, "a whole .npz"),
    "an array cut short": (packed(arr_0=claimed((6, EDGE, EDGE, 3)) + b"x"), {}, "a whole .npz"),
    "another version": (packed(arr_0=claimed((6, EDGE, EDGE, 3), 3)), {}, "a whole .npz"),
    "statistics of terabytes": (packed(mu=claimed((1 << 40,), kind="<f8")), {}, "a whole .npz"),
    "an array alone": (claimed((10**9, EDGE, EDGE, 3)), {}, "a whole .npz"),
    "no array": (zipped({"arr_0": b""}), {}, "a whole .npz"),
    "nothing": (None, {}, "an existing .npz"),
    "damaged": (b"PK\3\4 cut", {}, "a whole .npz"),
    "text": (b"anything", {}, "a whole .npz"),
    "others": ({"labels": np.zeros(3)}, {}, r"arr_0 \(images\), or mu and sigma, in it \(it has labels\)"),
    "another network": (gaussian(1024), {}, "mu and sigma of Inception's 2048 features"),
    "half": ({"mu": np.zeros(POOLED)}, {}, "mu and sigma of Inception's 2048 features"),
    "another edge": ({"arr_0": images(6, 4, 4)}, {}, r"arr_0 of uint8 \(N, 8, 8, 3\), as large as the samples"),
    "floats": ({"arr_0": images(6) / 255}, {}, "arr_0 of uint8"),
    "few": ({"arr_0": images(3)}, {}, "more than 3 images"),
    "a number": ({"arr_0": np.zeros((), np.uint8)}, {}, "arr_0 of uint8"),
    "another extractor": (gaussian(POOLED), {"extractor": "efficientnet-lite0"}, "inception-v3-compat, since"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_reference_of_another_protocol_is_one_line(case, tmp_path):
    held, section, allowed = CASES[case]
    path = tmp_path / "batch.npz"
    if isinstance(held, bytes):
        path.write_bytes(held)
    elif held:
        np.savez(path, **held)
    with pytest.raises(BadInput, match=rf"^params.yaml: evaluate\.\w+: .*allowed: {allowed}") as error:
        references.of(params(reference=str(path), **section))
    assert "\n" not in str(error.value)


def test_an_empty_folder_and_a_damaged_picture_are_one_line_each(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="allowed: a folder of images, or an .npz"):
        references.of(params(reference=str(tmp_path)))
    for name in "abcd":
        with pytest.raises(BadInput, match="images"):
            references.of(params(reference=str(tmp_path)))
        (tmp_path / f"{name}.png").write_bytes(b"nothing")
    given = references.of(params(reference=str(tmp_path)))
    with pytest.raises(BadInput, match=r"a.png: cannot be read \(ValueError: no image of a known format\)"):
        given.rows(torch.tensor([0]))
    monkeypatch.setattr(item, "LARGEST", 99)
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    with pytest.raises(BadInput, match=r"a.png: cannot be read \(ValueError: 10 x 10 pixels, more than 99 in all\)"):
        given.rows(torch.tensor([0]))
    (tmp_path / "b.png").unlink()
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(BadInput, match=r"b.png: cannot be read \(ValueError: a link that leads nowhere, or no file\)"):
        given.rows(torch.tensor([1]))


def test_a_batch_that_was_damaged_since_it_was_checked_is_one_line(tmp_path):
    path = tmp_path / "batch.npz"
    np.savez(path, arr_0=images(6))
    given = references.of(params(reference=str(path)))
    path.write_bytes(path.read_bytes().replace(images(6).tobytes()[:99], bytes(99)))
    with pytest.raises(BadInput, match="evaluate.reference: .*Bad CRC-32 .*allowed: a whole .npz"):
        given.rows(torch.tensor([0]))


def test_a_folder_without_dinov2_is_one_line_before_and_after_the_settings_are_read(tmp_path):
    with pytest.raises(ValueError, match="null, or a folder with a DINOv2 as transformers saves it; nothing is"):
        params(dinov2="none")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"^params.yaml: evaluate.dinov2: .*allowed: a folder with a DINOv2") as error:
        extraction.extractor("dinov2", str(tmp_path))
    assert "\n" not in str(error.value)


def test_fd_is_against_the_statistics_and_precision_and_recall_take_both_sets_whole():
    """FD of Gaussians on a line is (m - m')^2 + (s - s')^2. Of real points the last is far from all."""
    line = torch.linspace(-1, 1, 201)
    samples, real = (torch.stack([x, 0 * x], 1) for x in (line, torch.tensor([0.0, 0.1, 0.2, 0.3, 9.0])))
    known = {"mu": np.array([3.0, 0.0]), "sigma": np.diag([4.0, 0.0])}
    options = {"is_splits": 1, "prc_neighborhood": 1}
    found = metrics.distances(samples, real, torch.zeros(201, 2), **options, known=known, equal=False)
    assert found["fd"] == pytest.approx(9 + (2 - line.double().std().item()) ** 2, rel=1e-4)
    # Balls of 0.1 around the first four, of 8.7 around the last: from -0.1 on.
    assert found["precision"] == pytest.approx((line >= -0.1).float().mean().item(), abs=0.006)
    assert found["recall"] == pytest.approx(4 / 5)
    fewer = metrics.distances(samples, real, torch.zeros(201, 2), **options, known=known)
    assert fewer["precision"] != found["precision"] and fewer["fd"] == found["fd"]


class Layers:
    """An extractor with the layers of Inception: features, class scores, features of places."""

    def __init__(self, name: str, weights: str | None):
        self.scale = 10 if name == "dinov2" else 1

    def extract(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x.expand(-1, 3, -1, -1)
        pooled = self.scale * x.float().mean((2, 3))
        return pooled, pooled / 255, x[:, 0, :2, :2].float().flatten(1)


def channels_first(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()


@pytest.fixture
def sampled(tmp_path, monkeypatch):
    """Of images (N, C, H, W): makes them those of the method dit, in a folder with all that `evaluate` needs."""
    monkeypatch.chdir(tmp_path)
    write_images(Path("data/images.parquet"), 30)
    sealed("data/images.parquet")
    for module in (reference, evaluate):
        monkeypatch.setattr(module, "Extractor", Layers)
    monkeypatch.setattr(evaluate, "load", lambda folder: None)
    monkeypatch.setattr(evaluate, "copies", lambda name, pixels: (None, False))

    def place(made: torch.Tensor) -> None:
        folder = SAMPLES / "dit"
        folder.mkdir(parents=True)
        label = torch.zeros(len(made)).long()
        save_file({"pixels": made, "label": label}, folder / "images.safetensors", {"first_seed": "0"})
        CLASSIFIER.mkdir(parents=True)
        sealed(folder), sealed(CLASSIFIER)

    return place


def test_a_method_is_measured_against_the_batch_with_its_protocol_in_the_row(tmp_path, sampled):
    known, made = images(12, seed=1), channels_first(images(20, seed=2))
    np.savez("batch.npz", arr_0=known)
    (tmp_path / "dino").mkdir()
    (tmp_path / "dino" / "config.json").write_text("{}")
    sampled(made)
    experiment = params(reference="batch.npz", reference_images=10, dinov2="dino")
    reference.main(experiment)
    evaluate.main(experiment, "dit")
    found = json.loads((MEASUREMENTS / "dit.json").read_text())
    a, b = (Layers("", None).extract(x) for x in (made, torch.from_numpy(known[:10]).permute(0, 3, 1, 2)))
    whole = metrics.distances(a[0], b[0], a[1], is_splits=1, prc_neighborhood=3, equal=False)
    whole["kid"], whole["kid_se"] = metrics.kid(a[0], b[0])
    assert {key: found[key] for key in whole} == pytest.approx(whole, rel=1e-4)
    assert found["sfid"] == pytest.approx(metrics.frechet(a[2], b[2]), rel=1e-4)
    assert found["fd_dinov2"] == pytest.approx(100 * metrics.frechet(a[0], b[0]), rel=1e-3)
    protocol = found["protocol"]
    assert protocol["against"].startswith("batch.npz ") and protocol["n_reference"] == 10
    assert protocol["sfid"] == "mixed_6/conv, 7 channels" and protocol["dinov2"].startswith("dino ")
    row = {"method": "dit", "kind": "method", "trainings": 1, **found}
    group = grouped([row])[0]
    heads, (cells,), _ = leaderboard.table(group, None)
    shown = dict(zip(heads, cells))
    assert shown["sFD-Inception"] == leaderboard.cell("sfid", row) and "FD-DINOv2" in shown
    told = " ".join(leaderboard.notes(group))
    assert f"10 images of {protocol['against']}" in told and "(3 neighbours) use both sets whole" in told


def test_images_are_at_no_distance_from_the_statistics_of_their_places_as_adm_lays_them_out(sampled, monkeypatch):
    """ADM reshapes NHWC maps, so that mu_s and sigma_s go by row, column and channel."""
    known, channels = images(40, seed=1), 7
    mixing = np.random.default_rng(2).normal(size=(3, channels + 2)).astype(np.float32)
    theirs = (known[:, :2, :2] / np.float32(255)) @ mixing  # maps (N, 2, 2, C), of which ADM takes the first 7
    flat = theirs[..., :channels].reshape(len(known), -1)
    pooled = known.mean((1, 2))
    statistics = {"mu": pooled.mean(0), "sigma": np.cov(pooled, rowvar=False)}
    statistics |= {"mu_s": flat.mean(0), "sigma_s": np.cov(flat, rowvar=False)}
    np.savez("batch.npz", arr_0=known, **statistics)

    class Maps(Layers):
        def extract(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            maps = torch.einsum("nchw,cd->ndhw", x[:, :, :2, :2] / 255, torch.from_numpy(mixing))
            return *super().extract(x)[:2], features.by_place(maps)

    for module in (reference, evaluate):
        monkeypatch.setattr(module, "Extractor", Maps)
    sizes = {"real": ("mu", "sigma", 3), "spatial": ("mu_s", "sigma_s", flat.shape[1])}
    monkeypatch.setattr(references, "STATISTICS", sizes)
    sampled(channels_first(known))
    experiment = params(reference="batch.npz")
    reference.main(experiment)
    evaluate.main(experiment, "dit")
    found = json.loads((MEASUREMENTS / "dit.json").read_text())
    scale = np.trace(statistics["sigma_s"])
    assert abs(found["sfid"]) < 1e-3 * scale and abs(found["fd"]) < 1e-3 * np.trace(statistics["sigma"])


def test_statistics_alone_leave_kid_against_the_training_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(Path("data/images.parquet"), 30)
    sealed("data/images.parquet")
    np.savez("statistics.npz", **gaussian(3))
    monkeypatch.setattr(reference, "Extractor", Layers)
    monkeypatch.setattr(references, "STATISTICS", {"real": ("mu", "sigma", 3)})
    reference.main(params(reference="statistics.npz"))
    about = json.loads(Path("data/reference/reference.json").read_text())
    trained = pl.read_parquet("data/images.parquet").filter(pl.col("split") == "train")
    assert (about["n"], about["split"], about["statistics"]) == (len(trained), "train", True)
    assert Path("data/reference/real-statistics.safetensors").exists()
