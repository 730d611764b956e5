"""Seconds that do not depend on what else the machine does: the reducer, the turns and the reference workload."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from multiscale import timing
from multiscale.timing import Lap, Stopwatch, Turn, best, figures

# The second round is twice as slow, in the third something else takes a third of the time, in the fourth the network
# alone is unlucky. Ratios of wall time: 3, 3, 3.5, 6; of processor time: 3, 3, 3, 4.
ROUNDS = [
    Turn(Lap(3.0, 3.0), Lap(1.0, 1.0)),
    Turn(Lap(6.0, 6.0), Lap(2.0, 2.0)),
    Turn(Lap(7.0, 4.5), Lap(2.0, 1.5)),
    Turn(Lap(6.0, 2.0), Lap(1.0, 0.5)),
]


def test_seconds_are_the_median_ratio_to_the_reference_at_its_best():
    found = figures(ROUNDS, Lap(0.5, 0.25), "wall")
    assert found.ratio == 3.25 and found.seconds == 3.25 * 0.5
    assert found.processor_seconds == 3.0 * 0.25
    # The quartiles of 3, 3, 3.5, 6 are 3 and 3.5 + 2.5 / 4.
    assert found.spread == pytest.approx((4.125 - 3.0) / 3.25, rel=1e-12)
    assert found.busy == 2, "the last two rounds"


def test_one_thread_of_a_cpu_is_timed_by_the_processor_which_others_do_not_slow_down(monkeypatch):
    for cuda, threads, expected in ((False, 1, "processor"), (False, 2, "wall"), (True, 1, "wall")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert timing.clock() == expected
    found = figures(ROUNDS, Lap(0.5, 0.25), "processor")
    assert found.ratio == 3.0 and found.seconds == found.processor_seconds == 3.0 * 0.25
    assert found.spread == pytest.approx((3.25 - 3.0) / 3.0, rel=1e-12), "the quartiles of 3, 3, 3, 4"


def test_a_machine_that_is_slower_in_some_rounds_changes_nothing():
    slow = [
        Turn(Lap(f * t.lap.wall, f * t.lap.processor), Lap(f * t.reference.wall, f * t.reference.processor))
        for f, t in zip((1.0, 4.0, 0.5, 8.0), ROUNDS)
    ]
    for clock in ("wall", "processor"):
        assert figures(slow, Lap(0.5, 0.25), clock) == figures(ROUNDS, Lap(0.5, 0.25), clock)


def test_one_round_has_no_spread():
    assert figures(ROUNDS[:1], Lap(1.0, 1.0), "wall") == timing.Figures(3.0, 3.0, 3.0, 0.0, 0)


def test_the_reference_is_at_its_best_in_any_round_beside_any_call():
    one, two = Turn(Lap(9.0, 9.0), Lap(0.5, 0.25)), Turn(Lap(0.1, 0.1), Lap(0.25, 0.5))
    assert best([{"a": [one, one], "b": [one, two]}, {"a": [one, one], "b": [one, one]}]) == Lap(0.25, 0.25)


@pytest.mark.parametrize(
    "lap, busy",
    [
        (Lap(1.09, 1.0), False),
        (Lap(1.11, 1.0), True),  # it waited
        (Lap(1.0, 1.0, 1.9), False),
        (Lap(1.0, 1.0, 2.1), True),  # others use more than a quarter of the eight
        (Lap(1.0, 4.0), False),  # four threads
    ],
)
def test_a_machine_is_busy_where_the_call_waits_or_others_use_its_processors(lap, busy, monkeypatch):
    monkeypatch.setattr(timing.psutil, "cpu_count", lambda: 8)
    assert lap.is_busy is busy


class Machine:
    """Clocks that calls advance, and the order of the calls."""

    def __init__(self, monkeypatch):
        self.wall = self.processor = self.in_use = 0.0
        self.called: list[str] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(time, "process_time", lambda: self.processor)
        monkeypatch.setattr(timing, "_in_use", lambda: self.in_use)

    def call(self, name: str, wall: float, processor: float = 0.0, in_use: float = 0.0) -> Callable[[], None]:
        def call() -> None:
            self.called.append(name)
            self.wall += wall
            self.processor += processor
            self.in_use += in_use

        return call


def test_a_short_call_is_repeated_and_its_lap_is_the_mean(monkeypatch):
    machine = Machine(monkeypatch)
    found = timing.lap(machine.call("short", wall=0.04, processor=0.03, in_use=0.05))
    assert machine.called == ["short"] * 3, "0.12 s are the first that reach 0.1"
    assert (found.wall, found.processor) == pytest.approx((0.04, 0.03))
    assert found.others == pytest.approx((0.15 - 0.09) / 0.12)
    assert timing.lap(machine.call("long", wall=2.0, processor=1.0)) == Lap(2.0, 1.0, 0.0)
    assert machine.called[3:] == ["long"]


def test_every_group_has_its_turn_in_each_round_between_two_laps_of_the_reference(monkeypatch):
    machine = Machine(monkeypatch)
    walls = iter([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0])
    monkeypatch.setattr(timing, "reference", lambda: lambda: machine.call("reference", next(walls))())
    groups = {name: [machine.call(f"{name}8", 3.0), machine.call(f"{name}1", 5.0)] for name in "abc"}
    watch = Stopwatch(groups)
    assert machine.called == ["reference", "a8", "a1", "b8", "b1", "c8", "c1"], "each once before anything is timed"
    orders = set()
    for index, references in enumerate(([2.0, 4.0, 8.0, 16.0], [32.0, 64.0, 128.0, 256.0])):
        machine.called.clear()
        turns = watch.round(index)
        assert machine.called[::3] == ["reference"] * 4
        order = [name[0] for name in machine.called[1::3]]
        assert sorted(order) == ["a", "b", "c"] and machine.called[2::3] == [f"{name}1" for name in order]
        for name, before, after in zip(order, references, references[1:]):
            assert [turn.lap.wall for turn in turns[name]] == [3.0, 5.0]
            assert {turn.reference.wall for turn in turns[name]} == {(before + after) / 2}
        orders.add(tuple(order))
    assert len(orders) == 2, "who comes first changes"


def test_the_order_of_ten_methods_changes_from_round_to_round(monkeypatch):
    machine = Machine(monkeypatch)
    monkeypatch.setattr(timing, "reference", lambda: machine.call("reference", 1.0))
    watch = Stopwatch({str(k): [machine.call(str(k), 1.0)] for k in range(10)})
    orders = [tuple(watch.round(index)) for index in range(4)]
    assert len(set(orders)) == 4 and len({order[0] for order in orders}) > 1


def test_the_reference_workload_has_the_operations_that_it_says_in_float32():
    call, before = timing.reference(), torch.get_rng_state()
    with FlopCounterMode(display=False) as counter:
        call()
    # 16 convolutions of 8 x 32 x 32 pixels, 32 to 32 channels, 3 x 3; 8 pairs of products of 8 x 64 tokens, 192 to 768.
    by_hand = 16 * 2 * 8 * 32 * 32 * 32 * 32 * 9 + 8 * 2 * (2 * 8 * 64 * 192 * 768)
    assert counter.get_total_flops() == timing.REFERENCE_FLOPS == by_hand
    assert torch.equal(torch.get_rng_state(), before), "it draws from a stream of its own"
