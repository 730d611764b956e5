"""The key of a cache changes with everything that decides a result, and with nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import sealed

from stages import code, train
from stages.common import keys, settings
from stages.common.errors import BadInput
from stages.common.paths import DECOMPOSED

FILES = {
    "images": "1",
    "latents/b": "2",
    "latents/deep/a": "3",
    "stages/vae.py": "from multiscale import net\nfrom stages import cluster\nfrom stages.schema import data\n",
    "stages/report.py": "x = 1\n",
    "stages/common/cluster.py": "x = 1\n",
    "stages/schema/data.py": "x = 1\n",
    "multiscale/net.py": '"""Prose."""\nx = 1\n',
    **dict.fromkeys(code.SHOWN["report"], "<p>\n"),
}


@pytest.fixture
def given(tmp_path, monkeypatch) -> dict:
    """Settings, a file and a folder of inputs, and a stage with the code that it imports."""
    monkeypatch.setattr(keys, "ROOT", tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    inputs = [tmp_path / "images", tmp_path / "latents"]
    return {"settings": {"lr": 0.1, "seed": 0}, "inputs": inputs, "lists": ["vae"]}


@pytest.mark.parametrize("name", ["images", "latents/b", "latents/deep/a", "stages/vae.py", "multiscale/net.py"])
def test_a_key_changes_with_each_input_and_each_line_of_code(name, given, tmp_path):
    before = keys.key(**given)
    (tmp_path / name).write_text(FILES[name] + "other = 2\n")
    assert keys.key(**given) != before


def test_a_key_changes_with_the_settings_and_with_torch_and_not_with_order_or_time(given, tmp_path, monkeypatch):
    before = keys.key(**given)
    os.utime(tmp_path / "latents/b", (0, 0))
    assert keys.key({"seed": 0, "lr": 0.1}, given["inputs"], given["lists"]) == before
    assert keys.key({"seed": 1, "lr": 0.1}, given["inputs"], given["lists"]) != before
    assert len({keys.key({}, [], lists) for lists in (["vae", "report"], {"report", "vae"}, ["vae"])}) == 2
    monkeypatch.setattr("torch.__version__", "0.1")
    assert keys.key(**given) != before


@pytest.mark.parametrize("name", ["stages/schema/data.py", "stages/common/cluster.py", "stages/report.py"])
def test_code_that_only_checks_settings_or_spreads_work_and_that_of_another_stage_is_left_out(name, given, tmp_path):
    before = keys.key(**given)
    (tmp_path / name).write_text("x = 2\n")
    assert keys.key(**given) == before


def test_a_comment_leaves_a_key_as_it_is(given, tmp_path):
    before = keys.key(**given)
    (tmp_path / "multiscale/net.py").write_text('"""Better prose."""\n\nx = 1  # and why\n')
    assert keys.key(**given) == before


def test_an_input_that_is_not_there_is_one_line(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # in the project itself it may be there
    with pytest.raises(BadInput, match=r"^data/reference: missing; an earlier stage makes it: run dvc repro"):
        keys.key(given["settings"], [Path("data/reference")], given["lists"])


def test_the_key_of_a_training_follows_the_code_of_its_own_method(sources, working_copy, monkeypatch):
    monkeypatch.setattr(keys, "ROOT", working_copy(sources))
    for name in ("full", "pixels"):
        (DECOMPOSED / name).mkdir(parents=True)
        sealed(DECOMPOSED / name)

    def made() -> list[str]:
        return [train.job(part, settings.load()).key for part in ("dit", "ssd-2l")]

    before = made()
    with open("multiscale/methods/ssd/process.py", "a") as opened:
        opened.write("EDITED = True\n")
    after = made()
    assert after[0] == before[0] and after[1] != before[1]
