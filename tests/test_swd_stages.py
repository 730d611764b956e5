"""SwD's stages: what a teacher is checked for, images of its own, a distilled student on disk, a proposed schedule."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from multiscale.core.resize import area_to
from multiscale.methods.swd import parts as swd_parts
from multiscale.methods.swd import sampler as swd_sampler
from multiscale.methods.swd.settings import Student, Synthetic
from stages import distill, teacher
from stages.common import settings
from stages.common.paths import DECOMPOSED, LATENTS, MODELS

SIDES = (16, 24, 32)
PYRAMID, TEACHER = DECOMPOSED / "pyramid", MODELS / "swd-teacher" / "swd-teacher"
NETWORK = {"depth": 1, "width": 32, "heads": 2, "patch": 2}
SOLVER = {"steps": 2, "method": "euler", "cfg": 1.0}


def put(folder: Path, tensors: dict[str, Tensor], **about: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "targets.safetensors")
    (folder / "statistics.json").write_text(json.dumps({"shift": [0.1], "scale": [0.5], **about}))


def latents(shift: dict[int, float] | None = None, count: int = 400) -> dict[str, Tensor]:
    """White noise at every side, moved where `shift` says so."""
    noise = {f"z{side}": torch.randn(count, 1, side, side) + (shift or {}).get(side, 0.0) for side in SIDES}
    return noise | {"label": torch.arange(count) % 10}


@pytest.fixture
def ready(project):
    """A project with a pyramid of white noise and a teacher of it: the velocity of a new network is zero.

    The pyramid has no autoencoder beside it: its latents are pixels.
    """
    put(PYRAMID, latents(), grids={side: side for side in SIDES})
    TEACHER.mkdir(parents=True)
    config = {"role": "teacher", "channels": 1, "side": 32, "classes": 10}
    config |= {"latent_shift": [0.1], "latent_scale": [0.5], "network": NETWORK}
    torch.manual_seed(0)
    save_file(swd_parts.build_network(config).state_dict(), TEACHER / "model.safetensors")
    (TEACHER / "config.json").write_text(json.dumps(config))
    return project


def student(**changes) -> Student:
    about = {"method": "swd", "kind": "swd", "reads": "pyramid", "teacher": "swd-teacher", "block": 0}
    about |= {"schedule": {"sides": [16, 24, 32], "sigmas": [1.0, 0.8, 0.6]}, "training": {"images": 64}}
    return Student.model_validate(about | changes)


def test_a_teacher_that_makes_the_datas_law_is_able_at_every_side(ready):
    assert abs(teacher.distance(TEACHER, PYRAMID, 16)) < teacher.LARGEST / 10
    assert teacher.unable(TEACHER, PYRAMID, student()) is None


def test_a_teacher_is_judged_unguided_in_batches_and_by_images_of_their_own(ready, monkeypatch):
    asked, solved = [], swd_sampler.solved
    monkeypatch.setattr(
        swd_sampler, "solved", lambda net, null, shape, *rest: asked.append(rest) or solved(net, null, shape, *rest)
    )
    teacher.distance(TEACHER, PYRAMID, 16)
    assert max(len(seeds) for seeds, *_ in asked) == 50 and all(solver["cfg"] == 1 for _, _, solver, _ in asked)
    assert [seed for seeds, *_ in asked for seed in seeds] == list(range(400))
    assert torch.cat([labels for _, labels, *_ in asked]).tolist() == [k % 10 for k in range(400)]


@pytest.mark.parametrize("side", [16, 24])
def test_a_teacher_that_cannot_generate_at_a_low_side_is_found_out(side, ready):
    put(PYRAMID, latents({side: 1.0}), grids={side: side for side in SIDES})
    assert teacher.unable(TEACHER, PYRAMID, student())[0] == side


def test_dmd_from_a_teacher_that_cannot_generate_is_refused_with_the_reason_and_nothing_is_written(ready):
    put(PYRAMID, latents({24: 1.0}), grids={side: side for side in SIDES})
    ready.change({"students.swd.dmd.weight": 1.0})
    before = ready.files()
    done = ready.stage("distill", "swd")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "error: params/experiment.yaml: students.swd.dmd.weight: 1.0 is not allowed; allowed: "
    )
    assert "swd-teacher cannot generate at 24 px" in done.stderr
    assert ready.files() == before


def test_images_of_the_teacher_are_made_at_the_full_side_and_downsampled_in_pixels(ready, monkeypatch):
    section = Synthetic.model_validate({"images": 60, "solver": SOLVER})  # no whole number of batches
    folder = teacher.images(TEACHER, PYRAMID, section, 1, "auto")
    made = load_file(folder / "targets.safetensors")
    assert {key: tuple(x.shape) for key, x in made.items()} == {
        "label": (60,),
        **{f"z{side}": (60, 1, side, side) for side in SIDES},
    }
    assert made["label"].tolist() == [k % 10 for k in range(60)] and made["z32"].std() > 0.1
    full = made["z32"] * 0.5 + 0.1
    for side in (16, 24):
        torch.testing.assert_close(made[f"z{side}"] * 0.5 + 0.1, area_to(full, side), rtol=0, atol=1e-3)
    assert (made["z32"][50:] - made["z32"][:10]).abs().max() > 0.1
    written = os.stat(folder / "targets.safetensors").st_mtime_ns
    assert teacher.images(TEACHER, PYRAMID, section, 1, "auto") == folder
    assert os.stat(folder / "targets.safetensors").st_mtime_ns == written, "the next student takes the same images"
    sections = [Synthetic.model_validate({"images": 3, "solver": SOLVER | {"steps": k}}) for k in (1, 2)]
    places = [teacher.images(TEACHER, PYRAMID, each, 1, "auto") for each in sections]
    code = Path("loss.py")
    for line in ("return x.square()", "return x.abs()"):
        code.write_text(line)
        monkeypatch.setattr(teacher.keys, "loaded", lambda: [code])
        places.append(teacher.images(TEACHER, PYRAMID, sections[0], 1, "auto"))
    assert len({folder, *places}) == 5, "other settings, another line of code"


@pytest.mark.parametrize("native", [False, True])
def test_images_of_the_teacher_are_encoded_as_the_stage_encodes_the_data(native, ready, monkeypatch):
    """With an autoencoder, in the precision that suits the machine; the sampler casts the weights that it uses."""
    from multiscale.core import device
    from multiscale.networks import autoencoder
    from stages import latents

    monkeypatch.setattr(device, "bf16_is_native", lambda device: native)
    torch.manual_seed(0)
    autoencoder.build(1, 1, (8, 8), 1, 4).save_pretrained(PYRAMID / "autoencoder")
    about = json.loads((TEACHER / "config.json").read_text())
    (TEACHER / "config.json").write_text(json.dumps(about | {"side": 16}))
    grids = {side: side // 2 for side in SIDES}
    put(PYRAMID, {}, grids=grids)
    shown, generate = [], teacher.sampling.generate
    monkeypatch.setattr(teacher.sampling, "generate", lambda *given: (shown.append(x) or x for x in generate(*given)))
    section = Synthetic.model_validate({"images": 4, "solver": SOLVER})
    made = load_file(teacher.images(TEACHER, PYRAMID, section, 1, "auto") / "targets.safetensors")
    (pixels,) = shown
    encoder, plain = (autoencoder.load(PYRAMID / "autoencoder", 1) for _ in range(2))
    encoder, plain = latents.Encoder(encoder, "auto"), plain.vae
    for side in SIDES:
        found = made[f"z{side}"] * 0.5 + 0.1
        as_stored = encoder.encode(pixels, side)[0].half().float()
        torch.testing.assert_close(found, as_stored, rtol=1e-6, atol=1e-6)
        with torch.no_grad():
            exact = plain.encode(area_to(pixels.float() / 127.5 - 1, side)).latent_dist.mean
        error = (found - exact).abs().max() / exact.abs().max()
        assert error < 1e-3 if not native else 1e-3 < error < 3e-2


def test_a_student_and_the_images_it_learns_from_are_kept_under_the_code_that_is_asked_for(ready, monkeypatch):
    ready.change({"students.swd.synthetic": {"images": 3, "solver": SOLVER}})
    asked = []
    monkeypatch.setattr(teacher, "images", lambda *given: asked.append(given[-1]) or PYRAMID)
    code = Path("loss.py")
    found = []
    for line in ("return x.square()", "return x.abs()"):
        code.write_text(line)
        params = settings.load("seed", "run", "data", "latents", "students")
        found.append(distill.job("swd", params, [code]).key)
    assert found[0] != found[1] and asked == [[code]] * 2


def test_a_student_is_distilled_from_images_of_its_teacher_with_all_losses_and_adapters(ready):
    changes = {"dmd.weight": 1.0, "gan.weight": 5e-3, "lora_rank": 4, "fake.updates": 1, "training.images": 128}
    changes["synthetic"] = {"images": 50, "solver": SOLVER}
    ready.change({f"students.swd.{key}": value for key, value in changes.items()})
    done = ready.stage("distill", "swd")
    assert done.returncode == 0, done.stderr
    folder = MODELS / "swd" / "swd"
    config = json.loads((folder / "config.json").read_text())
    assert config["schedule"] == {"sides": [16, 24, 24, 32], "sigmas": [1.0, 0.8959, 0.7371, 0.6022]}
    swd_parts.build_network(config).load_state_dict(load_file(folder / "model.safetensors"))  # a plain network
    rows = [json.loads(row) for row in (folder / "history.jsonl").read_text().splitlines()]
    assert {"loss", "mmd", "dmd", "gan", "fake_loss", "fake_score", "fake_discriminator"} <= set(rows[-1])
    assert json.loads(Path("reports/timing/swd.json").read_text())["parameters"] == sum(
        x.numel() for x in load_file(folder / "model.safetensors").values()
    )


def test_a_proposed_schedule_and_its_picture(project):
    """Noise of one low frequency is masked early: small sides are safe."""
    folder = LATENTS / "32"
    folder.mkdir(parents=True)
    wave = torch.cos(2 * torch.pi * torch.arange(8) / 8).expand(1, 8, 8) * torch.randn(100, 4, 1, 1)
    save_file({"mean": wave.half().contiguous(), "label": torch.zeros(100).long()}, folder / "latents.safetensors")
    (folder / "statistics.json").write_text(json.dumps({"shift": [0.0] * 4, "scale": [1.0] * 4}))
    done = project.stage("spectrum", "32")
    assert done.returncode == 0, done.stderr
    four, six, picture = done.stdout.splitlines()
    assert four.startswith("4 steps: {sides: [8, ") and "32], sigmas: [1.0, 0.8959, 0.7371, 0.6022]}" in four
    assert six.startswith("6 steps: ") and Path(picture.removeprefix("picture: ")).exists()


def test_a_source_that_is_not_there_is_refused(project):
    done = project.stage("spectrum", "48")
    assert done.returncode == 2 and done.stderr.startswith(
        "error: spectrum: SOURCE: '48' is not allowed; allowed: one of"
    )
