"""A file or folder that was written here tells of any bit that has changed since."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import zlib
from pathlib import Path

import polars as pl
import pytest
import torch
from conftest import flipped, sealed
from safetensors.torch import save_file

from multiscale.core import intact
from multiscale.core.storage import CHECKSUM, read_sealed_json, sealed_folder, write_sealed_json


def parquet(path: Path) -> None:
    rows = {"id": [f"crc32:{k}" for k in range(5000)], "image": [bytes([k % 251]) * 50 for k in range(5000)]}
    pl.DataFrame(rows).write_parquet(path)
    sealed(path)


def checkpoint(path: Path) -> None:
    state = json.dumps({CHECKSUM: intact.BLANK, "history": [{"loss": 0.5}] * 100})
    save_file({"x": torch.rand(600_000, generator=torch.Generator().manual_seed(0))}, path, {"state": state})
    intact.seal_file(path)


FILES = {"parquet": parquet, "safetensors": checkpoint}
FILES["json"] = lambda path: write_sealed_json(path, {"kid": 0.048, "protocol": {"metric": "EffLite0"}})


@pytest.mark.parametrize("kind", FILES)
def test_a_flipped_bit_anywhere_in_a_file_is_found(kind, tmp_path):
    path, draw = tmp_path / f"file.{kind}", random.Random(0)
    FILES[kind](path)
    intact.check(path)
    size = path.stat().st_size
    for place in {0, 9, size // 2, size - 1, size - 9, *draw.sample(range(size), 25)}:
        with flipped(path, place, draw.randrange(8)), pytest.raises(intact.Damaged, match=f"file.{kind}: damaged"):
            intact.check(path)
    intact.check(path)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_ends_early_is_found(kind, tmp_path):
    path = tmp_path / f"file.{kind}"
    FILES[kind](path)
    whole = path.read_bytes()
    for left in (0, 1, 12, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:left])
        with pytest.raises(intact.Damaged, match="damaged"):
            intact.check(path)


def test_the_checksum_is_the_crc_32_of_the_file_with_zeros_in_its_place(tmp_path):
    path = tmp_path / "a.json"
    write_sealed_json(path, {"x": 1})
    told = json.loads(path.read_text())[CHECKSUM]
    plain = json.dumps({"x": 1, CHECKSUM: "crc32:00000000"}, indent=2) + "\n"
    assert told == f"crc32:{zlib.crc32(plain.encode()):08x}"
    assert read_sealed_json(path) == {"x": 1}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with files at two depths, larger and smaller than the blocks that are read, and an empty one."""
    with sealed_folder(tmp_path / "model") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "große Datei").write_bytes(random.Random(0).randbytes(2_500_000))
        (folder / "config.json").write_text("{}")
        (folder / "empty").touch()
    return tmp_path / "model"


def test_a_folder_lists_the_crc_32_of_all_its_files(folder):
    contents = (folder / "deep" / "große Datei").read_bytes()
    listed = json.loads((folder / "checksums.json").read_text())
    wanted = {"config.json": zlib.crc32(b"{}"), "deep/große Datei": zlib.crc32(contents), "empty": 0}
    assert listed == {name: f"{crc:08x}" for name, crc in wanted.items()}
    intact.check(folder)


def test_a_flipped_bit_anywhere_in_a_folder_is_found(folder):
    for path in (path for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size):
        for place in (0, path.stat().st_size // 2, path.stat().st_size - 1):
            with flipped(path, place, 3), pytest.raises(intact.Damaged):
                intact.check(folder)


DAMAGE = {
    "a file is gone": (lambda f: (f / "empty").unlink(), "model/empty: missing"),
    "a file is cut": (lambda f: (f / "config.json").write_text("{"), "config.json: damaged"),
    "a folder in its place": (
        lambda f: ((f / "empty").unlink(), (f / "empty").mkdir()),
        "empty: cannot be read",
    ),
    "no list": (lambda f: (f / "checksums.json").unlink(), "model: holds no checksums.json"),
    "another list": (lambda f: (f / "checksums.json").write_text("[]"), "checksums.json: damaged"),
    "half a list": (lambda f: (f / "checksums.json").write_text('{"empty": '), "checksums.json: damaged"),
    "a list of bytes": (lambda f: (f / "checksums.json").write_bytes(b"\xff"), "checksums.json: damaged"),
    "a list that is a folder": (lambda f: ((f / "checksums.json").unlink(), (f / "checksums.json").mkdir()), "be read"),
    "a file in its place": (lambda f: (shutil.rmtree(f), f.write_text("x")), "model: damaged, or not written here"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_one_line_that_names_the_file(name, folder):
    damage, line = DAMAGE[name]
    damage(folder)
    with pytest.raises(intact.Damaged, match=line) as caught:
        intact.check(folder)
    assert "\n" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # as a worker sends it
    assert (str(again), again.path, again.why) == (str(caught.value), caught.value.path, caught.value.why)


def test_of_a_folder_some_files_can_be_checked_alone(folder):
    (folder / "empty").write_text("x")
    intact.check_folder(folder, "config.json")
    with pytest.raises(intact.Damaged, match="empty"):
        intact.check_folder(folder, "config.json", "empty")
    with pytest.raises(intact.Damaged, match="other: missing"):
        intact.check_folder(folder, "other")
    (folder / "other").touch()
    with pytest.raises(intact.Damaged, match="other: damaged"):  # it is not listed
        intact.check_folder(folder, "other")


def test_what_is_not_there_is_missing_and_not_damaged(tmp_path):
    for path in ("file.parquet", "folder"):
        with pytest.raises(FileNotFoundError) as caught:
            intact.check(tmp_path / path)
        assert caught.value.filename == tmp_path / path or caught.value.filename == str(tmp_path / path)
