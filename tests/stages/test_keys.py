"""The key of a cache changes with everything that decides a result, and with nothing else."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from stages.common import keys
from stages.common.errors import BadInput


@pytest.fixture
def given(tmp_path) -> dict:
    """Settings, a file and a folder of inputs, and code."""
    files = {"images": "1", "latents/b": "2", "latents/deep/a": "3", "code/loss.py": "4", "code/net.py": "5"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    code = [tmp_path / "code/loss.py", tmp_path / "code/net.py"]
    return {"settings": {"lr": 0.1, "seed": 0}, "inputs": [tmp_path / "images", tmp_path / "latents"], "code": code}


@pytest.mark.parametrize("name", ["images", "latents/b", "latents/deep/a", "code/loss.py", "code/net.py"])
def test_a_key_changes_with_each_input_and_each_line_of_code(name, given, tmp_path):
    before = keys.key(**given)
    (tmp_path / name).write_text("other")
    assert keys.key(**given) != before


def test_a_key_changes_with_the_settings_and_with_torch_and_not_with_order_or_time(given, tmp_path, monkeypatch):
    before = keys.key(**given)
    os.utime(tmp_path / "latents/b", (0, 0))
    assert keys.key({"seed": 0, "lr": 0.1}, given["inputs"], given["code"][::-1]) == before
    assert keys.key({"seed": 1, "lr": 0.1}, given["inputs"], given["code"]) != before
    monkeypatch.setattr("torch.__version__", "0.1")
    assert keys.key(**given) != before


def test_code_that_only_checks_settings_or_spreads_work_is_left_out(given, tmp_path):
    before = keys.key(**given)
    for name in ("stages/schema/data.py", "stages/cluster.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
        given["code"].append(tmp_path / name)
    assert keys.key(**given) == before


def test_an_input_that_is_not_there_is_one_line(given):
    with pytest.raises(BadInput, match=r"^data/gone: missing; allowed: the output of an earlier stage \(run dvc repro"):
        keys.key(given["settings"], [Path("data/gone")], given["code"])


def test_the_code_that_is_loaded_is_that_of_the_science_and_of_the_stages(monkeypatch):
    main = ModuleType("__main__")
    main.__file__ = str(keys.ROOT / "stages" / "train.py")  # as `python -m stages.train` leaves it
    for name, module in {"__main__": main, "stages.train": None, "multiscale.methods.ssd.parts": None}.items():
        monkeypatch.setitem(sys.modules, name, module)
    found = {file.relative_to(keys.ROOT).as_posix() for file in keys.loaded()}
    assert {"multiscale/training/checkpoint.py", "stages/common/keys.py", "stages/train.py"} <= found
    assert "multiscale/methods/ssd/parts.py" not in found, "no part needs another method's module"
    assert {name.partition("/")[0] for name in found} == {"multiscale", "stages"}
