"""The stages that measure, on real digits: copies are detected, floors are correct, a test split is optional."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from conftest import Project, refused, sealed
from PIL import Image
from safetensors.torch import load_file, save_file

from multiscale.core.pixels import to_pixels, to_signed, to_unit
from multiscale.evaluation import features, metrics
from multiscale.evaluation.classifier import ClassifierConfig
from multiscale.networks import autoencoder
from stages.common.images import evenly, pixel_table
from stages.common.paths import IMAGES, PIXELS

SHARES = {"data.test_share": 0.04, "data.validation_share": 0.8}  # 800 digits to train on, 200 of test, 4,000 others
FEW = {"evaluate.reference_images": 20, "evaluate.second_extractor": None, "sample.images": 60, "evaluate.floors": []}


@pytest.fixture(scope="module")
def sources_with_digits(sources, tmp_path_factory) -> Path:
    """A project with digits and their reference, without a classifier."""
    folder = tmp_path_factory.mktemp("digits") / "project"
    shutil.copytree(sources, folder)
    made, before = Project(folder), Path.cwd()
    os.chdir(folder)
    try:
        made.change(SHARES | FEW)
        Path("models/classifier").mkdir(parents=True)
        config = ClassifierConfig(channels=1, classes=1, width=8, stages=1)
        Path("models/classifier/config.json").write_text(config.model_dump_json())
        sealed("models/classifier")
        for stage in ("download", "reference"):
            done = made.stage(stage)
            assert done.returncode == 0, done.stderr
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def digits(sources_with_digits, working_copy) -> Project:
    return Project(working_copy(sources_with_digits))


def pixels_of(split: str, count: int) -> torch.Tensor:
    table = pixel_table(split)
    return table[evenly(len(table), count)]["pixels"]


def features_of(images: torch.Tensor) -> torch.Tensor:
    net = features.create("efficientnet-lite0", None, torch.device("cpu"))
    return torch.cat([features.extract(net, batch)[0] for batch in images.split(20)])


@pytest.fixture
def measure(digits) -> Callable[[torch.Tensor], dict]:
    """The metrics of the stage for images presented as those of a method."""

    def measure(pixels: torch.Tensor, labels: str = "uniform") -> dict:
        Path("samples/dit").mkdir(parents=True)
        tensors = {"pixels": pixels.contiguous(), "label": torch.arange(len(pixels)) % 10}
        save_file(tensors, "samples/dit/images.safetensors", {"first_seed": "7", "labels": labels})
        sealed("samples/dit")
        done = digits.stage("evaluate", "dit")
        assert done.returncode == 0, done.stderr
        return json.loads(Path("reports/measurements/dit.json").read_text())

    return measure


def test_held_out_digits_are_no_copies(measure):
    images = pixels_of("validation", 60)
    found = measure(images)
    assert found["memorised"] <= 0.05 and not found["copies"]
    assert found["protocol"]["seeds"] == "7..66" and found["label_accuracy"] is None
    seen, kept = features_of(images), load_file("data/reference/features.safetensors")
    for name, key in (("kid", "real"), ("kid_test", "test")):
        wanted = metrics.kid(seen, kept[key], torch.arange(60) % 10)
        assert (found[name], found[f"{name}_se"]) == pytest.approx(wanted, rel=1e-3)


def test_training_digits_are_copies(measure):
    images = pixels_of("train", 60)
    found = measure(images)
    assert (found["memorised"], found["copies"]) == (1, True)
    # Twelve pairs side by side, a digit above and itself below, all at distance 0 from it.
    sheet = np.asarray(Image.open("reports/neighbours/dit.png").convert("L"))
    assert sheet.shape[1] == 12 * 68 + 4
    above, below = sheet[52 : 52 + 64], sheet[52 + 68 : 52 + 68 + 64]
    assert np.array_equal(above, below)
    assert len({above[:, 4 + 68 * k :][:, :64].tobytes() for k in range(12)}) == 12


def test_a_method_that_copies_half_the_time_is_flagged_with_half(measure):
    images = torch.cat([pixels_of("train", 30), pixels_of("validation", 30)])
    found = measure(images, labels="data")
    assert 0.5 <= found["memorised"] <= 0.55 and found["copies"]
    real = load_file("data/reference/features.safetensors")["real"]
    wanted = metrics.kid(features_of(images), real)  # classes that were drawn are as random as the images
    assert (found["kid"], found["kid_se"]) == pytest.approx(wanted, rel=1e-3)


def test_the_floor_real_is_the_test_split_and_its_grid_has_a_class_a_column(digits):
    digits.change({"evaluate.floors": ["real"], "evaluate.is_splits": 2})
    done = digits.stage("floor", "real")
    assert done.returncode == 0, done.stderr
    table = pixel_table("test")
    wanted, made = table[evenly(len(table), 60)], load_file("samples/real/images.safetensors")
    assert torch.equal(made["pixels"], wanted["pixels"]) and torch.equal(made["label"], wanted["label"])
    found = json.loads(Path("reports/measurements/real.json").read_text())
    assert found["kid_test"] is None and found["memorised"] <= 0.05 and not found["copies"]
    assert (found["protocol"]["n"], found["protocol"]["seeds"]) == (60, None)
    sheet = np.asarray(Image.open("samples/real/grid.png").convert("L"))
    for c in range(10):
        first, second, *_ = made["pixels"][made["label"] == c]
        for row, image in enumerate((first, second)):
            cell = sheet[52 + 68 * row :, 4 + 68 * c :][:64:2, :64:2]
            assert np.array_equal(cell, image[0].numpy())


def test_the_floor_autoencoder_is_the_same_images_through_the_autoencoder(digits):
    digits.change({"evaluate.floors": ["real", "autoencoder"], "sample.precision": "fp32", "sample.images": 20})
    torch.manual_seed(0)
    vae = autoencoder.build(1, 4, (8, 8), 1, 8).eval()
    vae.save_pretrained("models/vae", safe_serialization=True)
    sealed("models/vae")
    done = digits.stage("floor", "autoencoder")
    assert done.returncode == 0, done.stderr
    pixels = pixels_of("test", 20)
    with torch.inference_mode():
        wanted = to_pixels(to_unit(vae.decode(vae.encode(to_signed(pixels)).latent_dist.mode()).sample))
    made = load_file("samples/autoencoder/images.safetensors")["pixels"]
    assert (made.int() - wanted.int()).abs().max() <= 1 and made.float().std() > 1
    assert (made.int() - pixels.int()).abs().float().mean() > 10


def test_a_floor_that_was_not_asked_for_is_one_line(digits):
    allowed = "allowed: one of evaluate.floors (none)"
    refused(digits.stage("floor", "real"), f"floor: FLOOR: 'real' is not allowed; {allowed}")


def test_without_a_test_split_floors_are_one_line_and_its_columns_are_empty(digits, measure):
    frame = pl.read_parquet(IMAGES)
    frame.filter(pl.col("split") != "test").write_parquet(IMAGES)
    sealed(IMAGES)
    shutil.rmtree(PIXELS / "test")
    assert digits.stage("reference").returncode == 0
    found = measure(pixels_of("validation", 20))
    assert (found["kid_test"], found["memorised"], found["copies"]) == (None, None, False)
    assert found["protocol"]["n_test"] == 0 and Path("reports/neighbours/dit.png").exists()
    digits.change({"evaluate.floors": ["real"]})
    done = digits.stage("floor", "real")
    refused(done, "evaluate.floors: ['real'] need 10 test images, but the data set has 0; allowed: []")
    assert not Path("samples/real").exists()


def test_the_second_kid_is_that_of_the_second_extractor(trained, working_copy):
    working_copy(trained)
    net = features.create("efficientnet-lite2", None, torch.device("cpu"))
    made = load_file("samples/msf/images.safetensors")
    real = pixels_of("train", 40)
    seen = [torch.cat([features.extract(net, x)[0] for x in images.split(8)]) for images in (made["pixels"], real)]
    found = json.loads(Path("reports/measurements/msf.json").read_text())
    wanted = metrics.kid(*seen, made["label"])
    assert (found["kid_second"], found["kid_second_se"]) == pytest.approx(wanted, rel=1e-3)
    assert found["kid_second"] != pytest.approx(found["kid"], rel=1e-2)
