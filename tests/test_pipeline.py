"""The pipeline as DVC runs it, on the tiny recipe: what re-runs, what does not, and what people read afterwards."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import chdir
from pathlib import Path

import pytest
from conftest import ROOT, Project
from dvc.utils.serialize import modify_yaml

from stages.datasets import digits

FLOORS = ("real", "autoencoder")
METHODS = ("dit", "msf", "ssd-2l", "wmgm", "swd-teacher", "swd", "shift", "pyramidal")


class Clone:
    """A clone of the project that commands run in; `python` is the one in the folder `warm`."""

    def __init__(self, sources: Path, folder: Path, warm: Path):
        self.folder, self.warm = folder, warm
        shutil.copytree(sources, folder, dirs_exist_ok=True)
        self.run("git", "init", "-q")
        self.run("git", "config", "user.email", "tests@example.org")
        self.run("git", "config", "user.name", "tests")
        self.run("dvc", "init", "-q")
        self.run("dvc", "config", "core.analytics", "false")
        self.run("dvc", "config", "core.autostage", "true")
        self.commit()

    def run(self, *command: str, ok: bool = True) -> str:
        path = os.pathsep.join([str(self.warm), os.environ["PATH"]])
        environment = os.environ | {"DVC_NO_ANALYTICS": "1", "COLUMNS": "300", "PATH": path}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=1800)
        assert not ok or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "state")

    def ran(self, *command: str) -> set[str]:
        """The stages that a command really ran."""
        lines = self.run(*command).splitlines()
        return {line.split("'")[1] for line in lines if line.startswith("Running stage")}

    def json(self, path: str) -> dict:
        return json.loads((self.folder / path).read_text())


@pytest.fixture(scope="module")
def few(sources, tmp_path_factory) -> Path:
    """The sources, their digits every tenth of the package, in an archive: most stages go through all images."""
    folder = shutil.copytree(sources, tmp_path_factory.mktemp("few") / "sources")
    with zipfile.ZipFile(folder / "data/raw/few.zip", "w") as archive:
        for name, label, image in list(digits._mnist())[::10]:
            archive.writestr(f"{label}/{name}.png", digits.png(image))
    tiny = folder / "params/recipes/tiny.yaml"
    data = "data: {source: files, path: data/raw/few.zip, test_share: 0.2}"
    tiny.write_text(re.sub("^data: .*$", data, tiny.read_text(), flags=re.MULTILINE))
    with chdir(folder):
        assert Project(folder).stage("recipe", "tiny", "--force").returncode == 0
    return folder


@pytest.fixture(scope="module")
def clone(few, warm, tmp_path_factory) -> Clone:
    """A clone whose pipeline has run once."""
    clone = Clone(few, tmp_path_factory.mktemp("clone"), warm)
    clone.first = clone.ran("dvc", "repro")
    clone.commit()
    return clone


def test_one_command_runs_every_stage(clone):
    assert clone.first == set(clone.run("dvc", "stage", "list", "--name-only").split())


def test_a_second_run_does_nothing_within_five_seconds(clone):
    before = os.times()
    assert clone.ran("dvc", "repro") == set()
    after = os.times()  # of the processor: beside other work the clock on the wall runs on
    assert after.children_user + after.children_system - before.children_user - before.children_system < 5
    assert "up to date" in clone.run("dvc", "status")


def test_a_run_leaves_nothing_that_git_does_not_know(clone):
    assert clone.run("git", "status", "--porcelain") == ""
    assert not list(clone.folder.rglob("*.tmp"))


def test_measuring_again_changes_nothing_that_git_or_dvc_knows(clone):
    measured = {path: path.read_bytes() for path in (clone.folder / "reports/timing").iterdir()}
    page = (clone.folder / "reports/report.html").read_bytes()
    lock = (clone.folder / "dvc.lock").read_bytes()
    stages = ("train@dit", "sample@dit", "timing", "report")
    assert clone.ran("dvc", "repro", "-f", "-s", *stages) == set(stages)
    again = {path.stem for path, before in measured.items() if path.read_bytes() != before}
    assert {"claims", "dit", "sample-dit", "sampling"} >= again >= {"sampling"}
    assert (clone.folder / "reports/report.html").read_bytes() != page
    assert (clone.folder / "dvc.lock").read_bytes() == lock and clone.run("git", "status", "--porcelain") == ""
    assert "up to date" in clone.run("dvc", "status")


def test_the_second_scales_learning_rate_reruns_its_cone_alone(clone):
    ran = clone.ran("dvc", "exp", "run", "-S", "+parts.msf-1.training.lr=0.0007")
    assert ran == {"code", "train@msf-1", "sample@msf", "evaluate@msf", "timing", "report"}
    shown = clone.run("dvc", "exp", "show", "--no-pager", "--only-changed", "--csv")
    assert "0.0007" in shown and len(re.search("^Experiment,.*", shown, re.MULTILINE)[0].split(",")) <= 25
    clone.run("git", "checkout", "-q", "-f", ".")
    clone.run("dvc", "checkout", "-q", "-f")
    assert clone.ran("dvc", "repro") == set(), "going back is a look into the cache"


def test_an_edit_of_prose_runs_the_lists_of_code_alone_and_one_of_code_what_imports_it(clone):
    file = clone.folder / "multiscale/networks/unet.py"
    text = file.read_text()
    file.write_text(text.replace('"""', '"""In other words: ', 1) + "# A comment.\n")
    assert clone.ran("dvc", "repro") == {"code"}
    file.write_text(text + "EDITED = True\n")
    assert clone.ran("dvc", "repro", "code") == {"code"}
    stale = {line[:-1] for line in clone.run("dvc", "status").splitlines() if line[:1].isalpha() and line[-1] == ":"}
    trained = {"train@ssd-2l", "train@wmgm-low", "train@wmgm-details"}
    assert {address for address in stale if "@" in address} == {*trained, "sample@ssd-2l", "sample@wmgm"}
    file.write_text(text)
    assert clone.ran("dvc", "repro") == set(), "going back is a look into the cache"


def test_the_leaderboard_has_what_the_comparison_needs(clone):
    rows = clone.json("reports/leaderboard.json")
    assert set(rows) == {*METHODS, *FLOORS}
    wanted = "method recipe kid kid_se fd label_accuracy network_calls flops_per_image parameters"
    wanted += " train_images protocol kid_test kid_second memorised"
    for name in METHODS:
        assert set(wanted.split()) <= set(rows[name])
        assert rows[name]["works_on"] == ("pixels" if name in ("ssd-2l", "wmgm") else "latents")
    assert rows["real"]["kid"] < min(rows[name]["kid"] for name in METHODS), "nothing is as good as real images"
    assert 0 <= rows["real"]["memorised"] <= 0.1 and not rows["real"]["copies"]
    assert rows["dit"]["network_calls"] == 8  # 4 guided steps
    assert rows["msf"]["network_calls"] == 4 * 2 + 2  # and 2 without guidance on the second scale
    assert rows["swd"]["network_calls"] == 4  # one a step, no guidance
    assert rows["shift"]["network_calls"] == rows["swd-teacher"]["network_calls"] == 6  # 3 guided steps
    assert rows["shift"]["flops_per_image"] < rows["swd-teacher"]["flops_per_image"]
    assert rows["shift"]["train_images"] == 0 and rows["pyramidal"]["network_calls"] == 2 * 2 + 1
    assert rows["msf"]["flops_per_image"] > 0 and rows["msf"]["protocol"]["n"] == 40


def test_dvc_shows_metrics_and_plots(clone):
    assert "kid" in clone.run("dvc", "metrics", "show", "--md")
    clone.run("dvc", "metrics", "diff")
    clone.run("dvc", "plots", "show", "-o", "plots")
    page = (clone.folder / "plots" / "index.html").read_text()
    assert "Loss" in page and "msf-grid.png" in page
    shutil.rmtree(clone.folder / "plots")


def test_pictures_and_page_are_real(clone):
    from PIL import Image

    for method in METHODS:
        for name in ("grid", "strip"):
            with Image.open(clone.folder / "samples" / method / f"{name}.png") as picture:
                assert picture.width > 300 and len(picture.convert("L").getcolors(256)) > 10
    page = (clone.folder / "reports" / "report.html").read_text()
    text = re.sub(r"base64,[^\"]+", "", page)  # any three letters occur in a picture
    pictures = re.findall(r"data:image/webp;base64,([^\"]+)", page)
    assert len(pictures) >= 3 * len(METHODS) + 2 * len(FLOORS) and "KID-EffLite0" in text
    for encoded in pictures:
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
            picture.load()
    assert "FID" not in text.partition("<h2>Published claims")[0], "FID is of Inception"
    assert "Bands of wavelet" in text and "Diversity of the adversarial details" in text


# In a lock without them are stages of every kind to bring back, and others to leave as they are.
FORGOTTEN = "decompose@residual train@msf-0 train@msf-1 sample@msf evaluate@msf distill@swd sample@swd evaluate@swd"
FORGOTTEN += " floor@real"


def test_the_flow_leaves_the_lock_of_a_plain_repro(server, clone, tmp_path):
    copy, locks = shutil.copytree(clone.folder, tmp_path / "copy"), []
    for command in (["dvc", "repro"], [sys.executable, "-m", "flows.reproduce", "--slots", "4"]):
        shutil.copy(clone.folder / "dvc.lock", copy)
        with modify_yaml(copy / "dvc.lock") as lock:
            for address in FORGOTTEN.split():
                del lock["stages"][address]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Running stage" not in done.stdout and "completed" not in done.stderr, "DVC's cache has them"
        locks.append((copy / "dvc.lock").read_bytes())
    assert locks[0] == locks[1] != (clone.folder / "dvc.lock").read_bytes()


def test_a_fresh_clone_gives_the_same_metrics_to_the_last_digit(clone, few, warm, tmp_path):
    other = Clone(few, tmp_path, warm)
    other.run("dvc", "repro", "evaluate@msf", "evaluate@swd")
    for method in ("msf", "swd"):
        ours, theirs = (each.json(f"reports/measurements/{method}.json") for each in (clone, other))
        assert ours == theirs
    for file in (
        "models/msf/msf-0",
        "models/msf/msf-1",
        "models/swd-teacher/swd-teacher",
        "models/swd/swd",
        "models/vae",
    ):
        for path in filter(Path.is_file, (clone.folder / file).rglob("*")):
            assert path.read_bytes() == (other.folder / path.relative_to(clone.folder)).read_bytes(), path


def test_a_method_is_added_by_a_folder_and_its_entries_in_a_recipe(clone):
    shutil.copytree(ROOT / "tests/toy", clone.folder / "multiscale/methods/toy")
    shutil.copy(ROOT / "tests/toy.yaml", clone.folder / "params/recipes/toy.yaml")
    clone.run("python", "-m", "stages.recipe", "toy", "--force")
    assert clone.ran("dvc", "repro") == {"code", "train@toy", "sample@toy", "evaluate@toy", "timing", "report"}
    metrics = clone.json("reports/measurements/toy.json")
    assert metrics["protocol"]["n"] == 40 and 0 < metrics["kid"] < 10
    assert "| toy |" in (clone.folder / "reports/leaderboard.md").read_text()
