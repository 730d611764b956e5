"""A stage whose input is not as it was written ends in one line that says which stage makes it, and writes nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from conftest import Project, flipped, refused, sealed

from multiscale.core import intact
from stages.common.harness import guarded
from stages.common.paths import made_by

IMAGES, CLASSIFIER, REFERENCE = "data/images.parquet", "models/classifier", "data/reference"
TRAIN, TEST = "data/pixels/train", "data/pixels/test"
# The inputs of each stage in dvc.yaml, and the stage that the error names.
INPUTS = {
    "vae": {TRAIN: "download"},
    "latents 32": {TRAIN: "download", "models/vae": "vae"},
    "decompose wavelet": {TRAIN: "download"},
    "decompose residual": {"data/latents/24": "latents@24", "data/latents/32": "latents@32"},
    "train msf-0": {"data/decomposed/residual": "decompose@residual or synthetic@residual"},
    "distill swd": {
        "data/decomposed/pyramid": "decompose@pyramid or synthetic@pyramid",
        "models/swd-teacher/swd-teacher": "train@swd-teacher or distill@swd-teacher",
    },
    "sample msf": {IMAGES: "download", "models/msf/msf-1": "train@msf-1 or distill@msf-1"},
    "classifier": {IMAGES: "download", TRAIN: "download"},
    "reference": {IMAGES: "download", TRAIN: "download", TEST: "download"},
    "evaluate msf": {
        IMAGES: "download",
        REFERENCE: "reference",
        CLASSIFIER: "classifier",
        "samples/msf": "sample@msf or floor@msf",
    },
    "floor autoencoder": {IMAGES: "download", TEST: "download", "models/vae": "vae"},
    "timing": {"samples/msf/costs.json": "sample@msf or floor@msf"},
    "report": {
        IMAGES: "download",
        "models/msf/msf-1/history.jsonl": "train@msf-1 or distill@msf-1",
        "reports/measurements/msf.json": "evaluate@msf or floor@msf",
        "reports/paired/msf.parquet": "evaluate@msf",
        "samples/msf/costs.json": "sample@msf or floor@msf",
    },
}


@pytest.fixture
def made(trained, working_copy) -> Project:
    """A project whose stages have run; of SwD and other methods there are sealed files without contents of use."""
    project = Project(working_copy(trained))
    for name in project.read()["methods"].keys() - {"msf"}:
        shutil.copy("reports/paired/msf.parquet", f"reports/paired/{name}.parquet")
    for folder in ("data/decomposed/pyramid", "models/swd-teacher/swd-teacher"):
        shutil.copytree("data/decomposed/full", folder)
    return project


def files(place: str) -> list[Path]:
    """The file itself; of a folder the largest file, the first of JSON and the list of checksums."""
    path = Path(place)
    if path.is_file():
        return [path]
    inside = sorted(each for each in path.rglob("*") if each.is_file() and each.name != intact.LIST)
    texts = [each for each in inside if each.suffix == ".json"]
    chosen = [max(inside, key=lambda each: each.stat().st_size), *texts[:1]]
    return [*dict.fromkeys(chosen), path / intact.LIST]


@contextmanager
def replaced(path: Path, put: Callable[[Path], object]) -> Iterator[None]:
    aside = path.with_name("aside")
    path.rename(aside)
    try:
        put(path)
        yield
    finally:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        aside.rename(path)


def damages(path: Path) -> Iterator[contextmanager]:
    """The ways in which a file is damaged."""
    whole = path.read_bytes()
    for place in (0, len(whole) // 3, len(whole) // 2, len(whole) - 2):
        yield flipped(path, place, place % 7)
    for content in (b"", whole[: len(whole) // 2], b"something else\n"):
        yield replaced(path, lambda place, content=content: place.write_bytes(content))
    yield replaced(path, Path.mkdir)


@pytest.mark.parametrize("stage, place", [(stage, place) for stage, places in INPUTS.items() for place in places])
def test_a_damaged_input_is_one_line_that_names_the_stage_that_makes_it(stage, place, made):
    for path in files(place):
        for damage in damages(path):
            with damage:
                before = made.files()
                done = made.stage(*stage.split())
                assert made.files() == before
            *_, line = done.stderr.splitlines()
            assert (done.returncode, done.stdout) == (2, ""), done.stderr
            out, maker = made_by(Path(place))
            assert line.startswith(f"error: {place}") and "Traceback" not in done.stderr, line
            assert line.endswith(f"; {INPUTS[stage][place]} makes it: delete {out}, then dvc repro"), line
            assert maker == INPUTS[stage][place]


def test_a_neighbour_picture_that_is_damaged_is_found_by_its_own_checksums(made):
    from stages.report import check_picture

    path = Path("reports/neighbours/msf.png")
    check_picture(path)
    *_, last = damages(path)  # a folder in its place
    for damage in (*list(damages(path))[:3], last):  # the checksum at its very end is that of nothing
        with damage, pytest.raises(intact.Damaged, match="msf.png: damaged"):
            check_picture(path)


def test_what_no_stage_makes_is_made_by_none():
    assert made_by(Path("params.yaml")) is made_by(Path(".scratch/synthetic/x/targets.safetensors")) is None


REMEDY = "; an earlier stage makes it: run dvc repro"


@pytest.mark.parametrize(
    "name, read, remedy",
    [
        ("git", lambda: subprocess.run(["git"], env={"PATH": ""}), ""),
        (IMAGES, lambda: Path(IMAGES).read_bytes(), REMEDY),
        (IMAGES, lambda: pl.read_parquet(IMAGES), REMEDY),
        (IMAGES, lambda: pq.read_metadata(IMAGES), REMEDY),
    ],
    ids=["git", "file", "polars", "pyarrow"],
)
def test_what_is_missing_is_named_and_a_stage_is_advised_only_where_one_makes_it(
    name, read, remedy, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        guarded(read)
    assert capsys.readouterr().err == f"error: {name}: missing{remedy}\n"


def test_a_seal_by_hand_is_taken(made):
    """The tests that write inputs themselves use this."""
    path = Path("data/latents/32/statistics.json")
    path.write_text(path.read_text().replace('"images"', '"count"'))
    sealed("data/latents/32")
    intact.check(Path("data/latents/32"))


# Where a stage would write there is a file, as on a disk that is read-only: it says so before it does anything.
BLOCKED = {
    "vae": "models/vae",
    "latents 32": "data/latents",
    "decompose full": "data/decomposed",
    "train dit": "models/dit",
    "train msf-1": ".scratch",
    "classifier": "reports/timing",
    "sample msf": "samples",
    "evaluate msf": "reports/paired",
}


@pytest.mark.parametrize("stage", BLOCKED)
def test_a_place_that_cannot_be_written_is_one_line(stage, made):
    place = Path(BLOCKED[stage])
    shutil.rmtree(place)
    place.write_text("in the way")
    before = made.files()
    refused(made.stage(*stage.split()), f"error: {place}: Not a directory")
    assert made.files() == before
