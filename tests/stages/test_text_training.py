"""A text-to-image teacher and its student through the stages: each image is made for the caption that it is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from conftest import as_yaml, called, sealed
from PIL import Image

from multiscale import model, sampling
from multiscale.condition import Condition
from multiscale.core.storage import Table, read_json
from multiscale.networks import text
from stages.common.errors import BadInput
from stages.common.paths import DECOMPOSED, HELD_OUT, IMAGES, MEASUREMENTS, MODELS, SAMPLES
from stages.common.paths import TEXT as TEXTS
from stages.common.settings import load

SAID = ["a small disc", "a disc, large"]
SMALL = {"images": 16, "batch": 8, "log_images": 16}
ENCODER = {"kind": "train", "width": 8, "layers": 1, "heads": 2, "patch": 8, "training": SMALL}
PROMPTS = {"source": "pictures", "path": "data/images.parquet", "split": "test", "column": "caption"}
NETWORK = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "caption_projection_dim": 16,
    "pos_embed_max_size": 8,
    "sample_size": 16,
    "joint_attention_dim": 8,
    "pooled_projection_dim": 8,
}


@pytest.fixture
def told(trained, working_copy):
    """A project of images with captions, whose parts are a teacher `teacher` of an MMDiT and its student `student`."""
    from conftest import Project

    project = Project(working_copy(trained))
    frame = pl.read_parquet(IMAGES).with_row_index("row")
    caption = pl.when(pl.col("row") % 2 == 0).then(pl.lit(SAID[0])).otherwise(pl.lit(SAID[1]))
    frame.with_columns(caption=caption).drop("row").write_parquet(IMAGES)
    sealed(IMAGES)
    given = project.read()
    channels = given["vae"]["latent_channels"]
    network = NETWORK | {"in_channels": channels, "out_channels": channels}
    common = {"kind": "swd", "dataset": "told"}
    student = {"method": "student", "teacher": "teacher", "block": 0, "training": SMALL, "lora_rank": 2}
    schedule = {"resolutions": [24, 32], "sigmas": [1.0, 0.7]}
    project.change(
        {
            "data.source": "files",
            "data.caption_column": "text",
            "text": {"words": {"encoder": ENCODER, "prompts": PROMPTS}},
            "decompose.told": {"kind": "swd", "source": "latents", "resolutions": [24, 32], "text": "words"},
            "parts.teacher": {"method": "teacher", "network": network, "training": SMALL} | common,
            "students.student": student | {"schedule": schedule, "dmd": {"weight": 0.0}} | common,
            "methods.teacher": {"kind": "swd", "solver": {"steps": 2, "guidance_scale": 2.0}},
            "methods.student": {"kind": "swd"},
        }
    )
    return project


def run(project, *stages: str) -> None:
    for stage in stages:
        done = project.stage(*stage.split())
        assert done.returncode == 0, f"{stage}\n{done.stderr}"


def test_images_are_made_for_the_prompts_that_they_are_told(told):
    run(told, "captions words", "encoder words", "embeddings words", "decompose told", "train teacher")
    run(told, "distill student", "sample teacher", "sample student")
    encoder = text.load(TEXTS / "words")
    frame = pl.read_parquet(IMAGES)

    # In training: the label of an image is the row of its caption.
    table = Table.open(DECOMPOSED / "told" / "text" / "embeddings.safetensors", "prompt", "pooled")
    for split, name in (("train", "targets.safetensors"), ("validation", HELD_OUT)):
        labels = Table.open(DECOMPOSED / "told" / name, "label")[slice(None)]["label"]
        captions = frame.filter(pl.col("split") == split)["caption"].to_list()
        prompt, pooled = encoder.encode(captions)
        assert len(labels) == len(captions) > 1
        torch.testing.assert_close(table[labels]["prompt"], prompt, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(table[labels]["pooled"], pooled, rtol=2e-3, atol=2e-3)
    for method in ("teacher", "student"):
        rows = pl.read_ndjson(MODELS / method / method / "history.jsonl", infer_schema_length=None)
        assert rows["validation_loss"].drop_nulls().is_finite().sum() == 2, "after each batch of 8 of 16"

    # In sampling: image k is that of the prompt at its stride, and has the class of the prompt.
    section = load().sample
    prompts = frame.filter(pl.col("split") == "test").select("caption", "label").rows()
    chosen = [prompts[k * len(prompts) // section.images] for k in range(section.images)]
    said = [caption for caption, _ in chosen]
    assert len(set(said)) == 2
    given, null = (tuple(each.half().float() for each in of) for of in (encoder.encode(said), encoder.null()))
    seeds = list(range(section.first_seed, section.first_seed + section.images))
    for name in ("teacher", "student"):
        made = Table.open(SAMPLES / name / "images.safetensors")[slice(None)]
        assert made["label"].tolist() == [label for _, label in chosen]
        sampler = model.load(MODELS / name, load().methods[name], section.precision)
        sampler.conditioner = lambda index: Condition(tuple(each[index] for each in given), null)
        wanted = torch.cat(list(sampling.generate(sampler, seeds, torch.arange(section.images), section.batch)))
        off = (made["pixels"].int() - wanted.int()).abs()
        assert off.max() <= 1, name  # an encoder's last digits depend on the batch

    # In evaluation: the prompts of the samples are known, and those of held-out images.
    run(told, "evaluate teacher", "floor real")
    for name in ("teacher", "real"):
        found = read_json(MEASUREMENTS / f"{name}.json")
        assert found["protocol"]["prompts"] == 2 and found["diversity"] > 0 and found["diversity_se"] > 0
    shown = pl.read_parquet(SAMPLES / "teacher" / "prompts.parquet")["prompt"].to_list()
    assert shown == said and "diversity" not in read_json(MEASUREMENTS / "msf.json")

    # From a shell, the encoder of the stages makes the same image of the same prompt and seed.
    solver = ["--set", "solver.steps=2", "solver.guidance_scale=2.0"]
    asked = ["--prompts", said[0], "--seeds", str(seeds[0]), "--out", "new/", *solver]
    assert called("multiscale", "sample", "models/teacher", *asked).returncode == 0
    image = np.asarray(Image.open("new/prompt-1-seed-0.png"))[..., 0].astype(int)
    made = Table.open(SAMPLES / "teacher" / "images.safetensors")[slice(1)]["pixels"][0, 0]
    assert np.abs(image - made.int().numpy()).max() <= 2


TEACHER = "parts.teacher.network"
REFUSED = [
    ("decompose.told.text", "others", "null, or one of words, a key of `text`"),
    ("decompose.told.text", ..., "a dataset with `text`, which an MMDiT reads"),
    (f"{TEACHER}.caption_projection_dim", 8, "num_attention_heads * attention_head_dim (16)"),
    (f"{TEACHER}.pos_embed_max_size", 3, "at least 4, the tokens on an edge of the latents"),
    (f"{TEACHER}.patch_size", 3, "a divisor of the latent resolution"),
    (f"{TEACHER}.num_layers", 0, "greater than 0"),
    (TEACHER, {"depth": 1, "width": 8, "heads": 2, "patch": 2}, "a dataset without text, or num_layers, ..."),
    ("students.student.block", 2, "0 to 1, the blocks of teacher"),
    ("students.student.dataset", "pyramid", "a dataset with the text of its teacher (words)"),
]


@pytest.mark.parametrize("key, value, allowed", REFUSED, ids=[f"{key}={value}" for key, value, _ in REFUSED])
def test_text_that_does_not_fit_is_refused_in_one_line(key, value, allowed, told):
    told.change({key: value})
    with pytest.raises(BadInput) as error:
        load()
    where = "parts.teacher.dataset" if value is ... else key
    assert str(error.value).startswith(f"params.yaml: {where}: ") and f"; allowed: {allowed}" in str(error.value)


def test_a_trial_of_a_sweep_that_decomposes_anew_reads_the_texts_of_the_pipeline(told):
    from flows.sweeps import space, trial

    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    sweep = {
        "method": "teacher",
        "metric": "kid",
        "images": 12,
        "space": {"methods.teacher.solver.steps": {"grid": [1]}},
    }
    Path("params/sweeps/told.yaml").write_text(as_yaml(sweep))
    plan, root = space.load("told"), Path.cwd()
    with pytest.raises(BadInput, match="^data/latents/text: missing; an earlier stage makes it: run dvc repro$"):
        trial.Pipeline.read(plan)
    run(told, "captions words", "encoder words", "embeddings words")
    pipeline = trial.Pipeline.read(plan)
    assert not any(stage.current for stage in pipeline.stages.values()), "DVC knows of none"
    found = trial.run("teacher", plan.trial({}), pipeline, root / ".scratch/sweeps/told", lambda *row: None)
    assert found["metrics"]["diversity"] > 0
