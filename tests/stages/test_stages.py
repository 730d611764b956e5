"""The stages as commands: help texts, one-line errors, a full disk, and the report."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib
import io
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, Project, sealed, write_images, write_set
from PIL import Image
from ruamel.yaml import YAML
from safetensors.numpy import save_file

from multiscale import adversarial
from multiscale.core.storage import Table
from multiscale.methods.wmgm import bands
from stages import summary
from stages.common import settings, timings
from stages.common.paths import COSTS, SAMPLES
from stages.reporting import leaderboard, page


def commands() -> dict[str, list[str]]:
    """The stages of dvc.yaml: module -> the arguments that DVC passes."""
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].values()
    lines = [stage.get("do", stage)["cmd"].split() for stage in stages]
    assert all(line[:2] == ["python", "-m"] and line[2].startswith("stages.") for line in lines)
    return {line[2].removeprefix("stages."): line[3:] for line in lines}


COMMANDS = commands()
GIVEN = {"latents": "32", "decompose": "full", "train": "dit", "distill": "swd", "sample": "dit", "evaluate": "dit"}
GIVEN["floor"] = "real"
# Of images with captions (test_text_stages.py), and of a teacher's images (test_swd_stages.py): not in `embedded`.
ABSENT = ("captions", "encoder", "embeddings", "synthetic")
GIVEN |= dict.fromkeys(ABSENT, "none")
TAKING = sorted(name for name, arguments in COMMANDS.items() if arguments)


def refused(done: subprocess.CompletedProcess, *fragments: str, code: int = 2) -> None:
    """Asserts one line on stderr with the fragments, and nothing on stdout."""
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert done.stderr.startswith("error: ") and all(fragment in done.stderr for fragment in fragments), done.stderr


# --- what a stage says of itself


def test_this_file_knows_an_argument_for_each_stage_that_takes_one():
    assert sorted(GIVEN) == TAKING


@pytest.mark.parametrize("name", [*COMMANDS, "recipe"])
def test_help_says_what_the_stage_does_and_what_it_takes(project, name):
    done = project.stage(name, "--help")
    assert done.returncode == 0 and not done.stderr
    told = " ".join(done.stdout.split())
    assert done.stdout.startswith(f"usage: python -m stages.{name} [-h]")
    about = importlib.import_module(f"stages.{name}").__doc__
    assert len(about.split()) > 8 and " ".join(about.split()) in told
    described = done.stdout.partition("positional arguments:\n")[2].partition("\n\n")[0].splitlines()
    assert len(described) == (name in TAKING or name == "recipe")
    assert all(re.match(r"  \w+ {2,}\w+ \w+ ", line) for line in described), "an argument without a word on what it is"
    assert "params.yaml" in told


@pytest.mark.parametrize("name", TAKING)
@pytest.mark.parametrize("argument", ["nope", "", "../dit"])
def test_a_bad_argument_is_one_line_that_says_what_is_allowed(project, name, argument):
    before = project.files()
    done = project.stage(name, argument)
    refused(done, f": {argument!r} is not allowed; allowed: ")
    assert GIVEN[name] in done.stderr or name == "evaluate"
    assert project.files() == before


def test_a_bad_argument_ends_the_process_with_exit_code_2(project):
    done = project.run("-m", "stages.train", "nope")
    refused(done, "train: PART: 'nope' is not allowed; allowed: one of dit, msf-0, msf-1")


@pytest.mark.parametrize("name, arguments", [(name, [*COMMANDS[name], "more"]) for name in COMMANDS])
def test_an_argument_too_many_ends_with_the_usage_and_exit_code_2(project, name, arguments):
    ended_by_the_usage(project, name, arguments)


@pytest.mark.parametrize("name", TAKING)
def test_an_argument_too_few_ends_with_the_usage_and_exit_code_2(project, name):
    ended_by_the_usage(project, name, [])


def ended_by_the_usage(project: Project, name: str, arguments: list[str]) -> None:
    before = project.files()
    done = project.stage(name, *arguments)
    assert done.returncode == 2 and not done.stdout and project.files() == before
    usage, *_, error = done.stderr.splitlines()
    assert usage.startswith(f"usage: python -m stages.{name} ") and error.startswith(f"python -m stages.{name}: error:")


# --- inputs that are not there

# What each stage reads first in a project where nothing has run.
FIRST = {
    "vae": "data/pixels/train",
    "latents": "data/pixels/train",
    "decompose": "data/latents/32",
    "train": "data/decomposed/full",
    "distill": "models/swd-teacher",
    "sample": "models/dit: dit is not trained yet; run dvc repro sample@dit",
    "classifier": "data/images.parquet",
    "reference": "data/images.parquet",
    "evaluate": "samples/dit: dit is not sampled yet; run dvc repro evaluate@dit",
    "floor": "data/images.parquet",
    "timing": "samples/msf",
    "report": "data/images.parquet",
}


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"code", "download", *ABSENT}))
def test_a_missing_input_is_one_line_that_names_it_and_nothing_is_written(project, name):
    before = project.files()
    refused(project.stage(name, *([GIVEN[name]] if name in GIVEN else [])), FIRST[name])
    assert project.files() == before


# --- a full disk


@pytest.fixture
def small_disk(project) -> Iterator[Callable]:
    """Moves a folder of the project onto a disk of the given size in KiB."""
    mounted = []

    def small_disk(folder: str, size: int) -> Path:
        target, aside = Path(folder), Path(f"{folder}.aside")
        target.mkdir(exist_ok=True)
        target.rename(aside)
        target.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(target.absolute())]
        done = subprocess.run(mount, capture_output=True, text=True) if shutil.which("mount") else None
        if done is None or done.returncode:
            pytest.skip(f"a small disk needs `mount` and root: {done.stderr.strip() if done else 'no mount'}")
        mounted.append(str(target.absolute()))
        shutil.copytree(aside, target, dirs_exist_ok=True)
        return target

    yield small_disk
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def ended_by_the_full_disk(done: subprocess.CompletedProcess) -> None:
    """Asserts one line on stderr, possibly after a progress bar."""
    *_, line = done.stderr.splitlines()
    assert done.returncode == 1 and not done.stdout, done.stderr
    assert line.startswith("error: the disk is full (") and "No space left on device" in line
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_a_disk_that_fills_up_is_one_line_and_leaves_no_half_written_file(project, small_disk):
    folder = small_disk("data", 300)
    before = project.files()
    ended_by_the_full_disk(project.run("-m", "stages.download"))
    after = {name: content for name, content in project.files().items() if not name.startswith(".scratch/shards/")}
    assert after == before and not list(folder.glob(".*")), "whole shards are taken over by the next run"


def test_a_result_from_before_outlives_a_full_disk(project, small_disk):
    folder = small_disk("data", 300)
    (folder / "images.parquet").write_bytes(b"of before")
    ended_by_the_full_disk(project.stage("download"))
    assert (folder / "images.parquet").read_bytes() == b"of before"


@pytest.mark.parametrize("source", ["url", "tar"])
def test_a_scratch_folder_that_fills_up_is_a_full_disk_and_no_bad_source(project, small_disk, source):
    np.save("noise.npy", np.random.default_rng(0).integers(0, 256, 400_000, dtype=np.uint8))
    Image.new("L", (32, 32)).save("a.png")
    if source == "url":
        with zipfile.ZipFile("set.zip", "w") as archive:
            archive.write("noise.npy")
        url = Path("set.zip").absolute().as_uri()
        project.change(
            {
                "data.source": "url",
                "data.url": url,
                "data.sha256": hashlib.sha256(Path("set.zip").read_bytes()).hexdigest(),
            }
        )
    else:
        subprocess.run(["tar", "cf", "set.tar", "a.png", "noise.npy"], check=True)
        project.change({"data.source": "files", "data.path": "set.tar"})
    scratch = small_disk(".scratch", 100)
    ended_by_the_full_disk(project.stage("download"))
    assert not [path for path in scratch.rglob("*") if path.is_file()]


def test_switching_on_a_full_disk_keeps_the_experiment(project, small_disk, monkeypatch):
    folder = small_disk("params", 220)
    experiment = Path(shutil.copy(settings.EXPERIMENT, folder))
    monkeypatch.setattr("stages.recipe.EXPERIMENT", experiment)
    kept = experiment.read_bytes()
    with pytest.raises(OSError), open(folder / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    refused(project.stage("recipe", "embedded"), "the disk is full", code=1)
    assert experiment.read_bytes() == kept and not list(folder.glob(".*"))


# --- the report

FIELDS = "method recipe kid kid_se fd label_accuracy network_calls flops_per_image parameters train_images"
FIELDS += " protocol memorised copies works_on trainings kid_test kid_second"
PROTOCOL = {
    "extractor": "efficientnet-lite0",
    "metric": "EffLite0",
    "resize": "bicubic antialiased to 128",
    "features": 1280,
    "second_extractor": "efficientnet-lite2",
    "second_metric": "EffLite2",
    "second_resize": "bicubic antialiased to 128",
    "n": 40,
    "labels": "uniform",
    "seeds": "0..39",
    "n_reference": 60,
    "reference": "0123456789abcdef",
    "n_test": 50,
    "test": "123456789abcdef0",
    "estimator": "KID over all pairs",
    "is_splits": 10,
    "prc_neighborhood": 3,
}
OTHER = {  # each of these makes another protocol
    "extractor": "inception-v3-compat",
    "metric": "Inception",
    "resize": "TensorFlow bilinear to 299",
    "features": 2048,
    "second_extractor": "efficientnet-lite0",
    "second_metric": "EffLite0",
    "second_resize": "bicubic antialiased to 260",
    "n": 41,
    "labels": "data",
    "seeds": "7..46",
    "n_reference": 61,
    "reference": "fedcba9876543210",
    "n_test": 51,
    "test": "0fedcba987654321",
    "estimator": "KID over 5 subsets of 21",
    "is_splits": 5,
    "prc_neighborhood": 5,
}
METRICS = {
    "dit": {"kid": 0.25, "kid_se": 0.01, "fd": 120.0, "label_accuracy": 0.5, "memorised": 0.01, "kid_second": 0.5},
    "msf": {"kid": 0.125, "kid_se": 0.02, "fd": 110.0, "label_accuracy": 0.75, "memorised": 0.0, "kid_second": 0.25},
}
FLOORS = {
    "real": {"kid": 0.0078125, "kid_se": 0.001, "fd": 20.0, "label_accuracy": 0.9375, "memorised": 0.02},
    "autoencoder": {"kid": 0.0625, "kid_se": 0.002, "fd": 60.0, "label_accuracy": 0.875, "memorised": 0.0},
}
REST = {"inception_score": 2.0, "inception_score_std": 0.1, "precision": 0.5, "recall": 0.25, "copies": False}
REST |= {"kid_test": 0.3, "kid_test_se": 0.03, "kid_second_se": 0.05}
COST = {"network_calls": 8, "flops_per_image": 2.5e9, "parameters": 1234567}
TIMED = {
    "seconds_per_image": 0.5,
    "processor_seconds_per_image": 0.25,
    "spread": 0.125,
    "busy_rounds": 1,
    "seconds_per_image_batch_1": 1.5,
}
SAMPLING = {
    "device": "an abacus",
    "load_average": 1.5,
    "batch": 20,
    "rounds": 3,
    "reference": {"flops": 4.8e9, "seconds": 0.0625},
    "methods": {name: TIMED for name in METRICS},
}
SECONDS = {"dit": 30.0, "msf-0": 10.5, "msf-1": 20.25}


def put_json(path: str, value: dict) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(value))


def put_measured(name: str, metrics: dict, protocol: dict) -> None:
    """Writes the metrics of a method or floor, and the grid of its images."""
    put_json(f"reports/measurements/{name}.json", {**metrics, "protocol": protocol})
    sealed(f"reports/measurements/{name}.json")
    for path in (f"samples/{name}/grid.png", f"reports/neighbours/{name}.png"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 7), len(path)).save(path)
    draws = np.random.default_rng(len(name))
    rows = {"pixels": draws.integers(0, 256, (40, 1, 32, 32), np.uint8), "label": np.arange(40) % 10}
    save_file(rows, f"samples/{name}/images.safetensors")
    if name not in FLOORS:
        Path("reports/paired").mkdir(exist_ok=True)
        images = {"seed": np.arange(40), "label": rows["label"], "kid": draws.normal(0, 0.1, 40)}
        pl.DataFrame(images | {"correct": draws.random(40) < 0.5}).write_parquet(f"reports/paired/{name}.parquet")


@pytest.fixture
def measured(project) -> Callable:
    """Writes the inputs of the report; the metrics and protocol of the second method can be changed."""

    given = project.read()
    others = [f"methods.{name}" for name in given["methods"] if name not in METRICS]
    others += [f"parts.{name}" for name, part in given["parts"].items() if part["method"] not in METRICS]
    others += [f"students.{name}" for name in given["students"]]
    project.change(dict.fromkeys(others, ...))

    def measured(metrics: dict | None = None, **protocol: object) -> Project:
        for method, own in METRICS.items():
            mine = method == "msf"
            found = {**REST, **own, **(metrics or {} if mine else {})}
            put_measured(method, found, {**PROTOCOL, **(protocol if mine else {})})
            put_json(f"samples/{method}/costs.json", COST)
            timings.write(f"sample-{method}", SAMPLES / method / "costs.json", {"peak_memory_bytes": 3 * 2**20})
            Image.new("L", (9, 7), 50 + len(method)).save(f"samples/{method}/strip.png")
            sealed(f"samples/{method}")
        for floor, own in FLOORS.items():
            put_measured(floor, {**REST, **own, "kid_second": 0.01, "kid_test": None}, {**PROTOCOL, "seeds": None})
        put_json("reports/metrics/classifier.json", {"held_out_accuracy": 0.96875})
        sealed("reports/metrics/classifier.json")
        write_images(Path("data/images.parquet"), 10)
        put_json("reports/costs.json", dict.fromkeys(METRICS, COST))
        timings.write("sampling", COSTS, SAMPLING)
        for part, seconds in SECONDS.items():
            folder = Path("models", part.partition("-")[0], part)
            folder.mkdir(parents=True, exist_ok=True)
            rows = [{"images": 64, "validation_loss": 4.0}]
            rows += [{"images": 128 * k, "loss": 1 / k, "lr": 1e-3, "grad_norm": 1.0} for k in (1, 2)]
            rows += [{"images": 256, "validation_loss": 3.0}]
            (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (folder / "autoencoder").mkdir(exist_ok=True)
            sealed(folder)
            timings.write(part, folder / "history.jsonl", {"train_seconds": seconds})
        return project

    return measured


class Page(HTMLParser):
    """The tables of an HTML page as rows of text, and the attributes of its pictures."""

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.pictures, self.tags, self.cell = [], [], set(), False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.add(tag)
        self.cell = self.cell or tag in ("th", "td")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.pictures.append(dict(attributes))

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.tables[-1][-1][-1] += data


def section(name: str) -> str:
    """The HTML of a section of the page, or of its header."""
    text = Path("reports/report.html").read_text()
    whole = "<header>.*?</header>" if name == "header" else f'<section id="{name}">.*?</section>'
    return re.search(whole, text, re.DOTALL)[0]


def whole() -> Page:
    """The page without its scripts, which hold tags in strings."""
    text = Path("reports/report.html").read_text()
    return Page(re.sub("<script.*?</script>|<!--.*?-->", "", text, flags=re.DOTALL))


def charts() -> dict:
    """What the charts of the page draw."""
    text = Path("reports/report.html").read_text()
    return json.loads(re.search('<script type="application/json" id="data">(.*?)</script>', text)[1])


def made(project: Project) -> Page:
    """The leaderboard of the page."""
    done = project.stage("report")
    assert done.returncode == 0, done.stderr
    return Page(section("leaderboard"))


def tables_of(markdown: str) -> list[list[str]]:
    """The methods in each table of a Markdown text."""
    tables = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    return [[row.split("|")[1].strip() for row in table[2:]] for table in tables]


def test_bands_of_no_training_image_are_refused_and_nothing_is_written(project):
    write_set(Path("data/images.parquet"), ["test"], np.zeros((1, 1, 32, 32), np.uint8), [0])
    before = project.files()
    refused(project.stage("decompose", "wavelet"), "data/pixels: the data set has no images of split 'train'")
    assert project.files() == before


def test_the_leaderboard_holds_what_was_measured(measured):
    made(measured())
    rows = json.loads(Path("reports/leaderboard.json").read_text())
    assert list(rows) == ["msf", "dit", "real", "autoencoder"], "the best first, then the floors"
    for method in METRICS:
        row = rows[method]
        assert set(FIELDS.split()) <= set(row) and (row["method"], row["recipe"]) == (method, "tiny")
        assert row.items() >= {**METRICS[method], **REST, **COST}.items()
        assert (row["kind"], row["protocol"], row["trainings"]) == ("method", PROTOCOL, 1)
    for floor, own in FLOORS.items():
        assert rows[floor].items() >= own.items() and rows[floor]["kind"] == "floor"
    assert rows["dit"]["train_images"] == 256 and rows["msf"]["train_images"] == 512
    frame = pl.read_parquet("reports/leaderboard.parquet")
    assert frame["method"].to_list() == list(rows)
    assert {row["method"]: row["kid"] for row in frame.to_dicts()} == {name: row["kid"] for name, row in rows.items()}


def test_rows_of_one_protocol_are_one_table_the_best_first(measured):
    tables = made(measured()).tables
    assert len(tables) == 1 and [row[0] for row in tables[0]] == ["method", "msf", "dit", "real", "autoencoder"]
    assert tables_of(Path("reports/leaderboard.md").read_text()) == [["msf", "dit", "*real*", "*autoencoder*"]]


@pytest.mark.parametrize("field", PROTOCOL)
def test_rows_of_different_protocols_are_never_in_one_group(field):
    row = {"kind": "method", "kid": 0.5, "copies": False}
    dit = row | {"method": "dit", "protocol": PROTOCOL}
    msf = row | {"method": "msf", "protocol": PROTOCOL | {field: OTHER[field]}}
    real = {"method": "real", "kind": "floor", "protocol": PROTOCOL | {"seeds": None, "n": 30, "labels": None}}
    found = {group.methods[0]["method"]: group for group in leaderboard.groups([dit, msf, real])}
    assert all(len(group.methods) == 1 for group in found.values()) and len(found) == 2
    shared = field in ("n", "seeds", "labels")  # which are of the images, not of the measure
    assert (found["dit"].floors, found["msf"].floors) == ([real], [real] if shared else [])
    assert found["msf"].protocol[field] == OTHER[field]


def test_rows_of_different_protocols_are_never_in_one_table(measured):
    tables = [[row[0] for row in table[1:]] for table in made(measured(reference=OTHER["reference"])).tables]
    assert sorted(tables) == [["dit", *FLOORS], ["msf"]]
    found = tables_of(Path("reports/leaderboard.md").read_text())
    assert sorted([name.strip("*") for name in table] for table in found) == sorted(tables)


def test_a_distance_bears_the_name_of_its_extractor_and_is_not_called_fid(measured):
    tables = made(measured(metric="Inception")).tables
    for name in ("KID", "FD", "IS", "precision", "recall"):
        heads = sorted(next(head for head in table[0] if head.startswith(name)).strip("*") for table in tables)
        assert heads == [f"{name}-EffLite0", f"{name}-Inception"]
    results = "".join(map(section, ("header", "leaderboard", "pareto", "fair", "protocol")))
    assert "FID" not in re.sub('base64,[^"]+', "", results) + Path("reports/leaderboard.md").read_text()


def test_each_table_says_its_protocol_beside(measured):
    made(measured(n=41, seeds="0..40"))
    for text in (Path("reports/leaderboard.md").read_text(), Path("reports/report.html").read_text()):
        for fragment in ("efficientnet-lite0", "0..39", "0..40", "all pairs", "0123456789abcdef", "bicubic"):
            assert fragment in text


def test_the_page_holds_its_pictures_and_points_nowhere(measured):
    made(measured())
    found = whole()
    assert "iframe" not in found.tags and "http" not in re.sub(
        '<script.*?</script>|<!--.*?-->|base64,[^"]+', "", Path("reports/report.html").read_text(), flags=re.DOTALL
    )
    shown = [(picture["alt"], picture["src"]) for picture in found.pictures]
    assert all(address.startswith("data:image/webp;base64,") for _, address in shown)
    sheets = {f"{method}: strip" for method in METRICS}
    sheets |= {f"{name}: {kind}" for name in (*METRICS, *FLOORS) for kind in ("grid", "neighbours")}
    assert {alt for alt, _ in shown} == sheets | {f"{name}: samples" for name in (*METRICS, *FLOORS)}
    for alt, address in shown:
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
            assert image.size == ((9, 7) if alt in sheets else (10 * 33 - 1, 32)), alt


NASTY = """<script>alert("x")</script><b>&amp;'"""


def test_a_name_on_the_page_is_text_and_never_markup(measured):
    project = measured()
    project.change({"recipe": NASTY})
    table = pq.read_table("data/images.parquet")
    names = json.dumps([NASTY] * 10)
    pq.write_table(table.replace_schema_metadata({"classes": names}), "data/images.parquet")
    sealed("data/images.parquet")
    made(project)
    heads = [html.escape(NASTY, quote=True).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")]
    for name in ("header", "samples"):
        assert {"script", "b"}.isdisjoint(Page(section(name)).tags) and heads[0] in section(name)
    rest = charts() | {"boards": []}
    assert rest["curves"], "the data are still JSON"


def test_data_of_the_charts_end_no_script():
    found = page.Page(**dict.fromkeys(page.Page.__dataclass_fields__, ()) | {"charts": {"part": NASTY}}).data
    assert "<" not in found and json.loads(found) == {"part": NASTY}


def test_the_page_names_the_classes_where_the_data_does(measured):
    project = measured()
    made(project)
    assert "classes:" not in Path("reports/report.html").read_text()
    table = pq.read_table("data/images.parquet")
    pq.write_table(
        table.replace_schema_metadata({"classes": json.dumps(["boot", "<b>", *"cdefghij"])}), "data/images.parquet"
    )
    sealed("data/images.parquet")
    made(project)
    assert "10 classes: boot, &lt;b&gt;, c, d, e, f, g, h, i, j</p>" in Path("reports/report.html").read_text()


def test_the_curves_of_all_parts_are_in_one_file(measured):
    made(measured())
    rows = pl.read_csv("reports/training.csv")
    assert rows.columns == ["part", "images", "loss", "lr", "grad_norm"]
    assert rows.filter(pl.col("part") == "msf-1")["loss"].to_list() == [1.0, 0.5]
    assert rows["part"].unique().sort().to_list() == ["dit", "msf-0", "msf-1"]
    held_out = pl.read_csv("reports/validation.csv")
    assert held_out.columns == ["part", "images", "validation_loss"]
    assert held_out.filter(pl.col("part") == "msf-1").rows() == [("msf-1", 64, 4.0), ("msf-1", 256, 3.0)]


def test_the_galleries_hold_the_pictures_of_each_method_and_no_other(measured):
    project = measured()
    Path("reports/galleries").mkdir(parents=True)
    Path("reports/galleries/ssd-grid.png").write_bytes(b"left over")
    made(project)
    names = {path.name for path in Path("reports/galleries").iterdir()}
    wanted = {f"{name}-{kind}.png" for name in (*METRICS, *FLOORS) for kind in ("grid", "neighbours")}
    assert names == wanted | {f"{name}-strip.png" for name in METRICS}


def test_the_report_shows_the_bands_their_theory_and_a_collapsed_generator(measured):
    project = measured()
    images = torch.randint(0, 256, (8, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    table = Table({name: band.numpy() for name, band in bands.decompose_images(images, "haar", 1).items()})
    put_json("data/decomposed/wavelet/statistics.json", bands.statistics(table, "haar", 1))
    still = adversarial.diversity(lambda k: torch.ones(4, 3, 2, 2), torch.randn(4, 3, 2, 2))
    put_json("models/msf/msf-1/examined.json", {"diversity": [{"level": 1, **still}]})
    sealed("data/decomposed/wavelet"), sealed("models/msf/msf-1")
    done = project.stage("report")
    assert done.returncode == 0, done.stderr
    assert "mode collapse: msf-1 at level 1 varies 0 times as much as the data" in done.stdout
    assert "mode collapse: msf-1 at level 1" in Path("reports/report.html").read_text()
    statistics, diversity = (table for table in whole().tables if table[0][0] in ("band", "part"))
    assert [row[0] for row in statistics] == ["band", "ll", "pixels", "details-1"]
    assert diversity[1][:3] == ["msf-1", "1", "0"]
    for name in ("conditioning", "euler-steps"):
        assert Image.open(f"reports/galleries/wavelet-{name}.png").width > 400


def test_a_set_without_classes_has_no_label_accuracy(measured):
    tables = made(measured({"label_accuracy": None})).tables
    assert list(columns(tables[0], "label accuracy").values())[:2] == ["-", "50.0%"]


def test_the_report_of_the_same_numbers_is_the_same_to_the_last_bit(measured):
    project = measured()
    made(project)
    before = project.files()
    made(project)
    assert project.files() == before


@pytest.mark.parametrize(
    "path",
    [
        "samples/msf/grid.png",
        "reports/costs.json",
        "models/msf/msf-0/history.jsonl",
        "reports/measurements/real.json",
        "reports/neighbours/msf.png",
        "reports/paired/msf.parquet",
        "samples/msf/images.safetensors",
    ],
)
def test_a_report_without_one_of_its_inputs_is_one_line_that_names_it(measured, path):
    project = measured()
    Path(path).unlink()
    refused(project.stage("report"), path)
    assert not Path("reports/report.html").exists()


def test_an_empty_folder_of_samples_is_one_line(measured):
    project = measured()
    shutil.rmtree("samples/msf")
    Path("samples/msf").mkdir()
    refused(project.stage("report"), "samples/msf: holds no checksums.json; sample@msf")


def test_rows_of_several_protocols_are_told_in_a_line_and_never_paired(measured):
    done = measured(reference=OTHER["reference"]).stage("report")
    line = "Rows of 2 protocols are kept apart and never compared (reference: "
    assert sum(each.startswith(line) for each in done.stdout.splitlines()) == 1 and line in section("header")
    assert pl.read_csv("reports/pairs.csv").height == 0


@pytest.mark.parametrize(
    "name, value, shown",
    [
        ("recall", 0.12345, "0.1235"),
        ("fd", 123.456, "123.5"),
        ("label_accuracy", 0.123, "12.3%"),
        ("flops_per_image", 2.5e9, "2.5"),
        ("parameters", 1234567, "1.23 M"),
        ("peak_memory_bytes", 3 * 2**20, "3 MiB"),
        ("train_seconds", 30.75, "31"),
        ("spread", 0.0625, "6.2%"),
        ("train_images", 48000, "48,000"),
        ("seconds_per_image", 0.012345, "0.0123"),
        ("processor_seconds_per_image", 0.012345, "0.0123"),
        ("kid", None, "-"),
        ("method", "msf", "msf"),
        ("memorised", 0.0125, "1.2%"),
    ],
)
def test_a_value_is_written_as_people_read_it(name, value, shown):
    assert leaderboard.cell(name, {name: value}) == shown


# --- what the leaderboard says


def columns(table: list[list[str]], start: str) -> dict[str, str]:
    """The cells of the first column whose heading has this prefix, by row."""
    column = next(k for k, head in enumerate(table[0]) if head.startswith(start))
    return {row[0]: row[column] for row in table[1:]}


def told() -> str:
    """The notes below the single table, the same in Markdown and on the page."""
    (_, text, *_) = Path("reports/report.md").read_text().split("\n\n")
    notes = re.findall("<li>(.*?)</li>", Path("reports/report.html").read_text())
    assert html.unescape(" ".join(notes)) == text.strip()
    return text


def test_a_method_that_copies_comes_last_whatever_its_kid(measured):
    (table,) = made(measured({"kid": 0.001, "copies": True, "memorised": 0.5})).tables
    assert [row[0] for row in table[1:3]] == ["dit", "msf (copies)"]
    assert columns(table, "memorised")["msf (copies)"] == "50.0%"
    assert "Methods that copy training images, ranked last: msf." in told() and "Best KID" not in told()
    assert list(json.loads(Path("reports/leaderboard.json").read_text()))[:2] == ["dit", "msf"]


def test_floors_are_set_apart_and_have_no_costs(measured):
    (table,) = made(measured()).tables
    assert re.search('<tr class="floor"><td[^>]*>real</td>', section("leaderboard"))
    assert columns(table, "KID-EffLite0")["real"] == "0.0078 ± 0.0010"
    assert columns(table, "s/image")["real"] == columns(table, "KID-EffLite0, test split")["real"] == "-"
    assert columns(table, "FD-EffLite0")["autoencoder"] == "60"
    assert columns(table, "label accuracy (the classifier on real images: 93.8%)")["real"] == "93.8%"


def test_a_floor_of_another_number_of_images_leaves_out_what_depends_on_it(measured):
    project = measured()
    put_measured("real", {**REST, **FLOORS["real"]}, {**PROTOCOL, "seeds": None, "n": 30})
    (table,) = made(project).tables
    for head in ("FD-", "IS-", "precision-", "recall-"):
        assert (columns(table, head)["real"], columns(table, head)["autoencoder"] != "-") == ("-", True)
    assert columns(table, "KID-EffLite0")["real"] == "0.0078 ± 0.0010"
    assert "real: held-out images (N = 30: metrics that depend on N are left out)" in told()


def test_without_floors_the_classifiers_own_accuracy_is_that_of_its_training(measured):
    project = measured()
    project.change({"evaluate.floors": []})
    (table,) = made(project).tables
    assert set(columns(table, "label accuracy (the classifier on real images: 96.9%)")) == {"msf", "dit"}
    assert "Floors are not ranked" not in told()


# --- the leaderboard in the terminal


def test_the_leaderboard_in_the_terminal_has_ten_aligned_columns(measured):
    project = measured()
    put_measured("real", {**REST, **FLOORS["real"]}, {**PROTOCOL, "seeds": None, "n": 30})  # recall depends on n
    done = project.stage("summary")
    assert done.stdout.splitlines()[:7] == [
        "method       works on      KID-EffLite0  recall  accuracy  s/image  calls  GFLOP  params  images",
        "------------------------------------------------------------------------------------------------",
        "msf          latents   0.1250 +- 0.0200  0.2500     75.0%      0.5      8    2.5  1.23 M     512",
        "dit          latents   0.2500 +- 0.0100  0.2500     50.0%      0.5      8    2.5  1.23 M     256",
        "------------------------------------------------------------------------------------------------",
        "real         pixels    0.0078 +- 0.0010       -     93.8%        -      -      -       -       -",
        "autoencoder  latents   0.0625 +- 0.0020  0.2500     87.5%        -      -      -       -       -",
    ]
    assert done.stdout == project.stage("report").stdout[: len(done.stdout)], "the stage prints the same"


def test_one_method_is_shown_before_the_others_are_measured(measured):
    project = measured()
    for path in ("reports/costs.json", "reports/measurements/dit.json", "reports/measurements/real.json"):
        Path(path).unlink()
    shown = project.stage("summary", "msf").stdout.partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in shown[2:]] == ["msf"] and "s/image" not in shown[0]
    for arguments, fault in (((), "dit.json: missing"), (("sgm",), "'sgm' is not allowed")):
        done = project.stage("summary", *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1) and fault in done.stderr


def test_the_leaderboard_of_the_embedded_recipe_fits_a_terminal():
    rows = json.loads((ROOT / "reports" / "leaderboard.json").read_text()).values()
    timed = [row | ({"seconds_per_image": 0.00555} if row["kind"] == "method" else {}) for row in rows]
    text = summary.text(leaderboard.groups(timed))
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.partition("\n")[0].split()) == 11  # the words of ten headings


# --- what was measured on this machine


def test_seconds_and_memory_are_in_the_report_and_in_no_table_that_git_keeps(measured):
    (table,) = made(measured()).tables
    shown = {"s/image": "0.5", "processor s/image": "0.25", "spread": "12.5%", "s/image, batch 1": "1.5"}
    shown |= {"busy rounds": "1", "training s": "31", "peak memory": "3 MiB"}
    for head, cell in shown.items():
        assert table[1][table[0].index(head)] == cell and head not in Path("reports/leaderboard.md").read_text()
    assert columns(table, "training s")["dit"] == "30"
    for fragment in ("an abacus", "batches of 20", "3 rounds", "4.8 GFLOP", "(0.062 s)", "load average 1.5"):
        assert fragment in told()


@pytest.mark.parametrize("missing", [False, True])
def test_what_dvc_keeps_of_the_report_is_the_same_whatever_was_measured(measured, missing):
    """Byte for byte: a second run on this machine, or a run on another one, leaves dvc.lock and git's files alone."""
    project = measured()
    made(project)
    kept, before = outputs("report"), project.files()
    if missing:
        shutil.rmtree("reports/timing")
    else:
        slower = {name: {key: 3 * value for key, value in TIMED.items()} for name in METRICS}
        timings.write("sampling", COSTS, SAMPLING | {"methods": slower, "device": "a slide rule", "load_average": 9.5})
        timings.write("dit", Path("models/dit/dit/history.jsonl"), {"train_seconds": 1.0})
        timings.write("sample-dit", SAMPLES / "dit/costs.json", {"peak_memory_bytes": 7 * 2**20})
    (table,) = made(project).tables
    assert columns(table, "s/image")["msf"] == ("-" if missing else "1.5"), "the page follows"
    assert columns(table, "training s")["dit"] == ("-" if missing else "1")
    changed = {path for path in {*before, *project.files()} if before.get(path) != project.files().get(path)}
    assert changed >= {"reports/report.html", "reports/report.md", "reports/quality-time.png"}
    assert len(kept) > 5 and not changed & set(kept), "an output of DVC holds what was measured"
    assert all(
        path.startswith("reports/timing/") or not path.endswith((".json", ".csv", ".parquet")) for path in changed
    )


def outputs(stage: str) -> list[str]:
    """The files that DVC keeps of a stage."""
    paths = [
        next(iter(out)) if isinstance(out, dict) else out
        for kind in ("outs", "metrics")
        for out in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"][stage].get(kind, [])
    ]
    whole = [file for path in map(Path, paths) for file in ([path] if path.is_file() else path.rglob("*"))]
    return [file.as_posix() for file in whole]


def test_without_timings_the_report_says_how_to_make_them(measured):
    project = measured()
    made(project)
    shutil.rmtree("reports/timing")
    (table,) = made(project).tables
    for head in ("s/image", "spread", "busy rounds", "training s", "peak memory"):
        assert set(columns(table, head).values()) == {"-"}
    assert "`dvc repro -f -s timing report` measures them" in told()
    assert not Path("reports/quality-time.png").exists(), "a plot of before"
    assert {point["seconds_per_image"] for point in charts()["boards"][0]["points"]} == {None}


@pytest.mark.parametrize(
    "result, hidden",
    [
        ("reports/costs.json", ["s/image", "s/image, batch 1", "spread", "busy rounds"]),
        ("models/dit/dit/history.jsonl", ["training s"]),
        ("samples/dit/costs.json", ["peak memory"]),
    ],
)
def test_what_was_measured_of_another_result_is_not_shown(measured, result, hidden):
    """As after `git checkout` and `dvc checkout`, which leave the files of the experiment before."""
    project = measured()
    Path(result).write_text(Path(result).read_text() + "\n")
    sealed("models/dit/dit"), sealed("samples/dit")
    (table,) = made(project).tables
    row = dict(zip(table[0], next(row for row in table if row[0] == "dit")))
    dashes = {head for head in ("s/image", "s/image, batch 1", "spread", "busy rounds", "training s", "peak memory")}
    assert {head for head in dashes if row[head] == "-"} == set(hidden)


def test_a_method_works_on_latents_if_an_autoencoder_lies_beside_its_parts(measured):
    project = measured()
    Path("models/dit/dit/autoencoder").rmdir()
    Path("models/msf/msf-0/autoencoder").rmdir()  # one part that needs it is enough
    (table,) = made(project).tables
    found = {"msf": "latents", "dit": "pixels", "real": "pixels", "autoencoder": "latents"}
    assert columns(table, "works on") == found


def test_several_trainings_are_one_row_with_their_mean_and_spread(measured):
    project = measured()
    given, changes = project.read(), {}
    for k, kid in ((1, 0.25), (2, 0.375)):  # beside 0.125: mean 0.25, standard deviation 0.125
        names = {f"msf-{j}": f"msf-{j}-seed-{k}" for j in (0, 1)}
        changes |= {f"parts.{new}": given["parts"][old] | {"method": f"msf-seed-{k}"} for old, new in names.items()}
        changes[f"methods.msf-seed-{k}"] = given["methods"]["msf"] | {"repeat_of": "msf"}
        put_measured(f"msf-seed-{k}", {**REST, **METRICS["msf"], "kid": kid, "label_accuracy": 0.75 + k / 8}, PROTOCOL)
        put_json(f"samples/msf-seed-{k}/costs.json", COST)
        sealed(f"samples/msf-seed-{k}")
        memory = {"peak_memory_bytes": (3 + k) * 2**20}
        timings.write(f"sample-msf-seed-{k}", SAMPLES / f"msf-seed-{k}/costs.json", memory)
        for old, new in names.items():
            history = shutil.copytree(f"models/msf/{old}", f"models/msf-seed-{k}/{new}") / Path("history.jsonl")
            timings.write(new, history, {"train_seconds": SECONDS[old] + k})
    put_json("reports/costs.json", dict.fromkeys([*METRICS, "msf-seed-1", "msf-seed-2"], COST))
    timings.write("sampling", COSTS, SAMPLING)
    project.change(changes)
    (table,) = made(project).tables
    assert [row[0] for row in table[1:]] == ["msf", "dit", "real", "autoencoder"]
    assert columns(table, "KID-EffLite0")["msf"] == "0.2500 ± 0.0200"
    assert columns(table, "trainings") == {"dit": "1", "msf": "3 (sd 0.1250)", "real": "-", "autoencoder": "-"}
    assert columns(table, "label accuracy")["msf"] == "87.5%" and columns(table, "s/image")["msf"] == "0.5"
    assert (
        columns(table, "training s")["msf"] == f"{30.75 + (2 + 4) / 3:.0f}" and columns(table, "peak")["msf"] == "4 MiB"
    )
    assert "standard deviation of KID over them" in told()
    # The error of a mean of three trainings is 0.125 / sqrt(3), twice of which is as wide as t of two degrees asks;
    # of one training its error over images is known alone.
    wide = 0.125 / 3**0.5 * 4.3027
    assert f"significant at 2 standard errors of the difference ({(wide**2 + 0.02**2) ** 0.5:.4f})." in told()
    pictures = {path.name for path in Path("reports/galleries").iterdir()}
    assert "msf-grid.png" in pictures and "msf-seed-1-grid.png" not in pictures
    assert "msf-0-seed-1" in Path("reports/training.csv").read_text()


def test_trainings_that_were_measured_unlike_are_not_averaged(measured):
    project = measured(n=41)
    project.change({"methods.msf.repeat_of": "dit"})
    assert sorted(table[1][0] for table in made(project).tables) == ["dit", "msf"]


@pytest.mark.parametrize(
    "kid, error, apart, bound",
    [
        (0.24, 0.01, False, "0.0283"),
        (0.2, 0.01, True, "0.0283"),
        (0.2, 0.03, False, "0.0632"),
    ],
)
def test_a_lead_is_significant_by_both_intervals(measured, kid, error, apart, bound):
    made(measured({"kid": kid, "kid_se": error}))
    verdict = "significant" if apart else "not significant"
    wanted = (
        f"{0.25 - kid:.4f} below dit, {verdict} at 2 standard errors of the difference ({bound}, over images alone)."
    )
    assert f"Best KID-EffLite0: msf, {wanted}" in told()


@pytest.mark.parametrize("second, tau", [(0.25, "1.00"), (0.75, "-1.00")])
def test_the_rankings_of_two_extractors_are_compared(measured, second, tau):
    made(measured({"kid_second": second}))
    assert f"Kendall's tau of the rankings by KID-EffLite0 and KID-EffLite2: {tau}." in told()
    first, rest = ("msf", "dit") if second < 0.5 else ("dit", "msf")
    assert f"Best KID-EffLite2: {first}, 0.2500 below {rest}" in told()


def test_without_a_second_extractor_there_is_no_second_kid(measured):
    project, without = measured(), dict.fromkeys(("second_extractor", "second_metric", "second_resize"))
    for name, own in (METRICS | FLOORS).items():
        put_measured(name, {k: v for k, v in {**REST, **own}.items() if "second" not in k}, PROTOCOL | without)
    (table,) = made(project).tables
    assert [head for head in table[0] if head.startswith("KID-")] == ["KID-EffLite0", "KID-EffLite0, test split"]
    assert "Kendall" not in told()


@pytest.mark.parametrize("features, mark", [(41, "*"), (40, "")])
def test_fd_is_marked_where_it_has_more_features_than_images(measured, features, mark):
    project = measured()
    for name, own in (METRICS | FLOORS).items():
        put_measured(name, {**REST, "kid_second": 1.0, **own}, PROTOCOL | {"features": features})
    (table,) = made(project).tables
    assert f"FD-EffLite0{mark}" in table[0] and ("covariances are singular" in told()) == bool(mark)
