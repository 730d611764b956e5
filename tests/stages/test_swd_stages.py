"""SwD's stages: checks of the teacher, images that it generates, a distilled student on disk, a proposed schedule."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import sealed
from safetensors.torch import load_file, save_file
from torch import Tensor

from multiscale import sampling
from multiscale.core import device, models
from multiscale.core.resize import area_to
from multiscale.core.streams import noise_of_seeds
from multiscale.methods.swd import teaching
from multiscale.methods.swd.config import StudentConfig, TeacherConfig
from multiscale.methods.swd.settings import Student, Synthetic
from stages import distill, synthetic
from stages.common import settings
from stages.common.paths import DECOMPOSED, LATENTS, MODELS

RESOLUTIONS = (16, 24, 32)
PYRAMID, TEACHER = DECOMPOSED / "pyramid", MODELS / "swd-teacher" / "swd-teacher"
NETWORK = {"depth": 1, "width": 32, "heads": 2, "patch": 2}
SOLVER = {"steps": 2, "name": "euler", "guidance_scale": 1.0}
LATENT = {"shift": [0.1], "scale": [0.5]}
MMDIT = {
    "preset": "small",
    **{"sample_size": 32, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8, "pos_embed_max_size": 16},
    **{"in_channels": 1, "out_channels": 1, "joint_attention_dim": 8, "pooled_projection_dim": 8},
    "caption_projection_dim": 16,
}
LABELS = {"label": torch.arange(4)}
TEACHERS_OF_TEXT = TeacherConfig.model_validate(
    {"channels": 1, "resolution": 32, "classes": 10, "latent": LATENT, "network": MMDIT}
)


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
    """One more line of code, of this project alone: its modules are links."""
    text = Path(file).read_text()
    Path(file).unlink()
    Path(file).write_text(text + "EDITED = True\n")


MADE = DECOMPOSED / "made"
SECTION = {"kind": "swd", "teacher": "swd-teacher", "dataset": "pyramid", "images": 60, "solver": SOLVER}


def images_of(project, **changes) -> Path:
    """The folder of images that the teacher generates."""
    project.change({"synthetic.made": SECTION | changes})
    done = project.stage("synthetic", "made")
    assert done.returncode == 0, done.stderr
    return MADE


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
    folder = images_of(ready)  # no whole number of batches
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
    assert (folder / "statistics.json").read_bytes() == (PYRAMID / "statistics.json").read_bytes()
    assert not list(Path(".scratch/shards").glob("*/*")), "the shards are gone"


def test_shards_are_kept_under_what_decides_them(ready, monkeypatch):
    given = [SECTION, SECTION | {"solver": SOLVER | {"steps": 1}}, SECTION | {"batch": 7}]
    found = [synthetic.key(Synthetic.model_validate(section), [TEACHER, PYRAMID], "auto") for section in given]
    put(PYRAMID, latents({16: 1.0}), grids={resolution: resolution for resolution in RESOLUTIONS})
    found.append(synthetic.key(Synthetic.model_validate(SECTION), [TEACHER, PYRAMID], "auto"))
    monkeypatch.setattr(synthetic.keys, "ROOT", Path.cwd())
    for file in ("multiscale/flow.py", "multiscale/networks/unet.py"):
        edited(file)
        found.append(synthetic.key(Synthetic.model_validate(SECTION), [TEACHER, PYRAMID], "auto"))
    assert len(set(found)) == 5 and found[-1] == found[-2], "other settings, data and code, but not that of a UNet"


def test_an_interrupted_stage_goes_on_after_its_last_shard_with_the_same_bits(ready, monkeypatch):
    whole = load_file(images_of(ready, batch=25) / "targets.safetensors")
    shutil.rmtree(MADE)
    asked, generate = [], sampling.generate

    def killed(sampler, seeds, *rest):
        asked.append(seeds[0] - 10**9)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return generate(sampler, seeds, *rest)

    monkeypatch.setattr(sampling, "generate", killed)
    stopped = ready.stage("synthetic", "made")
    assert stopped.returncode == 130 and not MADE.exists()
    done = ready.stage("synthetic", "made")
    assert asked == [0, 25, 25, 50] and "synthetic made: 25 of 60 images are there already" in done.stderr
    found = load_file(MADE / "targets.safetensors")
    assert all(torch.equal(found[key], whole[key]) for key in whole.keys() | found.keys())


@pytest.mark.parametrize("texts, told", [("captions", [3, 1, 2, 3]), ("prompts", [2, 3, 2, 3])])
def test_images_are_those_that_the_teachers_sampler_makes_for_their_seeds_and_texts(ready, monkeypatch, texts, told):
    """A pyramid with captions, told by the rows of their embeddings; the noise passes a network that reads them."""
    monkeypatch.setattr(device, "bf16_is_native", lambda device: False)
    torch.manual_seed(1)
    net = TEACHERS_OF_TEXT.build()
    for weights in net.parameters():
        torch.nn.init.normal_(weights, std=0.1)
    shutil.rmtree(TEACHER)
    TEACHER.mkdir()
    models.save(TEACHER, net.state_dict(), TEACHERS_OF_TEXT)
    rows = torch.tensor([3, 1, 2])  # of the captions of three training images
    put(PYRAMID, latents(count=3) | {"label": rows}, grids={resolution: resolution for resolution in RESOLUTIONS})
    prompt, pooled = torch.randn(4, 2, 8).half(), torch.randn(4, 8).half()
    (PYRAMID / "text").mkdir()
    save_file({"prompt": prompt, "pooled": pooled}, PYRAMID / "text" / "embeddings.safetensors")
    save_file({"pictures": rows, "prompts": torch.tensor([2, 3])}, PYRAMID / "text" / "rows.safetensors")
    solver = SOLVER | {"guidance_scale": 2.0}
    section = Synthetic.model_validate(SECTION | {"images": 4, "batch": 4, "texts": texts, "solver": solver})
    made = synthetic.images(section, TEACHER, PYRAMID)
    worker = synthetic.Generator(section, TEACHER, PYRAMID, "fp32")
    found = made.targets(worker.make(made.seeds, made.labels()))["z32"]

    z = torch.stack([noise_of_seeds([10**9 + k], "teacher", (1, 32, 32))[0] for k in range(4)])
    with torch.inference_mode():
        for t in (1.0, 0.5):  # Euler's two steps, guided by 2
            at = torch.full((4,), t)
            with_text = net.eval()(z, at, prompt[told].float(), pooled[told].float())
            without = net(z, at, prompt[:1].float().expand(4, -1, -1), pooled[:1].float().expand(4, -1))
            z = z - 0.5 * (without + 2 * (with_text - without))
    pixels = ((z * 0.5 + 0.1).clamp(-1, 1) / 2 + 0.5).mul(255).round()
    wanted = (pixels / 127.5 - 1 - 0.1) / 0.5
    assert wanted.std() > 0.1 and (found - wanted).abs().max() < 1.1 / 127.5 / 0.5, "a half may be rounded either way"
    assert ((found - wanted).abs() < 1e-2).float().mean() > 0.95


@pytest.mark.parametrize("native", [False, True])
def test_images_of_the_teacher_are_encoded_as_the_stage_encodes_the_data(native, ready, monkeypatch):
    """With an autoencoder, in the precision of this machine; the sampler casts its weights."""
    from multiscale.networks import autoencoder
    from stages import latents

    monkeypatch.setattr(device, "bf16_is_native", lambda device: native)
    torch.manual_seed(0)
    autoencoder.build(1, 1, (8, 8), 1, 4).save_pretrained(PYRAMID / "autoencoder")
    (PYRAMID / "autoencoder" / "images.json").write_text('{"channels": 1}')
    about = json.loads((TEACHER / "config.json").read_text())
    (TEACHER / "config.json").write_text(json.dumps(about | {"resolution": 16}))
    sealed(TEACHER)
    grids = {resolution: resolution // 2 for resolution in RESOLUTIONS}
    put(
        PYRAMID,
        {f"z{resolution}": torch.zeros(4, 1, grid, grid) for resolution, grid in grids.items()} | LABELS,
        grids=grids,
    )
    shown, generate = [], sampling.generate
    monkeypatch.setattr(sampling, "generate", lambda *given: (shown.append(x) or x for x in generate(*given)))
    made = load_file(images_of(ready, images=4, batch=4) / "targets.safetensors")
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


def test_a_student_is_kept_under_the_code_of_distilling(ready, monkeypatch):
    monkeypatch.setattr(synthetic.keys, "ROOT", Path.cwd())
    found = [distill.job("swd", settings.load()).key]
    for file in ("multiscale/networks/unet.py", "multiscale/methods/swd/teaching.py"):
        edited(file)
        found.append(distill.job("swd", settings.load()).key)
    assert found[0] == found[1] != found[2]


def test_the_teacher_of_a_student_of_its_images_is_judged_by_the_dataset(ready):
    """Guidance moves images away from the data, which would make an able teacher a bad one, and a bad one able."""
    put(PYRAMID, latents({16: 1.0}), grids={resolution: resolution for resolution in RESOLUTIONS})
    images_of(ready, images=3)
    assert {key: tuple(x.shape) for key, x in load_file(MADE / "data.safetensors").items()} == {
        "label": (200,),
        **{f"z{resolution}": (200, 1, 4, 4) for resolution in RESOLUTIONS},
    }
    found = [[teaching.distance(TEACHER, folder, resolution) for folder in (MADE, PYRAMID)] for resolution in (16, 24)]
    assert found[0][0] == pytest.approx(found[0][1], rel=1e-5) and found[0][0] > 10 * teaching.LARGEST > 0.1
    assert found[1][0] == pytest.approx(found[1][1], abs=1e-5)


def test_no_synthetic_images_of_that_name_and_no_teacher_yet_are_one_line(ready):
    done = ready.stage("synthetic", "nope")
    assert (done.returncode, done.stderr) == (
        2,
        "error: synthetic: NAME: 'nope' is not allowed; allowed: one of none\n",
    )
    ready.change({"synthetic.made": SECTION})
    shutil.rmtree(TEACHER)
    before = ready.files()
    done = ready.stage("synthetic", "made")
    assert done.returncode == 2 and ready.files() == before
    said = "the teacher swd-teacher is not trained yet; run dvc repro synthetic@made"
    assert done.stderr == f"error: models/swd-teacher: {said}\n"


def test_a_student_is_distilled_from_images_of_its_teacher_with_all_losses_and_adapters(ready):
    changes = {"dmd.weight": 1.0, "gan.weight": 5e-3, "lora_rank": 4, "fake.updates": 1, "training.images": 128}
    changes["dataset"] = "made"
    images_of(ready, images=50)
    shutil.rmtree(PYRAMID)
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
