"""What the benchmarks make of raw figures: ratios, exponents, bounds, the verdict of `make bench`; values by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import torch
from prefect.states import State

from benchmarks import common, floor, growth, page, roofline, soak
from multiscale.training.part import Part, Training


def test_a_ratio_is_that_of_pairs_with_its_quartiles():
    seconds = {"theirs": [4.0, 9.0, 8.0, 10.0], "ours": [2.0, 3.0, 4.0, 2.0]}  # pairs: 2, 3, 2, 5
    found = common.ratio(seconds, "theirs", "ours")
    assert found == {"median": 2.5, "q1": 2.0, "q3": 3.5, "min": 2.0, "max": 5.0}


def test_versions_run_in_turn_after_their_warmup():
    calls: list[str] = []
    found = common.in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=2, warmup=1)
    assert "".join(calls) == "ab" + "abab"
    assert {name: len(each) for name, each in found.items()} == {"a": 2, "b": 2}


def test_an_exponent_is_the_slope_of_the_logarithms():
    assert common.exponent([1, 10, 100], [7, 700, 70_000]) == pytest.approx(2.0)
    assert common.exponent([32, 64, 128], [5.0, 5.0, 5.0]) == pytest.approx(0.0)


def test_growth_is_fitted_where_constant_costs_are_small():
    points = [{"size": size, "seconds": 3.0 * size, "mib": 0.5} for size in (10, 20, 40)]
    points.insert(0, {"size": 1, "seconds": 100.0, "mib": 0.5})
    found = growth.series("anything", points, work_exponent=1.0)["exponents"]
    assert found == {"seconds": pytest.approx(1.0), "work": 1.0}  # half a MiB says nothing of memory
    grown = [{**each, "mib": 4.0 * each["size"] ** 2, "flops": 9.0 * each["size"] ** 3} for each in points]
    found = growth.series("anything", grown)["exponents"]
    assert found["memory"] == pytest.approx(2.0) and found["work"] == pytest.approx(3.0)


def test_the_peak_memory_of_a_call_is_what_it_adds():
    held = torch.zeros(2**24)  # 64 MiB, which belong to no call
    _, less = growth.peak_memory(lambda: torch.ones(2**22).sum())  # 16 MiB
    _, more = growth.peak_memory(lambda: torch.ones(2**24).sum())  # 64 MiB
    assert 15 < less < 25 and 63 < more < 73 and held.sum() == 0


@pytest.mark.slow
def test_growth_measures_the_stages_that_make_and_read_images(monkeypatch):
    monkeypatch.setattr(growth, "WARMUP", 20)
    monkeypatch.setattr(growth, "IMAGES", [20, 40, 80])
    found = {row["what"]: [each["size"] for each in row["points"]] for row in growth.images()}
    assert found.pop("reference, nearest of a fifth") == [20, 40]
    assert len(found) == 8 and all(sizes == [20, 40, 80] for sizes in found.values())


def test_no_network_of_a_part_that_trains_nothing_is_measured():
    training = Training(images=1, batch=2)
    part = Part("as it is", [0, 1], {"net": torch.nn.Linear(1, 1)}, None)
    assert list(roofline.networks_of(part, training, 0)) == []


def test_a_ratio_is_worse_if_it_fell_by_more_than_the_tolerance():
    before = {"dit": 1.00, "unet": 0.80, "sampling": 0.90}
    assert floor.worse(before, {"dit": 0.951, "unet": 0.761, "sampling": 2.0}, 0.05) == []
    assert floor.worse(before, {"dit": 0.949, "unet": 0.759, "sampling": 0.9}, 0.05) == ["dit", "unet"]
    assert floor.worse(before, {"dit": 1.0, "unet": 0.8}, 0.05) == ["sampling"]  # no longer measured


def test_the_floor_takes_as_many_steps_between_those_of_a_training(monkeypatch):
    """A step of ours takes 3 seconds, one of the floor 2; a checkpoint after the fourth takes 6."""
    clock = [0.0]

    def pass_(seconds):
        clock[0] += seconds

    monkeypatch.setattr(floor, "_clocks", lambda: (clock[0], clock[0] / 2))
    turns = floor.Turns(lambda: pass_(2), block=3)
    pass_(100)  # before the training begins
    turns(0)
    for seen in range(1, 6):
        pass_(3 if seen != 5 else 9)
        turns(16 * seen)
    turns.end()
    assert turns.spent == {"ours": [[9, 4.5], [12, 6]], "plain torch": [[6, 3], [4, 2]]}
    assert turns.overhead(0) == turns.overhead(1) == pytest.approx(21 / 10 - 1)


def bench(tmp_path, monkeypatch, ratios: list[float], arguments: tuple[str, ...] = (), committed: bool = True) -> int:
    """The exit code of `make bench` with one pair whose ratio is 1 as committed; `ratios` are measured one by one."""
    monkeypatch.setattr(floor, "RESULTS", tmp_path)
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    if committed:
        (tmp_path / "floor.json").write_text(json.dumps({"rows": {"training step": {"ratio": {"median": 1.0}}}}))
    found = iter(ratios)
    monkeypatch.setattr(floor, "measure", lambda pair: {"ratio": {"median": next(found)}})
    monkeypatch.setattr(floor, "training_steps", lambda: [floor.Pair("training step", {}, 1, 1, {})])
    monkeypatch.setattr(floor, "samplers", lambda: [])
    code = floor.main(list(arguments))
    assert next(found, None) is None  # each was asked for
    return code


@pytest.mark.parametrize(("ratios", "code"), [([0.96], 0), ([0.94, 0.96], 0), ([0.94, 0.93], 1)])
def test_bench_fails_where_a_ratio_is_worse_twice(tmp_path, monkeypatch, capsys, ratios, code):
    assert bench(tmp_path, monkeypatch, ratios) == code
    out, err = capsys.readouterr()
    if code:
        line = (
            "bench: slower than committed by more than 5% (ratio to plain torch): training step 0.940 instead of 1.000"
        )
        assert err.splitlines() == [line]
    else:
        assert err == "" and out.splitlines() == ["bench: no ratio to plain torch is more than 5% worse than committed"]


def test_bench_writes_what_it_compares_with_and_refuses_anything_else(tmp_path, monkeypatch, capsys):
    assert bench(tmp_path, monkeypatch, [], committed=False) == 2
    assert "the file is missing; python -m benchmarks.floor --save writes it" in capsys.readouterr().err
    assert bench(tmp_path, monkeypatch, [], ("--keep",)) == 2
    assert "bench: --keep: unknown; allowed: --save" in capsys.readouterr().err
    assert bench(tmp_path, monkeypatch, [0.5], ("--save",)) == 0
    assert json.loads((tmp_path / "floor.json").read_text())["rows"]["training step"]["ratio"]["median"] == 0.5


MACHINE = roofline.Machine({torch.float32: 100.0, torch.bfloat16: 200.0}, {1000: 10.0, 10: 50.0})


def test_an_operator_is_bound_by_its_products_or_by_the_memory_that_holds_its_bytes():
    assert MACHINE.seconds(400, 10, torch.float32) == 4.0  # 400 operations at 100 a second; 10 bytes take 0.2
    assert MACHINE.seconds(400, 10, torch.bfloat16) == 2.0
    assert MACHINE.seconds(0, 10, torch.float32) == 0.2  # fits the cache
    assert MACHINE.seconds(0, 11, torch.float32) == 1.1  # does not
    assert MACHINE.seconds(0, 5000, torch.float32) == 500.0  # fits nothing that was measured


def test_operators_are_counted_with_their_bytes_and_views_are_free():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    with roofline.Counting(MACHINE) as counting:
        torch.relu(a @ b).T.reshape(-1, 7)[0].unsqueeze(0)
    found = counting.found
    assert found.operators == 3  # the product, the maximum, and the copy that the transpose needs to be reshaped
    assert found.flops == 2 * 3 * 5 * 7
    assert found.bytes == 4 * (3 * 5 + 5 * 7 + 3 * 7) + 2 * 4 * (3 * 7 + 3 * 7)
    seconds = [max(210 / 100, 284 / 10), 168 / 10, 168 / 10]
    assert found.bound_seconds == pytest.approx(sum(seconds))
    assert found.bound_seconds_of == {"products": pytest.approx(28.4), "others": pytest.approx(33.6)}


def test_the_page_of_performance_shows_the_committed_figures():
    assert page.filled(page.PAGE.read_text()) == page.PAGE.read_text(), "python -m benchmarks.page"


def test_scheduled_runs_are_counted_once_each_as_done_waiting_or_lost():
    started = datetime(2026, 1, 1, tzinfo=UTC)
    due = [started + timedelta(seconds=10 * index) for index in range(6)]

    def run(index: int, kind: str, message: str = "", late: float | None = 1.0, auto: bool = True) -> SimpleNamespace:
        state = State(type=kind, message=message)
        start = due[index] + timedelta(seconds=late) if late is not None else None
        return SimpleNamespace(expected_start_time=due[index], start_time=start, state=state, auto_scheduled=auto)

    nothing = "0 stages ran, 13 were up to date"
    runs = [
        run(0, "COMPLETED", nothing),
        run(1, "COMPLETED", nothing, late=5.0),
        run(1, "COMPLETED", nothing, late=6.0),  # twice
        run(2, "COMPLETED", "2 stages ran, 11 were up to date"),  # had something to do
        run(3, "SCHEDULED", late=None),
        run(4, "FAILED"),
        run(5, "COMPLETED", nothing, auto=False),  # asked for, and not by the schedule: that one is not there
    ]
    found = soak.counted(runs, due)
    assert found == {
        "due": 6,
        "completed": 2,
        "waiting": 1,
        "twice": 1,
        "lost": 3,
        "seconds_late": {"median": 1.0, "max": 6.0},
    }
