"""The stages as commands: help texts, one-line errors, a full disk, and the report."""

from __future__ import annotations

import hashlib
import importlib
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Project, refused, write_set
from PIL import Image
from ruamel.yaml import YAML

from stages.common.paths import EXPERIMENT


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
    folder = small_disk("params", 400)  # room for its files, however many recipes there are
    experiment = Path(shutil.copy(EXPERIMENT, folder))
    monkeypatch.setattr("stages.recipe.EXPERIMENT", experiment)
    kept = experiment.read_bytes()
    with pytest.raises(OSError), open(folder / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    refused(project.stage("recipe", "embedded"), "the disk is full", code=1)
    assert experiment.read_bytes() == kept and not list(folder.glob(".*"))


def test_bands_of_no_training_image_are_refused_and_nothing_is_written(project):
    write_set(Path("data/images.parquet"), ["test"], np.zeros((1, 1, 32, 32), np.uint8), [0])
    before = project.files()
    refused(project.stage("decompose", "wavelet"), "data/pixels: the data set has no images of split 'train'")
    assert project.files() == before
