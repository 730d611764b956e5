"""SwD's stages: checks of the teacher, its synthetic images, a distilled student on disk, a proposed schedule."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import sealed
from safetensors.torch import load_file, save_file
from torch import Tensor

from multiscale.core import models
from multiscale.core.resize import area_to
from multiscale.methods.swd import teaching
from multiscale.methods.swd.config import StudentConfig, TeacherConfig
from multiscale.methods.swd.settings import Student
from stages import distill
from stages.common import settings
from stages.common.paths import DECOMPOSED, LATENTS, MODELS

RESOLUTIONS = (16, 24, 32)
PYRAMID, TEACHER = DECOMPOSED / "pyramid", MODELS / "swd-teacher" / "swd-teacher"
NETWORK = {"depth": 1, "width": 32, "heads": 2, "patch": 2}
SOLVER = {"steps": 2, "name": "euler", "guidance_scale": 1.0}
LATENT = {"shift": [0.1], "scale": [0.5]}


def put(folder: Path, tensors: dict[str, Tensor], **about: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "targets.safetensors")
    (folder / "statistics.json").write_text(json.dumps({"classes": 10, "latent": LATENT, **about}))
    sealed(folder)


def latents(shift: dict[int, float] | None = None, count: int = 400) -> dict[str, Tensor]:
    """White noise at every resolution, with a mean of `shift`."""
    noise = {
        f"z{resolution}": torch.randn(count, 1, resolution, resolution) + (shift or {}).get(resolution, 0.0)
        for resolution in RESOLUTIONS
    }
    return noise | {"label": torch.arange(count) % 10}


@pytest.fixture
def ready(project):
    """A project with a pyramid of white noise and a teacher of it: the velocity of a new network is zero.

    The pyramid has no autoencoder beside it: its latents are pixels.
    """
    put(PYRAMID, latents(), grids={resolution: resolution for resolution in RESOLUTIONS})
    TEACHER.mkdir(parents=True)
    about = {"channels": 1, "resolution": 32, "classes": 10, "latent": LATENT, "network": NETWORK}
    config = TeacherConfig.model_validate(about)
    torch.manual_seed(0)
    models.save(TEACHER, config.build().state_dict(), config)
    sealed(TEACHER)
    return project


def student(**changes) -> Student:
    about = {"method": "swd", "kind": "swd", "dataset": "pyramid", "teacher": "swd-teacher", "block": 0}
    about |= {"schedule": {"resolutions": [16, 24, 32], "sigmas": [1.0, 0.8, 0.6]}, "training": {"images": 64}}
    return Student.model_validate(about | changes)


def test_a_teacher_that_makes_the_datas_law_is_able_at_every_resolution(ready):
    assert abs(teaching.distance(TEACHER, PYRAMID, 16)) < teaching.LARGEST / 10
    teaching.check(student(dmd={"weight": 1.0}), TEACHER, PYRAMID)


def test_a_teacher_is_judged_unguided_in_batches_and_by_images_of_their_own(ready, monkeypatch):
    asked, solved = [], teaching.solved
    monkeypatch.setattr(teaching, "solved", lambda net, shape, *rest: asked.append(rest) or solved(net, shape, *rest))
    teaching.distance(TEACHER, PYRAMID, 16)
    assert max(len(seeds) for seeds, *_ in asked) == 50
    assert all(solver.guidance_scale == 1 for _, _, solver, _ in asked)
    assert [seed for seeds, *_ in asked for seed in seeds] == list(range(200))
    every_second = [2 * k % 10 for k in range(200)]  # of 400 images
    assert torch.cat([condition.given[0] for _, condition, *_ in asked]).tolist() == every_second


@pytest.mark.parametrize("resolution", [16, 24])
def test_a_teacher_that_cannot_generate_at_a_low_resolution_is_found_out(resolution, ready):
    put(PYRAMID, latents({resolution: 1.0}), grids={resolution: resolution for resolution in RESOLUTIONS})
    with pytest.raises(ValueError, match=f"cannot generate at {resolution} px"):
        teaching.check(student(dmd={"weight": 1.0}), TEACHER, PYRAMID)
    teaching.check(student(), TEACHER, PYRAMID)  # MMD asks it for no score


def edited(file: str) -> None:
    """One more line of code."""
    with open(file, "a") as opened:
        opened.write("EDITED = True\n")


def images_of(**changes) -> Path:
    """The folder of images that the teacher generates."""
    asked = student(synthetic={"images": 60, "solver": SOLVER} | changes)
    return distill.images(teaching.images(asked, TEACHER, PYRAMID), TEACHER, PYRAMID, "auto", "distill-swd")


def test_dmd_from_a_teacher_that_cannot_generate_is_refused_with_the_reason_and_nothing_is_written(ready):
    put(PYRAMID, latents({24: 1.0}), grids={resolution: resolution for resolution in RESOLUTIONS})
    ready.change({"students.swd.dmd.weight": 1.0})
    before = ready.files()
    done = ready.stage("distill", "swd")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: params.yaml: students.swd.dmd.weight: 1.0 is not allowed; allowed: ")
    assert "swd-teacher cannot generate at 24 px" in done.stderr
    assert ready.files() == before


def test_images_of_the_teacher_are_made_at_the_full_resolution_and_downsampled_in_pixels(ready, monkeypatch):
    folder = images_of()  # no whole number of batches
    made = load_file(folder / "targets.safetensors")
    assert {key: tuple(x.shape) for key, x in made.items()} == {
        "label": (60,),
        **{f"z{resolution}": (60, 1, resolution, resolution) for resolution in RESOLUTIONS},
    }
    assert made["label"].tolist() == [k % 10 for k in range(60)] and made["z32"].std() > 0.1
    full = made["z32"] * 0.5 + 0.1
    for resolution in (16, 24):
        torch.testing.assert_close(made[f"z{resolution}"] * 0.5 + 0.1, area_to(full, resolution), rtol=0, atol=1e-3)
    assert (made["z32"][50:] - made["z32"][:10]).abs().max() > 0.1
    written = os.stat(folder / "targets.safetensors").st_mtime_ns
    assert json.loads((folder / "statistics.json").read_text()) == json.loads((PYRAMID / "statistics.json").read_text())
    assert images_of() == folder
    assert os.stat(folder / "targets.safetensors").st_mtime_ns == written, "the next student takes the same images"
    places = [images_of(images=3, solver=SOLVER | {"steps": k}) for k in (1, 2)]
    monkeypatch.setattr(distill.keys, "ROOT", Path.cwd())
    edited("multiscale/flow.py")
    places.append(images_of(images=3, solver=SOLVER | {"steps": 1}))
    assert len({folder, *places}) == 4, "other settings, another line of code"


@pytest.mark.parametrize("native", [False, True])
def test_images_of_the_teacher_are_encoded_as_the_stage_encodes_the_data(native, ready, monkeypatch):
    """With an autoencoder, in the precision of this machine; the sampler casts its weights."""
    from multiscale.core import device
    from multiscale.networks import autoencoder
    from stages import latents

    monkeypatch.setattr(device, "bf16_is_native", lambda device: native)
    torch.manual_seed(0)
    autoencoder.build(1, 1, (8, 8), 1, 4).save_pretrained(PYRAMID / "autoencoder")
    (PYRAMID / "autoencoder" / "images.json").write_text('{"channels": 1}')
    about = json.loads((TEACHER / "config.json").read_text())
    (TEACHER / "config.json").write_text(json.dumps(about | {"resolution": 16}))
    grids = {resolution: resolution // 2 for resolution in RESOLUTIONS}
    put(PYRAMID, {}, grids=grids)
    shown, generate = [], teaching.sampling.generate
    monkeypatch.setattr(teaching.sampling, "generate", lambda *given: (shown.append(x) or x for x in generate(*given)))
    made = load_file(images_of(images=4) / "targets.safetensors")
    (pixels,) = shown
    encoder, plain = (autoencoder.load(PYRAMID / "autoencoder", 1) for _ in range(2))
    encoder, plain = latents.Encoder(encoder, "auto"), plain.vae
    for resolution in RESOLUTIONS:
        found = made[f"z{resolution}"] * 0.5 + 0.1
        as_stored = encoder.encode(pixels, resolution)[0].half().float()
        torch.testing.assert_close(found, as_stored, rtol=1e-6, atol=1e-6)
        with torch.no_grad():
            exact = plain.encode(area_to(pixels.float() / 127.5 - 1, resolution)).latent_dist.mean
        error = (found - exact).abs().max() / exact.abs().max()
        assert error < 1e-3 if not native else 1e-3 < error < 3e-2


def test_a_student_and_the_images_it_learns_from_are_kept_under_the_code_of_distilling(ready, monkeypatch):
    ready.change({"students.swd.synthetic": {"images": 3, "solver": SOLVER}})
    asked = []
    monkeypatch.setattr(distill, "images", lambda *given: asked.append(given[-1]) or PYRAMID)
    monkeypatch.setattr(distill.keys, "ROOT", Path.cwd())
    found = [distill.job("swd", settings.load()).key]
    for file in ("multiscale/networks/unet.py", "multiscale/methods/swd/teaching.py"):
        edited(file)
        found.append(distill.job("swd", settings.load()).key)
    assert found[0] == found[1] != found[2] and asked == ["distill-swd"] * 3


def test_a_student_is_distilled_from_images_of_its_teacher_with_all_losses_and_adapters(ready):
    changes = {"dmd.weight": 1.0, "gan.weight": 5e-3, "lora_rank": 4, "fake.updates": 1, "training.images": 128}
    changes["synthetic"] = {"images": 50, "solver": SOLVER}
    ready.change({f"students.swd.{key}": value for key, value in changes.items()})
    done = ready.stage("distill", "swd")
    assert done.returncode == 0, done.stderr
    folder = MODELS / "swd" / "swd"
    config = models.config(folder, StudentConfig)
    assert config.schedule.resolutions == [16, 24, 32, 32]
    assert config.schedule.sigmas == [1.0, 0.8959, 0.7371, 0.6022]
    models.load_weights(config.build(), folder)  # a plain network
    rows = [json.loads(row) for row in (folder / "history.jsonl").read_text().splitlines()]
    assert {"loss", "mmd", "dmd", "gan", "fake_loss", "fake_score", "fake_discriminator"} <= set(rows[-1])
    assert json.loads(Path("reports/timing/swd.json").read_text())["parameters"] == sum(
        x.numel() for x in load_file(folder / "model.safetensors").values()
    )


def test_a_proposed_schedule_and_its_picture(project):
    """Noise of one low frequency is masked early: small resolutions are safe."""
    folder = LATENTS / "32"
    folder.mkdir(parents=True)
    wave = torch.cos(2 * torch.pi * torch.arange(8) / 8).expand(1, 8, 8) * torch.randn(100, 4, 1, 1)
    save_file({"mean": wave.half().contiguous(), "label": torch.zeros(100).long()}, folder / "latents.safetensors")
    (folder / "statistics.json").write_text(json.dumps({"shift": [0.0] * 4, "scale": [1.0] * 4}))
    sealed(folder)
    done = project.stage("spectrum", "32")
    assert done.returncode == 0, done.stderr
    four, six, added, picture = done.stdout.splitlines()
    assert added.startswith("[8]: add them to latents.resolutions and to "), "16, 24 and 32 are encoded"
    assert four.startswith("4 steps: {resolutions: [8, ") and "32], sigmas: [1.0, 0.8959, 0.7371, 0.6022]}" in four
    assert six.startswith("6 steps: ") and Path(picture.removeprefix("picture: ")).exists()


def test_a_source_that_is_not_there_is_refused(project):
    done = project.stage("spectrum", "48")
    assert done.returncode == 2 and done.stderr.startswith(
        "error: spectrum: SOURCE: '48' is not allowed; allowed: one of"
    )
