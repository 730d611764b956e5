"""Trained on one image, every method reproduces it, with parts trained by the loop and the sampler loaded from disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import TRAINING, replace, sealed, write_pixels
from safetensors.torch import save_file
from torch import Tensor

from multiscale import methods
from multiscale.core.resize import area_to
from multiscale.flow import Solver
from multiscale.methods.msf.settings import FlowPart, MSFMethod, Residual
from multiscale.methods.pyramidal.settings import PyramidalMethod, PyramidalPart
from multiscale.methods.shift import parts as shift_parts
from multiscale.methods.shift.settings import Shifted, ShiftMethod
from multiscale.methods.ssd.settings import AncestralSolver, Pixels, SSDMethod, SSDPart
from multiscale.methods.swd import parts as swd_parts
from multiscale.methods.swd.settings import Pyramid, Student, SwDMethod, Teacher
from multiscale.methods.wmgm.score import ScoreSolver
from multiscale.methods.wmgm.settings import CoarsePart, DetailsPart, Wavelet, WMGMMethod
from multiscale.networks.autoencoder import Codec
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import fit
from stages import decompose
from stages.common.paths import LATENTS, TRAIN

COPIES, CLASSES, BATCH = 32, 2, 16
FAST = replace(TRAINING, batch=BATCH, log_images=10**6, decay="cosine", ema_images=400)
SEEDS, LABELS = [1, 2, 3, 4], torch.tensor([0, 1, 0, 1])
DIT = {"depth": 2, "width": 32, "heads": 2, "patch": 2}
UNET = {"multipliers": [1], "blocks": 1, "attention": [], "heads": 2, "groups": 4}


def picture(resolution: int) -> Tensor:
    """An asymmetric image, uint8 (1, resolution, resolution): a bright corner, a bar and a ramp."""
    image = torch.linspace(30, 90, resolution).expand(resolution, resolution).clone()
    image[: resolution // 2, : resolution // 4] = 230
    image[3 * resolution // 4 :, resolution // 4 :] = 160
    return image.round().to(torch.uint8)[None]


def trained(folder: Path, section, data: Path, steps: int, lr: float = 1e-2) -> Path:
    """Trains a part, and writes what the stage `train` does."""
    torch.manual_seed(0)
    return finished(folder, methods.parts(section.kind).build_part(folder.name, section, data), steps, lr)


def finished(folder: Path, part, steps: int, lr: float) -> Path:
    training = replace(FAST, images=BATCH * steps, lr=lr)
    result = fit(part, training, 0, Checkpoints(folder, part.name, "key"), checkpoint_seconds=1e6)
    part.networks[part.main].to(memory_format=torch.contiguous_format).load_state_dict(result.weights)
    folder.mkdir()
    part.save(folder)
    return folder


def error_of(folders: list[Path], method, image: Tensor) -> float:
    """The mean error of a pixel over all seeds and classes; a constant image would have 0.2."""
    images = methods.sampler(method.kind).load_sampler(folders, method, Codec(None, 1), "fp32")(SEEDS, LABELS)
    return (images - image / 255).abs().mean().item()


@pytest.fixture
def latents(tmp_path, monkeypatch) -> Tensor:
    """The image as its own latent at three resolutions, as the stage `latents` writes it."""
    monkeypatch.chdir(tmp_path)
    image = picture(8)
    signed = (image / 127.5 - 1).expand(COPIES, 1, 8, 8)
    for resolution in (4, 6, 8):
        small, folder = area_to(signed, resolution), LATENTS / str(resolution)
        folder.mkdir(parents=True)
        rows = {"mean": small.half().contiguous(), "std": torch.zeros_like(small).half()}
        save_file(rows | {"label": torch.arange(COPIES) % CLASSES}, folder / "latents.safetensors")
        about = {"shift": [small.mean().item()], "scale": [small.std(correction=0).item()], "classes": CLASSES}
        (folder / "statistics.json").write_text(json.dumps(about))
        sealed(folder)
    return image


@pytest.fixture
def pixels(tmp_path, monkeypatch) -> Tensor:
    """The image as the dataset."""
    monkeypatch.chdir(tmp_path)
    image = picture(8)
    write_pixels(TRAIN, image.expand(COPIES, 1, 8, 8).numpy(), [index % CLASSES for index in range(COPIES)], CLASSES)
    return image


def test_msf_gives_its_one_image_back(latents, tmp_path):
    decompose.decompose(tmp_path / "residual", Residual(kind="msf", resolutions=[4, 8]))
    about = {"method": "msf", "kind": "msf", "dataset": "residual", "network": DIT, "training": {"images": 8}}
    parts = [FlowPart.model_validate(about | {"index": index}) for index in range(2)]
    folders = [trained(tmp_path / f"msf-{part.index}", part, tmp_path / "residual", 150) for part in parts]
    method = MSFMethod(kind="msf", scales=[Solver(steps=8, guidance_scale=1.5), Solver(steps=4, name="heun")])
    assert error_of(folders, method, latents) < 0.03


def test_swd_gives_its_one_image_back_from_a_generator_that_starts_with_noise(latents, tmp_path):
    decompose.decompose(tmp_path / "pyramid", Pyramid(kind="swd", resolutions=[4, 6, 8]))
    about = {"method": "teacher", "kind": "swd", "dataset": "pyramid", "training": {"images": 8}}
    section = Teacher.model_validate(about | {"network": DIT})
    teacher = trained(tmp_path / "teacher", section, tmp_path / "pyramid", 350)
    method = SwDMethod(kind="swd", solver=Solver(steps=8, guidance_scale=1.5))
    assert error_of([teacher], method, latents) < 0.03
    about |= {"method": "swd", "teacher": "teacher", "block": 1}
    about |= {"schedule": {"resolutions": [4, 6, 8], "sigmas": [1.0, 0.8, 0.5]}}
    about |= {"dmd": {"weight": 1.0}, "gan": {"weight": 5e-3}, "fake": {"updates": 1}}
    torch.manual_seed(0)
    part = swd_parts.build_student("swd", Student.model_validate(about), tmp_path / "pyramid", teacher)
    last = part.networks["generator"].final.linear
    torch.nn.init.zeros_(last.weight), torch.nn.init.zeros_(last.bias)  # a velocity of zero: it makes its input
    student = finished(tmp_path / "swd", part, 240, 3e-3)
    assert error_of([student], SwDMethod(kind="swd"), latents) < 0.09


def test_a_teacher_that_is_sampled_small_first_gives_its_one_image_back(latents, tmp_path):
    decompose.decompose(tmp_path / "pyramid", Pyramid(kind="swd", resolutions=[4, 8]))
    about = {"kind": "swd", "dataset": "pyramid", "training": {"images": 8}}
    section = Teacher.model_validate(about | {"method": "teacher", "network": DIT})
    teacher = trained(tmp_path / "teacher", section, tmp_path / "pyramid", 350)
    about |= {"kind": "shift", "method": "shift", "teacher": "teacher"}
    settings = Shifted.model_validate(about | {"schedule": {"resolutions": [4, 8], "levels": [1.0, 0.7]}})
    part = shift_parts.build_student("shift", settings, tmp_path / "pyramid", teacher)
    shifted = finished(tmp_path / "shift", part, 1, 1.0)
    method = ShiftMethod.model_validate({"kind": "shift", "solver": {"steps": 8, "guidance_scale": 1.5}})
    assert error_of([shifted], method, latents) < 0.03


def test_pyramidal_flow_matching_gives_its_one_image_back(latents, tmp_path):
    decompose.decompose(tmp_path / "pyramid", Pyramid(kind="swd", resolutions=[4, 8]))
    about = {"method": "p", "kind": "pyramidal", "dataset": "pyramid", "network": DIT, "training": {"images": 8}}
    section = PyramidalPart.model_validate(about | {"jumps": [0.5]})
    folder = trained(tmp_path / "pyramidal", section, tmp_path / "pyramid", 300)
    method = PyramidalMethod(kind="pyramidal", scales=[Solver(steps=6, guidance_scale=1.5), Solver(steps=6)])
    assert error_of([folder], method, latents) < 0.03


def test_ssd_of_two_levels_gives_its_one_image_back(pixels, tmp_path):
    decompose.decompose(tmp_path / "pixels", Pixels(kind="ssd"))
    about = {"method": "ssd", "kind": "ssd", "dataset": "pixels", "training": {"images": 8}, "oversample": 4}
    about |= {"network": UNET | {"width": 8, "multipliers": [1, 2]}, "process": {"steps": 100, "levels": 2}}
    folder = trained(tmp_path / "ssd", SSDPart.model_validate(about), tmp_path / "pixels", 150)
    assert error_of([folder], SSDMethod(kind="ssd", solver=AncestralSolver(steps=10)), pixels) < 0.03


def test_wmgm_gives_its_one_image_back(pixels, tmp_path):
    decompose.decompose(tmp_path / "bands", Wavelet(kind="wmgm", levels=1))
    about = {"method": "wmgm", "kind": "wmgm", "dataset": "bands", "training": {"images": 8}}
    coarse = CoarsePart.model_validate(about | {"role": "coarse", "network": UNET | {"width": 16}})
    discriminator = {"width": 8, "blocks": 1, "norm": "group", "dropout": 0.0}
    about |= {"role": "details", "generator": {"widths": [8, 16], "norm": "group", "head": "linear"}}
    details = DetailsPart.model_validate(about | {"discriminator": discriminator, "loss": {"preset": "stabilised"}})
    folders = [
        trained(tmp_path / "details", details, tmp_path / "bands", 40),
        trained(tmp_path / "coarse", coarse, tmp_path / "bands", 250),
    ]
    method = WMGMMethod(kind="wmgm", solver=ScoreSolver(steps=8, guidance_scale=1.5))
    assert error_of(folders, method, pixels) < 0.04
