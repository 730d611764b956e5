"""Checkpoints in the background: they hold what was there when they were due, take 1 % of the time, and may fail."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from conftest import replace
from test_training import SHORT, Interrupted, Line, start_of, stop_at

from multiscale.training import checkpoint, shards
from multiscale.training.checkpoint import Checkpoints, Writer

ALONE = SimpleNamespace(rank=0, mesh=None, writing=None)


@pytest.fixture
def clock(monkeypatch):
    """The time of the checkpoints, which only a test moves."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_a_checkpoint_holds_the_weights_of_its_step_though_the_training_goes_on(tmp_path, monkeypatch):
    going_on, save = threading.Event(), Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda *given: going_on.wait(60) and save(*given))
    checkpoints, weight = Checkpoints(tmp_path, "part", "key"), torch.ones(3)
    with Writer(checkpoints, 0.0, ALONE) as writer:
        writer.save(8, lambda: ({"x": weight}, {"seen": 8}))
        weight.zero_()
        assert checkpoints.load() is None
        going_on.set()
    tensors, about = checkpoints.load()
    assert torch.equal(tensors["x"], torch.ones(3)) and about == {"seen": 8}


def test_no_checkpoint_is_due_while_one_is_written_or_before_a_hundred_times_what_the_last_took(
    tmp_path, monkeypatch, clock
):
    going_on = threading.Event()

    def slow(*given):
        going_on.wait(60)
        clock.seconds += 3

    def state():
        clock.seconds += 1
        return {}, {}

    monkeypatch.setattr(Checkpoints, "save", slow)
    with Writer(Checkpoints(tmp_path, "part", "key"), 30.0, ALONE) as writer:
        clock.seconds += 29
        assert not writer.due()
        clock.seconds += 1
        assert writer.due()
        writer.save(8, state)
        clock.seconds += 10_000
        assert not writer.due(), "it is still being written"
        clock.seconds -= 10_000
        going_on.set()
        writer.pending.result()
        clock.seconds += 395  # 399 since it began
        assert not writer.due()
        clock.seconds += 1
        assert writer.due()


def test_a_training_does_not_wait_for_its_checkpoints(tmp_path, monkeypatch):
    seen, written = [], threading.Event()

    def save(*given):
        written.wait(60)

    monkeypatch.setattr(Checkpoints, "save", save)
    _, fit_line = start_of(Line, SHORT, tmp_path)

    def on_step(images: int) -> None:
        seen.append(images)
        if images == 88:
            written.set()

    fit_line(on_step=on_step, checkpoint_seconds=1e-9)
    assert written.is_set() and seen[-1] == 96, "it came to its end, and then the checkpoint to its own"


def test_a_write_that_fails_ends_the_training(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    for every in (0.0, 1e-9):  # found at the next one, and at the end
        with pytest.raises(OSError, match="No space"):
            start_of(Line, replace(SHORT, images=16), tmp_path)[1](checkpoint_seconds=every)


def test_a_run_that_ends_in_an_error_has_written_what_was_due(tmp_path):
    _, fit_line = start_of(Line, SHORT, tmp_path)
    with pytest.raises(Interrupted):
        fit_line(on_step=stop_at(40))
    assert Checkpoints(tmp_path, "line", "key").load()[1]["seen"] == 32


def test_shards_are_written_without_a_word_to_a_gpu(tmp_path, monkeypatch):
    """What asks a GPU fails here, where torch has none, if torch believes that it has one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        shards.save(tmp_path / "8", {"x": torch.arange(3)}, {"seen": 8}, dist.group.WORLD)
    finally:
        dist.destroy_process_group()
    monkeypatch.undo()
    tensors, about = shards.load(tmp_path / "8", lambda key, size, dtype: torch.empty(size, dtype=dtype))
    assert torch.equal(tensors["x"], torch.arange(3)) and about == {"seen": 8}
