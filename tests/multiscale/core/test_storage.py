"""Files are whole or absent, whatever happens during a write; tables are read row by row."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from multiscale.core.storage import Table, TensorWriter, atomic_file, atomic_folder, metadata_of, write_json

TOUCHES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}  # audit events of the file system
OLD, NEW = {"a": b"old a", "b": b"old b", "c": b"old c"}, {"a": b"new a", "d": b"new d"}


def exit_code(child, *arguments) -> int:
    """Runs a function in a forked process; returns 0, the errno of its OSError, or minus the signal that killed it."""

    def run() -> None:
        torch.set_num_threads(1)  # the parent's threads do not survive a fork
        try:
            child(*arguments)
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)  # without what other tests' libraries do at exit

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join()
    return process.exitcode


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def contents(path: Path) -> dict[str, bytes] | None:
    return {file.name: file.read_bytes() for file in path.iterdir()} if path.exists() else None


def replace_file(path: Path) -> None:
    with atomic_file(path / "a") as temporary:
        temporary.write_bytes(NEW["a"])


def replace_folder(path: Path) -> None:
    with atomic_folder(path) as folder:
        put(folder, NEW)


def visible(path: Path) -> dict[str, bytes] | None:
    """The files that a later stage sees, without temporary ones."""
    found = contents(path)
    return found and {name: content for name, content in found.items() if not name.startswith(".")}


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_an_exception_leaves_nothing_behind(atomic, tmp_path):
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "result") as temporary:
        (temporary / "part" if atomic is atomic_folder else temporary).write_bytes(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("atomic", [atomic_file, atomic_folder])
def test_an_exception_leaves_the_result_before_it_untouched(atomic, tmp_path):
    put(tmp_path / "result", OLD)
    target = tmp_path / "result" if atomic is atomic_folder else tmp_path / "result" / "a"
    with pytest.raises(ZeroDivisionError), atomic(target) as temporary:
        (temporary / "a" if atomic is atomic_folder else temporary).write_bytes(b"half")
        raise ZeroDivisionError
    assert contents(tmp_path / "result") == OLD


def test_success_leaves_the_result_alone_in_its_folder(tmp_path):
    put(tmp_path / "result", OLD)
    replace_folder(tmp_path / "result")
    write_json(tmp_path / "value.json", {"a": 1})
    assert contents(tmp_path / "result") == NEW
    assert {path.name for path in tmp_path.iterdir()} == {"result", "value.json"}


def test_a_file_in_the_place_of_a_folder_or_the_reverse_is_refused_and_stays(tmp_path):
    put(tmp_path, OLD)
    (tmp_path / "result" / "a").mkdir(parents=True)
    for replace, path, kind in (
        (replace_folder, tmp_path / "a", NotADirectoryError),
        (replace_file, tmp_path / "result", IsADirectoryError),
    ):
        with pytest.raises(kind) as refused:
            replace(path)
        assert Path(refused.value.filename).name == "a"
    assert {path.name for path in tmp_path.rglob("*")} == {*OLD, "result"}


@pytest.mark.parametrize("replace", [replace_file, replace_folder])
def test_who_has_the_old_result_open_goes_on_reading_it(replace, tmp_path):
    put(tmp_path / "result", OLD)
    with open(tmp_path / "result" / "a", "rb") as reader:
        replace(tmp_path / "result")
        assert reader.read() == OLD["a"]
    assert (tmp_path / "result" / "a").read_bytes() == NEW["a"]


@pytest.mark.parametrize("there_before", [False, True])
def test_a_kill_in_mid_write_never_shows_half_a_result(there_before, tmp_path):
    def write_half_a_file():
        with atomic_file(tmp_path / "result" / "a") as temporary:
            temporary.write_bytes(NEW["a"][:3])
            die()

    def write_half_a_folder():
        with atomic_folder(tmp_path / "result") as folder:
            put(folder, {"a": NEW["a"]})
            die()

    if there_before:
        put(tmp_path / "result", OLD)
    for child in (write_half_a_folder, write_half_a_file):
        assert exit_code(child) == -signal.SIGKILL
        assert (visible(tmp_path / "result") or None) == (OLD if there_before else None)


@pytest.mark.parametrize("replace, name", [(replace_file, "a"), (replace_folder, "result")])
def test_the_next_write_removes_what_a_killed_one_left_and_nothing_of_who_is_at_work(replace, name, tmp_path):
    with subprocess.Popen(["true"]) as ended:
        pass
    put(tmp_path / "result", OLD)
    beside = tmp_path / "result" if name == "a" else tmp_path
    left = [f".{name}.{ended.pid}.tmp", f".{name}.{os.getpid()}.tmp", f".{name}.{ended.pid}.old.tmp"]
    others = [f".{name}.{os.getppid()}.tmp", f".{name}.b.{ended.pid}.tmp", f".{name}.json.tmp"]
    for each in left + others:
        (beside / each).mkdir() if name == "result" or each.endswith(".old.tmp") else (beside / each).touch()
    replace(tmp_path / "result")
    assert sorted(path.name for path in beside.glob(".*")) == sorted(others)


@pytest.mark.parametrize("replace, after", [(replace_file, OLD | {"a": NEW["a"]}), (replace_folder, NEW)])
def test_a_kill_before_any_touch_of_the_file_system_shows_the_old_or_the_new_result(replace, after, tmp_path):
    def killed_before(touch: int, path: Path) -> None:
        countdown = iter(range(touch - 1, -1, -1))
        sys.addaudithook(lambda event, _: die() if event in TOUCHES and next(countdown, None) == 0 else None)
        replace(path)

    for touch in itertools.count(1):
        path = tmp_path / str(touch) / "result"
        path.parent.mkdir()
        put(path, OLD)
        code = exit_code(killed_before, touch, path)
        assert visible(path) in (OLD, after, None), f"killed before touch {touch}"
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert contents(path) == after
    assert touch > 3, "the kills were never carried out"


def too_large_file(path: Path) -> None:
    with atomic_file(path / "a") as temporary:
        temporary.write_bytes(bytes(4_000_000))


def too_large_safetensors(path: Path) -> None:
    with atomic_file(path / "a") as temporary:
        save_file({"x": torch.zeros(1_000_000)}, temporary)


def too_large_table(path: Path) -> None:
    with atomic_folder(path) as folder:
        writer = TensorWriter(folder / "a", {"x": (np.float32, (1000, 1000))})
        writer.write("x", 0, torch.ones(1000, 1000))
        writer.close()


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() or sys.platform != "linux":
        pytest.skip("only root on Linux can mount a small disk")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this root may not mount a small disk: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("write", [too_large_file, too_large_safetensors, too_large_table])
def test_a_full_disk_is_that_error_and_leaves_the_old_result(write, small_disk):
    put(small_disk / "result", OLD)
    assert exit_code(write, small_disk / "result") == errno.ENOSPC
    assert contents(small_disk / "result") == OLD
    assert [path.name for path in small_disk.iterdir()] == ["result"]


@pytest.mark.parametrize("write", [too_large_file, too_large_safetensors, too_large_table])
def test_a_file_over_the_limit_is_that_error_and_leaves_the_old_result(write, tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        write(tmp_path / "result")

    put(tmp_path / "result", OLD)
    assert exit_code(limited) == errno.EFBIG
    assert contents(tmp_path / "result") == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """A tensor of each stored type; the first has an odd number of bytes, which puts the others at odd offsets."""
    return {
        "pixels": torch.arange(35, dtype=torch.uint8).view(5, 7),
        "latents": torch.randn(5, 2, 3),
        "halves": torch.randn(5, 3).half(),
        "label": torch.arange(5),
    }


@pytest.fixture
def written(tensors, tmp_path) -> Path:
    """The tensors as `TensorWriter` writes them, two rows at a time."""
    path = tmp_path / "table.safetensors"
    shapes = {name: (x.numpy().dtype.type, tuple(x.shape)) for name, x in tensors.items()}
    writer = TensorWriter(path, shapes, {"resolution": "7"})
    for start in range(0, 5, 2):
        for name, x in tensors.items():
            writer.write(name, start, x[start : start + 2])
    writer.close()
    return path


def test_what_is_written_row_by_row_is_read_equal_by_safetensors_itself(tensors, written):
    torch.testing.assert_close(load_file(written), tensors, rtol=0, atol=0)
    assert metadata_of(written) == {"resolution": "7"}


def test_a_table_reads_what_safetensors_itself_wrote(tensors, tmp_path):
    save_file(tensors, tmp_path / "table.safetensors")
    rows = torch.tensor([4, 0, 4])
    table = Table.open(tmp_path / "table.safetensors")
    expected = {name: x[rows].float() if x.is_floating_point() else x[rows] for name, x in tensors.items()}
    assert len(table) == 5
    torch.testing.assert_close(table[rows], expected, rtol=0, atol=0)
    torch.testing.assert_close(table[slice(1, 3)]["label"], tensors["label"][1:3])


def test_a_table_opens_only_the_tensors_that_it_is_asked_for(written):
    assert set(Table.open(written, "label", "halves")[torch.tensor([0])]) == {"label", "halves"}


def test_shards_are_read_in_the_order_of_their_numbers_however_many(tmp_path):
    """The captions of images are in that order, in another file: a million pictures of 1024 pixels take 65,000."""
    for number in (2, 99_999, 100_000, 100_001):
        save_file({"label": torch.tensor([number])}, tmp_path / f"{number:05}.safetensors")
    assert Table.open(tmp_path)[slice(None)]["label"].tolist() == [2, 99_999, 100_000, 100_001]


def test_a_batch_is_a_copy_that_cannot_damage_the_file(tensors, written):
    Table.open(written, "latents")[slice(0, 5)]["latents"].zero_()
    assert torch.equal(load_file(written)["latents"], tensors["latents"])


def test_tensors_of_different_length_are_no_table():
    with pytest.raises(ValueError, match="differ in length"):
        Table({"a": np.zeros(3), "b": np.zeros(4)})


def test_a_table_larger_than_memory_costs_the_memory_of_its_batches(tmp_path):
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    rows = 1 << 19
    header = {"x": {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, rows * 4096]}}
    encoded = json.dumps(header).encode()
    path = tmp_path / "large.safetensors"
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + rows * 4096)  # two gigabytes of holes
    table, before = Table.open(path), resident()
    for start in range(0, rows, rows // 16):
        assert table[torch.arange(start, start + 8)]["x"].shape == (8, 1024)
    assert resident() - before < 64 << 20
