"""A trained model opens from its folder alone, in Python and in a shell; other folders are refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import called, flipped, sealed
from PIL import Image
from safetensors.torch import save_file

import multiscale
from multiscale import flow, pictures
from multiscale.core import models
from multiscale.core.pixels import to_pixels
from multiscale.methods.msf.parts import ScaleConfig
from multiscale.methods.msf.sampler import MSFSampler
from multiscale.methods.msf.settings import MSFMethod
from multiscale.methods.ssd.settings import SSDMethod
from multiscale.networks import autoencoder

CLASSES = 3
SEEDS, LABELS = [3, 4, 5], torch.tensor([2, 0, 1])


@pytest.fixture
def config() -> ScaleConfig:
    about = {"index": 0, "resolutions": [8], "classes": CLASSES}
    about |= {"target": {"shift": [0.1], "scale": [0.5]}, "latent": {"shift": [-0.2], "scale": [0.8]}}
    return ScaleConfig.model_validate(about | {"network": {"depth": 1, "width": 16, "heads": 2, "patch": 2}})


@pytest.fixture
def folder(config, tmp_path) -> Path:
    """A trained method of one scale, whose latents are pixels."""
    net, random = config.build(), torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=random)
    (tmp_path / "dit" / "part").mkdir(parents=True)
    models.save(tmp_path / "dit" / "part", net.state_dict(), config)
    sealed(tmp_path / "dit" / "part")
    return tmp_path / "dit"


def by_hand(folder: Path, config: ScaleConfig, solver: flow.Solver, codec: autoencoder.Codec | None = None):
    net = models.load_weights(config.build(), folder / "part")
    return MSFSampler([net], [config], [solver], codec or autoencoder.Codec(None, 1), "fp32")(SEEDS, LABELS)


def test_a_folder_opens_as_the_sampler_of_its_method_with_its_default_solver(folder, config):
    images = multiscale.load(folder, precision="fp32")(SEEDS, LABELS)
    assert torch.equal(images, by_hand(folder, config, flow.Solver()))
    assert images.std() > 0.05


def test_settings_of_the_method_take_the_place_of_its_defaults(folder, config):
    solver = flow.Solver(name="heun", steps=3, guidance_scale=2.0)
    images = multiscale.load(folder, MSFMethod(kind="msf", scales=[solver]), "fp32")(SEEDS, LABELS)
    assert torch.equal(images, by_hand(folder, config, solver))
    assert not torch.equal(images, by_hand(folder, config, flow.Solver()))


@pytest.mark.parametrize("settings", [{"scales": [{"steps": 3}]}, SSDMethod(kind="ssd")], ids=["dict", "of SSD"])
def test_settings_of_another_kind_are_refused(folder, settings):
    with pytest.raises(TypeError, match="allowed: MSFMethod of multiscale.methods.msf.settings, or None"):
        multiscale.load(folder, settings)


def test_a_model_on_latents_is_decoded_by_the_autoencoder_in_its_folder_to_its_channels(folder, config):
    torch.manual_seed(0)
    vae = autoencoder.build(3, 1, (8, 8), 1, 4)
    vae.save_pretrained(folder / "part" / "autoencoder", safe_serialization=True)
    (folder / "part" / "autoencoder" / "images.json").write_text('{"channels": 1}')
    sealed(folder / "part")
    images = multiscale.load(folder, precision="fp32")(SEEDS, LABELS)
    assert torch.equal(images, by_hand(folder, config, flow.Solver(), autoencoder.Codec(vae.eval(), 1)))
    assert images.shape[1:] == (1, 16, 16)


def damaged(folder: Path, **changes: object) -> None:
    path = folder / "part" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


FOREIGN = {
    "nothing in it": (lambda f: (f / "part" / "config.json").unlink(), "dit: holds no trained parts; allowed: the f"),
    "no JSON": (lambda f: (f / "part" / "config.json").write_text("{"), "config.json: Expecting property name"),
    "an older format": (lambda f: damaged(f, format=0), "config.json: format: 0 is not allowed; allowed: 1 (train"),
    "no format": (lambda f: (f / "part" / "config.json").write_text("[]"), "config.json: format: None is not"),
    "another kind": (lambda f: damaged(f, kind="gan"), "dit: kind: 'gan' is not allowed; allowed: parts of one method"),
    "another setting": (lambda f: damaged(f, classes="3"), "config.json: classes: '3' is not allowed"),
    "weights of another network": (lambda f: damaged(f, classes=4), "model.safetensors: Error(s) in loading"),
    "torn weights": (lambda f: (f / "part" / "model.safetensors").write_bytes(b"x" * 20), "model.safetensors: "),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_model_of_ours_is_one_line(name, folder):
    damage, line = FOREIGN[name]
    damage(folder)
    sealed(folder / "part")
    with pytest.raises(models.ForeignModel) as error:
        multiscale.load(folder)
    assert line in str(error.value) and "allowed: " in str(error.value) and "\n" not in str(error.value)


def test_parts_of_two_methods_are_no_model(folder):
    (folder / "other").mkdir()
    save_file({}, folder / "other" / "model.safetensors")
    (folder / "other" / "config.json").write_text(json.dumps({"format": 1, "kind": "ssd", "role": "denoiser"}))
    sealed(folder / "other")
    with pytest.raises(models.ForeignModel, match="parts of one method"):
        multiscale.load(folder)


def test_a_shell_makes_a_grid_of_each_class_for_each_seed(folder, tmp_path):
    out = tmp_path / "grid.png"
    asked = ["--classes", 2, 0, "--seeds", "3-5", "--set", "scales.0.steps=2", "scales.0.guidance_scale=1.5"]
    command = [sys.executable, "-m", "multiscale", "sample", folder, *asked, "--out", out]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "6/6" in done.stderr, "a bar says how far it is"
    solver = flow.Solver(steps=2, guidance_scale=1.5)
    sampler = multiscale.load(folder, MSFMethod(kind="msf", scales=[solver]))
    wanted = to_pixels(sampler(SEEDS * 2, torch.tensor([2, 2, 2, 0, 0, 0])))
    grid = np.asarray(Image.open(out))
    step = 64 + pictures.GAP  # an image of 8 is shown at 64
    for index, image in enumerate(wanted):
        row, column = divmod(index, 3)
        top, left = 52 + row * step, pictures.GAP + column * step
        shown = grid[top : top + 64 : 8, left : left + 64 : 8, 0]
        assert np.array_equal(shown, image[0].numpy())


@pytest.mark.parametrize("out", ["images", "images.v2/"])
def test_a_shell_makes_a_picture_of_each_image_in_a_folder(out, folder, tmp_path):
    asked = ["--classes", 2, 0, "--seeds", "3-5", "--set", "scales.0.steps=2"]
    done = called("multiscale", "sample", *map(str, (folder, *asked)), "--out", f"{tmp_path}/new/{out}")
    assert done.returncode == 0, done.stderr
    made = {path.name: np.asarray(Image.open(path)) for path in (tmp_path / "new" / out).iterdir()}
    sampler = multiscale.load(folder, MSFMethod(kind="msf", scales=[flow.Solver(steps=2)]))
    wanted = to_pixels(sampler(SEEDS * 2, torch.tensor([2, 2, 2, 0, 0, 0])))
    names = [f"class-{label}-seed-{seed}.png" for label in (2, 0) for seed in SEEDS]
    assert made.keys() == set(names)
    for name, image in zip(names, wanted):
        assert made[name].shape == (8, 8, 3) and np.array_equal(made[name][..., 1], image[0].numpy())


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (["--classes", 3], "error: --classes: 3 is not allowed; allowed: 0 to 2"),
        (["--set", "scales.0.stpes=2"], "error: --set: scales.0"),
        (["--set", "steps=2"], "error: --set: "),
        (["--set", "scales.1.steps=2"], "error: scales: 2 is not allowed; allowed: 1, one a scale, or none"),
        (["--prompts", "two ones"], "dit reads no text; allowed: --classes, or neither"),
        (["--seeds", "5-"], "argument --seeds: invalid seeds_of value: '5-'"),
        (["--out", "grid.gif"], "error: --out: 'grid.gif' is not allowed; allowed: FILE.png for a grid, FOLDER/ for"),
    ],
)
def test_what_a_model_cannot_do_is_one_line_and_writes_nothing(asked, line, folder, tmp_path):
    done = called("multiscale", "sample", str(folder), "--out", str(tmp_path / "grid.png"), *map(str, asked))
    assert done.returncode == 2 and line in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "grid.png").exists()


def test_a_model_with_a_flipped_bit_does_not_open(folder):
    multiscale.load(folder)
    weights = folder / "part" / "model.safetensors"
    with flipped(weights, weights.stat().st_size - 40, 6), pytest.raises(ValueError, match="safetensors: damaged"):
        multiscale.load(folder)
