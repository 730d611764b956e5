"""Trained on one image, every method gives it back: each part trained by the loop, then the sampler as it is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import TRAINING
from safetensors.torch import save_file
from torch import Tensor

from multiscale import methods
from multiscale.core.resize import area_to
from multiscale.core.storage import Table
from multiscale.flow import Solver
from multiscale.methods.msf.settings import FlowPart, Residual
from multiscale.methods.ssd.settings import AncestralSolver, Pixels, SSDPart
from multiscale.methods.swd import parts as swd_parts
from multiscale.methods.swd.settings import Pyramid, Student, TeacherPart
from multiscale.methods.wmgm.settings import ScoreSolver, Wavelet, WMGMPart
from multiscale.networks.autoencoder import Codec
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import fit
from stages import decompose, distill, fitting
from stages.common.paths import LATENTS

COPIES, CLASSES, BATCH = 32, 2, 16
FAST = replace(TRAINING, batch=BATCH, log_images=10**6, checkpoint_seconds=1e6, decay="cosine", ema_images=400)
SEEDS, LABELS = [1, 2, 3, 4], torch.tensor([0, 1, 0, 1])
DIT = {"depth": 2, "width": 32, "heads": 2, "patch": 2}
UNET = {"multipliers": [1], "blocks": 1, "attention": [], "heads": 2, "groups": 4}


def picture(side: int) -> Tensor:
    """A bright corner, a bar and a ramp, uint8 (1, side, side): nothing of it is symmetric."""
    image = torch.linspace(30, 90, side).expand(side, side).clone()
    image[: side // 2, : side // 4] = 230
    image[3 * side // 4 :, side // 4 :] = 160
    return image.round().to(torch.uint8)[None]


def trained(folder: Path, section, data: Path, steps: int, lr: float = 1e-2) -> Path:
    """What the stage `train` leaves of a part."""
    torch.manual_seed(0)
    part, config = methods.parts(section.kind).build_part(folder.name, section.model_dump(), data, CLASSES)
    return finished(folder, part, config, steps, lr)


def finished(folder: Path, part, config: dict, steps: int, lr: float, save=fitting.save_weights) -> Path:
    result = fit(part, replace(FAST, images=BATCH * steps, lr=lr), 0, Checkpoints(folder, part.name, "key"))
    part.players[part.main].to(memory_format=torch.contiguous_format).load_state_dict(result.weights)
    folder.mkdir()
    save(folder, part, config)
    return folder


def error_of(kind: str, folders: list[Path], settings: dict, image: Tensor) -> float:
    """The mean error of a pixel in images of all seeds and classes; one grey for all would have 0.2."""
    images = methods.sampler(kind).load_sampler(folders, settings, Codec(None, 1), "fp32")(SEEDS, LABELS)
    return (images - image / 255).abs().mean().item()


@pytest.fixture
def latents(tmp_path, monkeypatch) -> Tensor:
    """The image, which is its own latent, as the stage `latents` leaves it at three sides."""
    monkeypatch.chdir(tmp_path)
    image = picture(8)
    signed = (image / 127.5 - 1).expand(COPIES, 1, 8, 8)
    for side in (4, 6, 8):
        small, folder = area_to(signed, side), LATENTS / str(side)
        folder.mkdir(parents=True)
        rows = {"mean": small.half().contiguous(), "std": torch.zeros_like(small).half()}
        save_file(rows | {"label": torch.arange(COPIES) % CLASSES}, folder / "latents.safetensors")
        about = {"shift": [small.mean().item()], "scale": [small.std(correction=0).item()], "images": COPIES}
        (folder / "statistics.json").write_text(json.dumps(about))
    return image


@pytest.fixture
def pixels(monkeypatch) -> Tensor:
    """The image as the data set."""
    image = picture(8)
    rows = {"pixels": image.expand(COPIES, 1, 8, 8).numpy(), "label": (torch.arange(COPIES) % CLASSES).numpy()}
    monkeypatch.setattr(decompose, "pixel_table", lambda split: Table(rows))
    return image


def test_msf_gives_its_one_image_back(latents, tmp_path):
    decompose.decompose(tmp_path / "residual", Residual(kind="msf", sides=[4, 8]))
    about = {"method": "msf", "kind": "msf", "reads": "residual", "network": DIT, "training": {"images": 8}}
    parts = [FlowPart.model_validate(about | {"index": index}) for index in range(2)]
    folders = [trained(tmp_path / f"msf-{part.index}", part, tmp_path / "residual", 150) for part in parts]
    solvers = [Solver(steps=8, cfg=1.5).model_dump(), Solver(steps=4, method="heun").model_dump()]
    assert error_of("msf", folders, {"scales": solvers}, latents) < 0.03


def test_swd_gives_its_one_image_back_from_a_generator_that_starts_with_noise(latents, tmp_path):
    decompose.decompose(tmp_path / "pyramid", Pyramid(kind="swd", sides=[4, 6, 8]))
    about = {"method": "teacher", "kind": "swd", "reads": "pyramid", "training": {"images": 8}}
    teacher = trained(
        tmp_path / "teacher", TeacherPart.model_validate(about | {"network": DIT}), tmp_path / "pyramid", 350
    )
    solver = Solver(steps=8, cfg=1.5).model_dump()
    assert error_of("swd", [teacher], {"solver": solver}, latents) < 0.03
    about |= {"method": "swd", "teacher": "teacher", "block": 1}
    about |= {"schedule": {"sides": [4, 6, 8], "sigmas": [1.0, 0.8, 0.5]}}
    about |= {"dmd": {"weight": 1.0}, "gan": {"weight": 5e-3}, "fake": {"updates": 1}}
    section = Student.model_validate(about).model_dump()
    torch.manual_seed(0)
    part, config = swd_parts.build_student("swd", section, tmp_path / "pyramid", teacher)
    last = part.players["generator"].final.linear
    torch.nn.init.zeros_(last.weight), torch.nn.init.zeros_(last.bias)  # a velocity of zero: it makes its input
    student = finished(tmp_path / "swd", part, config, 240, 3e-3, partial(distill.save, pyramid=tmp_path / "pyramid"))
    assert error_of("swd", [student], {}, latents) < 0.09


def test_ssd_of_two_levels_gives_its_one_image_back(pixels, tmp_path):
    decompose.decompose(tmp_path / "pixels", Pixels(kind="ssd"))
    about = {"method": "ssd", "kind": "ssd", "reads": "pixels", "training": {"images": 8}, "oversample": 4}
    about |= {"network": UNET | {"width": 8, "multipliers": [1, 2]}, "process": {"steps": 100, "levels": 2}}
    folder = trained(tmp_path / "ssd", SSDPart.model_validate(about), tmp_path / "pixels", 150)
    assert error_of("ssd", [folder], {"solver": AncestralSolver(steps=10).model_dump()}, pixels) < 0.03


def test_wmgm_gives_its_one_image_back(pixels, tmp_path):
    decompose.decompose(tmp_path / "bands", Wavelet(kind="wmgm", levels=1))
    about = {"method": "wmgm", "kind": "wmgm", "reads": "bands", "training": {"images": 8}}
    low = WMGMPart.model_validate(about | {"role": "low", "network": UNET | {"width": 16}})
    judge = {"width": 8, "blocks": 1, "norm": "group", "dropout": 0.0}
    details = {"generator": {"widths": [8, 16], "norm": "group", "head": "linear"}, "discriminator": judge}
    details = WMGMPart.model_validate(about | details | {"role": "detail", "loss": {"preset": "stabilised"}})
    folders = [
        trained(tmp_path / "low", low, tmp_path / "bands", 250),
        trained(tmp_path / "details", details, tmp_path / "bands", 40),
    ]
    solver = ScoreSolver(steps=8, cfg=1.5).model_dump()
    assert error_of("wmgm", folders, {"solver": solver, "detail_solver": None}, pixels) < 0.04
