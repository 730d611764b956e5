"""Published teachers through the stages: fetched from a folder that diffusers wrote, distilled, sampled."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import polars as pl
import pytest
import torch
from conftest import Project, sealed
from safetensors.torch import load_file

from multiscale import model
from multiscale.core.compat import make_torchvision_importable
from multiscale.core.models import ForeignModel
from multiscale.core.storage import write_sealed_json
from multiscale.methods.swd.parts import load_teacher
from multiscale.methods.swd.sampler import load_adapted
from multiscale.networks.autoencoder import kl_class
from multiscale.networks.families import PublishedFamily
from multiscale.networks.published.network import library
from stages.common.errors import BadInput
from stages.common.paths import DECOMPOSED, IMAGES, MEASUREMENTS, MODELS, SAMPLES
from stages.common.settings import load
from stages.reporting import rows

make_torchvision_importable()

SMALL = {"images": 16, "batch": 8, "log_images": 16}
FAST = SMALL | {"images": 32, "lr": 0.05, "warmup_images": 0, "decay": "constant"}  # bf16 shows no small change
ENCODER = {"kind": "train", "width": 8, "layers": 1, "heads": 2, "patch": 8, "training": SMALL}
PROMPTS = {"source": "pictures", "path": "data/images.parquet", "split": "test", "column": "caption"}
NETWORKS = {
    "sd3": {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "caption_projection_dim": 16,
        "pos_embed_max_size": 4,
        "sample_size": 4,
        "in_channels": 4,
        "out_channels": 4,
        "joint_attention_dim": 8,
        "pooled_projection_dim": 8,
    },
    "flux": {
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 16,
        "joint_attention_dim": 8,
        "pooled_projection_dim": 8,
        "axes_dims_rope": [4, 6, 6],
    },
    "sdxl": {
        "block_out_channels": [8, 16],
        "attention_head_dim": [1, 2],
        "transformer_layers_per_block": [1, 1],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 8,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 56,
        "norm_num_groups": 4,
        "size": 32,
    },
}
SHIFT, SCALING = 0.06, 1.5
LORA = "pytorch_lora_weights.safetensors"
LOSSES = {  # all three where the paper has them
    "sd3": {"dmd": {"weight": 1.0}, "gan": {"weight": 5e-3}, "fake": {"updates": 1}},
    "flux": {"gan": {"weight": 5e-3}, "fake": {"updates": 1}},
    "sdxl": {},
}


def network(family: str):
    from pydantic import TypeAdapter

    return TypeAdapter(PublishedFamily).validate_python(NETWORKS[family])


@pytest.fixture
def published(trained, working_copy):
    """A project whose teachers are published, in folders of diffusers: `teacher-FAMILY`, with a `student-FAMILY`."""
    project = Project(working_copy(trained))
    frame = pl.read_parquet(IMAGES).with_row_index("row")
    caption = pl.format("a digit, {}", pl.col("row") % 2)
    frame.with_columns(caption=caption).drop("row").write_parquet(IMAGES)
    sealed(IMAGES)
    torch.manual_seed(0)
    vae = kl_class()(
        in_channels=1,
        out_channels=1,
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        shift_factor=SHIFT,
        scaling_factor=SCALING,
    )
    vae.save_pretrained("weights/vae")
    for family in NETWORKS:
        net = network(family).build()
        net.net.save_pretrained(f"weights/{family}/{net.folder}")
    common = {"kind": "swd", "dataset": "told"}
    student = {
        "block": 1,
        "training": FAST,
        "lora_rank": 2,
        "schedule": {"resolutions": [16, 32], "sigmas": [1.0, 0.7]},
    }
    project.change(
        {
            "data.source": "files",
            "data.caption_column": "text",
            "vae": {"kind": "published", "source": "weights/vae"},
            "latents.resolutions": [16, 32],
            "text": {"words": {"encoder": ENCODER, "prompts": PROMPTS}},
            "decompose": {"told": {"kind": "swd", "source": "latents", "resolutions": [16, 32], "text": "words"}},
            "parts": {
                f"teacher-{family}": {"method": f"teacher-{family}", "network": given, "source": f"weights/{family}"}
                | common
                for family, given in NETWORKS.items()
            },
            "students": {
                f"student-{family}": {"method": f"student-{family}", "teacher": f"teacher-{family}"}
                | student
                | losses
                | common
                for family, losses in LOSSES.items()
            },
            "methods": {
                **{
                    f"teacher-{family}": {"kind": "swd", "solver": {"steps": 2, "guidance_scale": 1.0}}
                    for family in NETWORKS
                },
                **{f"student-{family}": {"kind": "swd"} for family in NETWORKS},
            },
        }
    )
    return project


def run(project, *stages: str) -> None:
    for stage in stages:
        done = project.stage(*stage.split())
        assert done.returncode == 0, f"{stage}\n{done.stderr}"


def theirs(family: str):
    """The network in the folder, as diffusers loads it in bf16."""
    kind = network(family)
    place = Path("weights", family, kind.network.folder)
    return kind.network(library(kind.library).from_pretrained(place, torch_dtype=torch.bfloat16), **beside(kind)).eval()


def beside(kind) -> dict:
    return kind.model_dump(include=set(kind.beside))


def test_a_published_teacher_is_fetched_distilled_and_sampled(published):
    run(published, "vae", "latents 16", "latents 32", "captions words", "encoder words", "embeddings words")
    run(published, "decompose told")
    draws = torch.Generator().manual_seed(1)
    given = [torch.randn(2, *shape, generator=draws) for shape in ((4, 4, 4), (6, 8), (8,))]
    given.insert(1, torch.tensor([0.4, 0.9]))
    for family in NETWORKS:
        teacher, student = f"teacher-{family}", f"student-{family}"
        run(published, f"train {teacher}", f"distill {student}", f"sample {student}")

        weights = load_file(MODELS / teacher / teacher / "model.safetensors")
        assert {each.dtype for each in weights.values()} == {torch.bfloat16}
        net, about = load_teacher(MODELS / teacher / teacher)
        assert not any(each.is_meta for each in [*net.parameters(), *net.buffers()])
        z = torch.full((1, 4, 1, 1), 0.5)
        torch.testing.assert_close(about.latent.apply(z), (z - SHIFT) * SCALING)
        reference = theirs(family)
        with torch.no_grad():
            assert torch.equal(net.eval()(*given), reference(*given)), family

        # The student is the adapter alone, and diffusers reads it.
        folder = MODELS / student / student
        assert {path.name for path in folder.glob("*.safetensors")} == {LORA}
        config = json.loads((folder / "config.json").read_text())
        beneath = folder / config["teacher"] / "model.safetensors"
        assert config["digest"] == hashlib.sha256(beneath.read_bytes()).hexdigest()
        reference.float().net.load_lora_adapter(folder, prefix=reference.folder, weight_name=LORA)  # cast to its type
        adapted, _ = load_adapted(folder)
        with torch.no_grad():
            found, wanted = adapted.float().eval()(*given), reference(*given)
            assert not torch.allclose(found, net(*given).float(), atol=0.02), family
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        made = load_file(SAMPLES / student / "images.safetensors")["pixels"]
        assert made.shape[1:] == (1, 32, 32) and made.float().std() > 0

    run(published, "sample teacher-sd3")  # a row of its own, without a training
    write_sealed_json(MEASUREMENTS / "teacher-sd3.json", {"kid": 0.1})
    row = rows._method("teacher-sd3", load())
    assert (row["kid"], row["train_images"], row["parameters"]) == (
        0.1,
        0,
        sum(p.numel() for p in theirs("sd3").parameters()),
    )
    place = MODELS / "teacher-sd3" / "teacher-sd3" / "model.safetensors"
    for spoil in (lambda: place.write_bytes(place.read_bytes()[:-2] + b"\1\1"), place.unlink):
        spoil()
        with pytest.raises(ForeignModel, match=f"{place}: .*; allowed: the teacher") as error:
            model.load(MODELS / "student-sd3", load().methods["student-sd3"])
        assert "\n" not in str(error.value)
        done = published.stage("sample", "student-sd3")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "allowed: the teacher" in done.stderr


def test_a_folder_that_holds_another_model_is_refused_in_one_line(published):
    shutil.copytree("weights/flux/transformer", "weights/sd3/transformer", dirs_exist_ok=True)
    (DECOMPOSED / "told" / "autoencoder").mkdir(parents=True)
    shutil.copy("weights/vae/config.json", DECOMPOSED / "told" / "autoencoder")
    (DECOMPOSED / "told" / "statistics.json").write_text(
        json.dumps({"classes": 2, "latent": {"shift": [0.0] * 4, "scale": [1.0] * 4}, "grids": {"16": 2, "32": 4}})
    )
    sealed(DECOMPOSED / "told")
    done = published.stage("train", "teacher-sd3")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "_class_name: 'FluxTransformer2DModel' is not allowed; allowed: SD3Transformer2DModel" in done.stderr


@pytest.mark.parametrize("section, stage", [("parts.teacher-sd3", "train teacher-sd3"), ("vae", "vae")])
def test_where_no_hub_can_be_asked_a_line_says_which_folder_to_fill(section, stage, published, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    published.change({f"{section}.source": "them/model", f"{section}.revision": "v1"})
    done = published.stage(*stage.split())
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: params.yaml: {section}.source: cannot fetch them/model at v1: ")
    advice = "`hf download them/model --revision v1 --local-dir FOLDER` fills a folder; bring it here and set "
    assert advice + f"{section}.source: FOLDER" in done.stderr


TEACHER, STUDENT = "parts.teacher-sd3", "students.student-sdxl"
REFUSED = [
    (f"{TEACHER}.source", "them/model", f"{TEACHER}.revision", "a commit or tag, required for the hub"),
    (f"{TEACHER}.training", SMALL, f"{TEACHER}.training", "the keys method, "),
    (f"{TEACHER}.network", {"depth": 2}, f"{TEACHER}.network.depth", "the keys num_layers, "),
    (f"{TEACHER}.network", {"preset": "SD4"}, f"{TEACHER}.network.preset", "one of SD3.5-M, SD3.5-L"),
    ("vae", {"kind": "none"}, "vae.kind", f"published: the latents that {TEACHER} was trained on"),
    (f"{STUDENT}.dmd", {"weight": 1.0}, f"{STUDENT}.dmd.weight", "0.0: SDXL makes no pictures at low resolutions"),
    (f"{STUDENT}.block", 5, f"{STUDENT}.block", "0 to 4, the blocks of teacher-sdxl"),
    (f"{STUDENT}.schedule.resolutions", [32, 64], f"{STUDENT}.schedule.resolutions", "a last resolution of"),
]


@pytest.mark.parametrize("key, value, where, allowed", REFUSED, ids=[f"{key}={value}" for key, value, *_ in REFUSED])
def test_settings_that_do_not_fit_are_refused_in_one_line(key, value, where, allowed, published):
    published.change({key: value})
    with pytest.raises(BadInput) as error:
        load()
    assert str(error.value).startswith(f"params.yaml: {where}: ") and f"; allowed: {allowed}" in str(error.value)


def test_latents_that_a_network_cannot_halve_are_refused(published):
    for each in [key for key in published.read()["parts"] if key != "teacher-sdxl"]:
        name = each.partition("-")[2]
        gone = {f"parts.{each}": ..., f"students.student-{name}": ..., f"methods.{each}": ...}
        published.change(gone | {f"methods.student-{name}": ...})
    published.change({"latents.resolutions": [24, 32], "decompose.told.resolutions": [24, 32]})
    with pytest.raises(
        BadInput, match=r"decompose.told.resolutions: \[24, 32\] is not allowed; allowed: multiples of 16"
    ):
        load()
