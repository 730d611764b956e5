"""A damaged checkpoint is skipped, and a checkpoint belongs to one run."""

from __future__ import annotations

import logging

import pytest
import torch
from conftest import flipped

from multiscale.core.storage import digest_files
from multiscale.training.checkpoint import Checkpoints, flatten_optimizer, restore_optimizer


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    """A run with checkpoints after 10, 20, 30 and 100000 images."""
    checkpoints = Checkpoints(tmp_path, "part", "key")
    for images in (10, 20, 30, 100_000):
        checkpoints.save(images, {"x": torch.full((1000,), float(images))}, {"seen": images})
    return checkpoints


def files(checkpoints: Checkpoints) -> list:
    return sorted(checkpoints.folder.iterdir())


def test_only_the_newest_two_are_kept(checkpoints):
    assert [int(path.stem) for path in files(checkpoints)] == [30, 100_000]


def test_the_newest_is_loaded(checkpoints):
    tensors, state = checkpoints.load()
    assert state == {"seen": 100_000}
    assert torch.equal(tensors["x"], torch.full((1000,), 100_000.0))


@pytest.mark.parametrize("left", [0, 5, 60, 2000])  # nothing, half a length, half a header, half the data
def test_a_torn_newest_is_skipped_with_a_warning(left, checkpoints, caplog):
    newest = files(checkpoints)[-1]
    newest.write_bytes(newest.read_bytes()[:left])
    with caplog.at_level(logging.WARNING):
        assert checkpoints.load()[1] == {"seen": 30}
    assert newest.name in caplog.text


def test_a_flipped_bit_of_the_newest_is_skipped_with_a_warning(checkpoints, caplog):
    newest = files(checkpoints)[-1]
    size = newest.stat().st_size
    for place in (0, 20, 60, 150, size // 2, size - 3):  # the length, the state, the tensors' names, the tensors
        with flipped(newest, place, place % 8), caplog.at_level(logging.WARNING):
            assert checkpoints.load()[1] == {"seen": 30}
        assert caplog.text.count(newest.name) == 1, place
        caplog.clear()


def test_with_all_torn_the_run_starts_anew(checkpoints):
    for path in files(checkpoints):
        path.write_bytes(b"torn")
    assert checkpoints.load() is None


def test_checkpoints_of_a_run_that_starts_anew_stay_and_those_torn_go(checkpoints):
    for path in files(checkpoints):
        path.write_bytes(b"torn")
    assert checkpoints.load() is None
    for kept in ([1], [1, 30], [30, 31]):  # 30 is written anew
        checkpoints.save(kept[-1], {"x": torch.zeros(9)}, {"seen": kept[-1]})
        assert checkpoints.load()[1] == {"seen": kept[-1]}
        assert [int(path.stem) for path in files(checkpoints)] == kept


def test_a_leftover_of_a_killed_write_is_no_checkpoint(checkpoints):
    (checkpoints.folder / ".000000200000.safetensors.1.tmp").write_bytes(b"half")
    assert checkpoints.load()[1] == {"seen": 100_000}


@pytest.mark.parametrize("name, key", [("part", "another key"), ("another part", "key")])
def test_another_run_never_sees_them(name, key, checkpoints, tmp_path):
    other = Checkpoints(tmp_path, name, key)
    assert other.load() is None
    other.clear()
    assert checkpoints.load()


def test_the_same_key_finds_them_again_until_they_are_cleared(checkpoints, tmp_path):
    again = Checkpoints(tmp_path, "part", "key")
    assert again.load()[1] == {"seen": 100_000}
    again.clear()
    assert checkpoints.load() is None
    assert list(tmp_path.iterdir()) == []


def test_the_digest_depends_on_contents_and_order_not_on_names(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    a.write_text("1"), b.write_text("2"), c.write_text("1")
    assert digest_files([a, b]) == digest_files([c, b])
    assert digest_files([a, b]) != digest_files([b, a])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_optimiser_goes_on_from_its_tensors_as_if_never_stopped(layout, checkpoints):
    def start():
        torch.manual_seed(0)
        net = torch.nn.Conv2d(3, 4, 3).to(memory_format=layout)
        return net, torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)

    def step(net, optimizer):
        net(torch.linspace(-1, 1, 75).view(1, 3, 5, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    net, optimizer = start()
    step(net, optimizer)
    step(net, optimizer)
    checkpoints.save(200_000, net.state_dict() | flatten_optimizer("optimizer", optimizer), {})
    other, resumed = start()
    tensors, _ = checkpoints.load()
    other.load_state_dict({key: tensors[key] for key in other.state_dict()})
    restore_optimizer("optimizer", resumed, tensors)
    for pair in ((net, optimizer), (other, resumed)):
        step(*pair)
    torch.testing.assert_close(other.state_dict(), net.state_dict(), rtol=0, atol=0)
