"""The stages of images with captions: prompts, text encoder, embeddings; each refusal is one line."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from conftest import ROOT, sealed, write_images
from safetensors.torch import load_file, save_file

from multiscale.core.storage import Table
from multiscale.networks import clip, text
from stages import encoder, recipe
from stages.common import images
from stages.common.paths import CAPTIONS, EMBEDDINGS, IMAGES, PROMPTS
from stages.common.paths import TEXT as TEXTS
from stages.common.settings import load

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TRAINED = {"kind": "train", "width": 8, "layers": 1, "heads": 2, "patch": 8}
TRAINED |= {"training": {"images": 16, "batch": 8, "log_images": 16}}
PICTURES = {"source": "pictures", "path": "data/images.parquet", "split": "test", "column": "caption"}
SAID = ["a small disc", "a disc, large"]


@pytest.fixture
def captioned(project):
    """A project of images with captions, which take turns, and a text encoder `words` to train."""
    write_images(IMAGES, 80)
    frame = pl.read_parquet(IMAGES).with_row_index("row")
    caption = pl.when(pl.col("row") % 2 == 0).then(pl.lit(SAID[0])).otherwise(pl.lit(SAID[1]))
    frame.with_columns(caption=caption).drop("row").write_parquet(IMAGES)
    sealed(IMAGES)
    texts = {"words": {"encoder": TRAINED, "prompts": PICTURES}}
    project.change({"data.source": "files", "data.caption_column": "text", "text": texts})
    return project


def refused(done) -> str:
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def prompts_of(project, **section: object) -> list[tuple]:
    """The rows that the stage `captions` writes with other settings of the prompts; it has to succeed."""
    project.change({f"text.words.prompts.{key}": value for key, value in section.items()})
    done = project.stage("captions", "words")
    assert done.returncode == 0, done.stderr
    return pl.read_parquet(CAPTIONS / "words" / PROMPTS).rows()


def test_prompts_are_the_captions_and_labels_of_a_split(captioned):
    of_split = pl.read_parquet(IMAGES).filter(pl.col("split") == "test").select("caption", "label").rows()
    assert prompts_of(captioned) == of_split and len(of_split) > 3
    assert prompts_of(captioned, limit=2) == of_split[:2]
    validation = pl.read_parquet(IMAGES).filter(pl.col("split") == "validation").select("caption", "label").rows()
    assert prompts_of(captioned, limit=None, split="validation") == validation


def test_prompts_are_the_lines_of_a_text_or_a_column_of_parquet(captioned):
    Path("prompts.txt").write_text("a cat\na d\u00f6g, two\n")
    assert prompts_of(captioned, source="file", path="prompts.txt") == [("a cat", None), ("a d\u00f6g, two", None)]
    pl.DataFrame({"words": ["a", "b"], "kind": [3, None]}).write_parquet("p.bin")
    assert prompts_of(captioned, path="p.bin", column="words") == [("a", None), ("b", None)]
    assert prompts_of(captioned, label_column="kind") == [("a", 3), ("b", None)]


def test_prompts_of_the_hub_come_from_its_snapshot_in_the_order_of_its_files(captioned):
    snapshot = Path(f".scratch/hub/datasets--someone--prompts/snapshots/{COMMIT}")
    for name, words in (("b", ["three"]), ("a", ["one", "two"])):
        (snapshot / "data").mkdir(parents=True, exist_ok=True)
        pl.DataFrame({"caption": words}).write_parquet(snapshot / "data" / f"{name}.parquet")
    hub = {"source": "hub", "path": "data/raw/digits", "url": "someone/prompts", "revision": COMMIT}
    captioned.change({f"text.words.prompts.{key}": value for key, value in hub.items()})
    done = captioned.run("-m", "stages.captions", "words", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert pl.read_parquet(CAPTIONS / "words" / PROMPTS)["prompt"].to_list() == ["one", "two", "three"]
    captioned.change({"text.words.prompts.revision": "other"})
    done = captioned.run("-m", "stages.captions", "words", HF_HUB_OFFLINE="1")
    assert refused(done).startswith("params.yaml: text.words.prompts.url: cannot fetch someone/prompts at other: ")


KEY = "params.yaml: text.words.prompts"
FILE = {"source": "file", "path": "given"}


@pytest.mark.parametrize(
    ("content", "section", "said"),
    [
        (None, {}, f"{KEY}.path: 'given' is not allowed; allowed: an existing Parquet or text file"),
        pytest.param(
            b"one\n \ntwo\n", {}, f"{KEY}: ' ' is not allowed; allowed: a text in every row (row 1", id="blank"
        ),
        (b"", {}, f"{KEY}: holds no prompts"),
        (b"\xff\xfe\xff", {}, f"{KEY}.path: 'given' is not allowed; allowed: Parquet, or text in UTF-8"),
        (b"PAR1PAR1", {}, f"{KEY}.path: 'given' is not allowed; allowed: files that are intact"),
        ({"text": ["a"]}, {}, f"{KEY}.column: 'caption' is not allowed; allowed: a column of text (given has text)"),
        ({"caption": [1]}, {}, f"{KEY}.column: 'caption' is not allowed; allowed: a column of text"),
        ({"caption": ["a", None]}, {}, f"{KEY}: None is not allowed; allowed: a text in every row (row 1 is empty)"),
        (
            {"caption": ["a"]},
            {"label_column": "x"},
            f"{KEY}.label_column: 'x' is not allowed; allowed: a column of integ",
        ),
    ],
)
def test_bad_prompts_are_refused_in_one_line(captioned, content, section, said):
    if isinstance(content, dict):
        pl.DataFrame(content).write_parquet("given")
    elif content is not None:
        Path("given").write_bytes(content)
    captioned.change({f"text.words.prompts.{key}": value for key, value in (FILE | section).items()})
    assert refused(captioned.stage("captions", "words")).startswith(said)
    assert not CAPTIONS.exists() or not list(CAPTIONS.iterdir())


@pytest.mark.parametrize("stage", ["captions", "encoder", "embeddings"])
def test_a_name_that_no_text_has_is_refused(captioned, stage):
    line = refused(captioned.stage(stage, "nope"))
    assert line == f"{stage}: NAME: 'nope' is not allowed; allowed: one of words"


def test_captions_of_images_without_any_are_refused(captioned):
    pl.read_parquet(IMAGES).drop("caption").write_parquet(IMAGES)
    sealed(IMAGES)
    for stage in ("captions", "encoder"):
        assert refused(captioned.stage(stage, "words")).startswith(f"{IMAGES}: the images have no captions")


def untrained(tmp_path: Path) -> None:
    """A text encoder as the stage would leave it."""
    torch.manual_seed(0)
    tokenizer = clip.words(SAID)
    net = clip.build(tokenizer, resolution=32, channels=1, width=8, layers=1, heads=2, patch=8)
    clip.ContrastivePart("words", [0], net, tokenizer).save(tmp_path)


def test_the_encoder_is_trained_on_the_training_images_and_their_captions(captioned):
    done = captioned.stage("encoder", "words")
    assert done.returncode == 0, done.stderr
    made = text.load(TEXTS / "words")
    assert made.length == 4 + 2 and made.tokenizer.get_vocab().keys() >= {"a", "small", "disc", ",", "large"}
    part = encoder.build("text-words", load().text["words"].encoder, 1, 32)
    train = images.captions("train")["caption"].to_list()
    assert torch.equal(part.data[slice(None)]["tokens"], clip.tokens(made.tokenizer, train))
    assert torch.equal(part.data[slice(None)]["pixels"], images.pixel_table("train")[slice(None)]["pixels"])
    history = [json.loads(line) for line in (TEXTS / "words" / "history.jsonl").read_text().splitlines()]
    assert history[-1]["images"] == 16


def test_each_text_is_embedded_once_and_images_and_prompts_name_its_row(captioned):
    untrained(TEXTS / "words")
    sealed(TEXTS / "words")
    Path("prompts.txt").write_text("a large disc\na disc, large\na large disc\n")
    prompts_of(captioned, **FILE | {"path": "prompts.txt"})
    done = captioned.stage("embeddings", "words")
    assert done.returncode == 0, done.stderr
    folder, made = EMBEDDINGS / "words", text.load(TEXTS / "words")
    texts = pl.read_parquet(folder / "texts.parquet")["text"].to_list()
    assert texts == ["", "a large disc", SAID[1], SAID[0]]
    table, rows = Table.open(folder / "embeddings.safetensors")[slice(None)], load_file(folder / "rows.safetensors")
    for mine, its in zip((table["prompt"], table["pooled"]), made.encode(texts)):
        assert torch.equal(mine, its.half().float()) or torch.allclose(mine, its, atol=2e-3)
    train = images.captions("train")["caption"].to_list()
    assert [texts[row] for row in rows["pictures"]] == train and rows["prompts"].tolist() == [1, 2, 1]
    about = json.loads((folder / "statistics.json").read_text())
    assert about == {"length": 6, "width": 8, "pooled": 8}


def test_a_prompt_longer_than_the_encoder_takes_is_refused_and_such_captions_are_cut(captioned):
    untrained(TEXTS / "words")
    sealed(TEXTS / "words")
    Path("prompts.txt").write_text("a disc\na large disc, a large disc\n")
    prompts_of(captioned, **FILE | {"path": "prompts.txt"})
    line = refused(captioned.stage("embeddings", "words"))
    shown = "'a large disc, a large disc' is not allowed; allowed: at most 6 tokens (row 1 has 9)"
    assert line == f"params.yaml: text.words.prompts: {shown}" and not (EMBEDDINGS / "words").exists()
    prompts_of(captioned, limit=1)
    long = pl.lit("a large disc, a large disc")
    pl.read_parquet(IMAGES).with_columns(caption=long).write_parquet(IMAGES)
    sealed(IMAGES)
    done = captioned.stage("embeddings", "words")
    assert done.returncode == 0 and "70 captions are longer than 6 tokens, and were cut" in done.stdout


# --- published encoders

INDEX = {"_class_name": "StableDiffusion3Pipeline", "text_encoder": ["transformers", "CLIPTextModelWithProjection"]}
INDEX |= {"tokenizer": ["transformers", "CLIPTokenizer"], "transformer": ["diffusers", "SD3Transformer2DModel"]}


def published(folder: str, index: dict | None = INDEX) -> Path:
    """A published model with more files than its text encoder needs."""
    for name in ("text_encoder", "transformer"):
        (Path(folder) / name).mkdir(parents=True)
        (Path(folder) / name / "config.json").write_text("{}")
        for weights in ("model.safetensors", "model.fp16.safetensors"):
            save_file({"x": torch.zeros(1)}, Path(folder) / name / weights)
    (Path(folder) / "text_encoder" / "pytorch_model.bin").write_bytes(b"pickle")
    (Path(folder) / "tokenizer").mkdir()
    (Path(folder) / "tokenizer" / "vocab.json").write_text("{}")
    if index is not None:
        (Path(folder) / "model_index.json").write_text(json.dumps(index))
    return Path(folder)


def use(project, **changes: object) -> None:
    section = {"kind": "published", "source": "given", "length": 9, "precision": "fp32"} | changes
    project.change({"text.words.encoder": section})


def test_of_a_published_model_the_text_encoders_alone_are_taken_and_no_pickles(captioned):
    given = published("given")
    use(captioned)
    done = captioned.stage("encoder", "words")
    assert done.returncode == 0, done.stderr
    made = {path.relative_to(TEXTS / "words").as_posix() for path in (TEXTS / "words").rglob("*") if path.is_file()}
    wanted = {"model_index.json", "text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/vocab.json"}
    assert made == wanted | {"checksums.json"}
    assert all((TEXTS / "words" / name).read_bytes() == (given / name).read_bytes() for name in wanted)


@pytest.mark.parametrize("kind", ["published", "train"])
def test_models_know_a_published_encoder_by_the_first_prompt_too(kind, captioned):
    untrained(TEXTS / "words")
    sealed(TEXTS / "words")
    if kind == "published":
        Path("given").mkdir()
        use(captioned)
    Path("prompts.txt").write_text("a large disc\na disc\n")
    prompts_of(captioned, **FILE | {"path": "prompts.txt"})
    assert captioned.stage("embeddings", "words").returncode == 0
    about = json.loads((EMBEDDINGS / "words" / "encoder.json").read_text())
    assert about.pop("prompt", None) == ("a large disc" if kind == "published" else None)
    assert about == {"name": "words", "length": 6, "precision": "fp32" if kind == "published" else "auto"}


def test_a_published_model_of_the_hub_comes_from_its_snapshot(captioned):
    published(f".scratch/hub/models--someone--model/snapshots/{COMMIT}")
    use(captioned, source="someone/model", revision=COMMIT)
    done = captioned.run("-m", "stages.encoder", "words", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert (TEXTS / "words" / "text_encoder" / "model.safetensors").exists()


PLACE = "params.yaml: text.words.encoder.source"


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (None, f"{PLACE}: 'given' is not allowed; allowed: a model in the layout of diffusers, with model_index.json"),
        (
            INDEX | {"_class_name": "DDPMPipeline"},
            f"{PLACE}: 'DDPMPipeline' is not allowed; allowed: a mod",
        ),
        (
            INDEX | {"text_encoder_2": ["transformers", "T5EncoderModel"]},
            "a model with text_encoder_2/*.safetensors",
        ),
    ],
)
def test_a_folder_that_is_no_such_model_is_refused(captioned, index, said):
    published("given", index)
    use(captioned)
    assert said in refused(captioned.stage("encoder", "words")) and not (TEXTS / "words").exists()


# --- the pipeline


def test_the_recipe_with_captions_has_their_stages_and_each_reads_what_dvc_tracks(tmp_path, monkeypatch):
    from dvc.repo import Repo

    monkeypatch.chdir(ROOT)
    experiment = recipe.experiment_of("captions32")
    (tmp_path / "params.yaml").write_text(recipe.render(experiment))
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    Repo.init(".", no_scm=True).close()
    with Repo(".") as repo:
        deps = {stage.addressing: {dep.def_path for dep in stage.deps} for stage in repo.index.stages}
        outs = {Path(out.def_path) for stage in repo.index.stages for out in stage.outs}
    assert deps["captions@digits"] == {"data/code/captions", "data/images.parquet", "params.yaml"}
    assert deps["encoder@digits"] == {"data/code/encoder", "data/images.parquet", "data/pixels", "params.yaml"}
    inputs = {"data/captions/digits", "data/images.parquet", "models/text/digits"}
    assert deps["embeddings@digits"] == {"data/code/embeddings", "params.yaml", *inputs}
    made = {folder / "digits" for folder in (CAPTIONS, TEXTS, EMBEDDINGS)}
    assert made <= outs and made <= recipe.outputs(experiment)
