"""Shards are written once and read as one table; a stage that dies goes on with those that are missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_pixels
from PIL import Image

from multiscale.core.intact import Damaged
from multiscale.core.storage import Table
from stages.common import images, shards
from stages.common.paths import IMAGES, PIXELS, TRAIN

LENGTHS = (3, 0, 5, 1)


@pytest.fixture
def whole(tmp_path) -> np.ndarray:
    """The pixels of shards in a folder, one of them empty; labels are their rows."""
    pixels = np.random.default_rng(0).integers(0, 256, (sum(LENGTHS), 1, 3, 5), np.uint8)
    ends = np.cumsum(LENGTHS)
    for number, (start, end) in enumerate(zip(ends - LENGTHS, ends)):
        tensors = {"pixels": torch.from_numpy(pixels[start:end]), "label": torch.arange(start, end)}
        shards.save(tmp_path / f"{number:05}.safetensors", tensors, about=[number])
    return pixels


@pytest.mark.parametrize("rows", [slice(None), slice(2, 7), slice(8, 99), [0, 8, 3, 2, 2, 7], []], ids=str)
def test_shards_are_read_as_one_table(whole, tmp_path, rows):
    table = Table.open(tmp_path)
    found = table[rows if isinstance(rows, slice) else torch.tensor(rows, dtype=torch.long)]
    assert len(table) == 9 and table.arrays["pixels"].shape == whole.shape
    assert np.array_equal(found["pixels"], whole[rows]) and np.array_equal(found["label"], np.arange(9)[rows])
    assert np.array_equal(np.array(table.arrays["label"]), np.arange(9))


def test_what_is_told_of_a_shard_is_in_it_and_its_bytes_are_always_the_same(whole, tmp_path):
    first = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    assert [shards.about_of(path) for path in sorted(tmp_path.iterdir())] == [[0], [1], [2], [3]]
    tensors = {"pixels": torch.from_numpy(whole[:3]), "label": torch.arange(3)}
    shards.save(tmp_path / "00000.safetensors", tensors, about=[0])
    assert (tmp_path / "00000.safetensors").read_bytes() == first[0]


@pytest.mark.parametrize(
    "row_bytes, rows", [(1, 1024), (3 * 64**2, 1024), (3 * 256**2, 256), (3 * 512**2, 64), (10**9, 1)]
)
def test_a_shard_is_at_most_64_mb_and_1024_rows(row_bytes, rows):
    """By hand: 64 MB / 196,608 bytes = 341 images of 256 pixels, of which 256 is the largest power of two."""
    found = list(shards.slices(2500, row_bytes))
    assert found[0] == slice(0, rows) and found[-1].stop == 2500
    assert [each.start for each in found[1:]] == [each.stop for each in found[:-1]]


def test_some_rows_need_their_own_shards_alone_and_these_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    write_pixels(TRAIN, pixels, [0] * 10, 1)
    path = TRAIN / "00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert images.training_pixels(torch.tensor([4, 0])).flatten().tolist() == [4, 0]
    with pytest.raises(Damaged, match=r"train/00001.safetensors: damaged"):
        images.training_pixels(torch.tensor([4, 5]))


# --- a stage that dies

DIES = """
import os, signal
from stages import download
from stages.common import settings, shards
seal, sealed = shards.intact.seal_file, []
def dies(path):
    sealed.append(path)
    if len(sealed) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    seal(path)
shards.ROWS, shards.intact.seal_file = 4, dies
download.main(settings.load())
"""


@pytest.fixture
def twenty(project, monkeypatch):
    """A project with twenty images in shards of four at most, a class of even and one of odd ones."""
    monkeypatch.setattr(shards, "ROWS", 4)
    monkeypatch.setattr("stages.common.enough.check", lambda *given: None)
    for index in range(20):
        path = Path("set", "even" if index % 2 == 0 else "odd", f"{index:02}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), index).save(path)
    project.change({"data.source": "files", "data.path": "set", "evaluate.floors": []})
    return project


def outputs() -> dict[str, bytes]:
    files = [IMAGES, *(path for path in PIXELS.rglob("*") if path.is_file())]
    return {path.as_posix(): path.read_bytes() for path in files}


def made(project) -> str:
    done = project.stage("download")
    assert done.returncode == 0, done.stderr
    assert not list(Path(".scratch/shards").glob("*/*")), "the shards are gone"
    return done.stderr


def test_a_download_that_is_killed_goes_on_and_ends_in_the_same_bytes(twenty):
    made(twenty)
    whole = outputs()
    shutil.rmtree("data")
    assert twenty.run("-c", DIES).returncode == -9
    assert not IMAGES.exists() and not PIXELS.exists()
    left = sorted(Path(".scratch/shards").rglob("[!.]*.safetensors"))
    assert len(left) == 2
    kept = left[0].stat().st_ino
    left[1].write_bytes(left[1].read_bytes()[:-1] + b"x")
    assert "images are there already" in made(twenty)
    assert outputs() == whole
    assert kept in {path.stat().st_ino for path in PIXELS.rglob("*.safetensors")}, "it is not written again"


def test_shards_of_a_set_that_has_changed_since_are_not_used(twenty):
    assert twenty.run("-c", DIES).returncode == -9
    Image.new("L", (32, 32), 200).save("set/even/00.png")
    os.utime("set/even/00.png", (0, 0))
    assert "there already" not in made(twenty)
    split = images.pl.read_parquet(IMAGES).filter(id="even/00.png")["split"].item()
    assert 200 in Table.open(PIXELS / split)[slice(None)]["pixels"]
