"""What a run knows of its own time: all figures worked out by hand."""

from __future__ import annotations

import heapq
import json
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from flows import estimate, graph
from flows.estimate import Estimate, Running
from flows.graph import Stage
from flows.scheduler import Scheduler
from flows.terminal import status
from flows.work import End

# a: 60 s, then b: 20 s and c: 40 s; after b d: 30 s.
FORK = {"a": (), "b": ("a",), "c": ("a",), "d": ("b",)}
SECONDS = {"a": 60.0, "b": 20.0, "c": 40.0, "d": 30.0}


def plan(needs: dict[str, tuple[str, ...]], leading: str = "") -> list[Stage]:
    """Stages with their needs; those in `leading` lead to the first pictures."""
    return [Stage(name, need, False, 0, name in leading.split()) for name, need in needs.items()]


def after_a(took: float, known: dict[str, float] = SECONDS) -> Estimate:
    """The estimate when `a` has ended."""
    found = Estimate(plan(FORK), known)
    found.learn("a", took)
    return found


def waiting(found: Estimate, *names: str) -> dict[str, Stage]:
    return {stage.address: stage for stage in found.stages if stage.address in names}


def test_what_is_left_is_the_rest_played_through_at_the_pace_of_what_has_ended():
    found = after_a(180.0)  # with the prior of a minute: 240 for 120, twice as long as expected
    both = {"b": Running(since=180.0), "c": Running(since=180.0)}
    # b ends at 220 and c at 260; d takes 60 after b: until 280, 90 from now.
    assert found.left(waiting(found, "d"), both, {"a"}, 2, now=190.0) == 90
    # On one slot: 30 of b, 80 of c, 60 of d.
    assert found.left(waiting(found, "c", "d"), {"b": both["b"]}, {"a"}, 1, now=190.0) == 170
    # What a failed stage holds back is never run.
    assert found.left(waiting(found, "d"), {}, {"a", "c"}, 2, now=190.0) == 0


def test_a_stage_that_runs_is_believed_by_its_bar_and_sets_the_pace_of_the_others():
    found = after_a(180.0)
    both = {"b": Running(since=180.0), "c": Running(since=180.0, percent=6, ends=500.0)}
    # c takes 320 instead of 40: 560 for 160, 3.5 times as long. b ends at 250 and d at 355, c as it says at 500.
    assert found.left(waiting(found, "d"), both, {"a"}, 2, now=200.0) == 300
    assert found.remaining("b", both, now=200.0) == 50
    # In its first seconds a bar says little: the pace is 2, b ends at 220.
    assert found.remaining("b", both, now=189.0) == 31


def test_a_stage_that_never_ran_counts_as_its_group_does_and_else_as_the_mean():
    stages = plan(dict.fromkeys(("train@x", "train@y", "train@z", "new"), ()))
    found = Estimate(stages, {"train@x": 10.0, "train@y": 30.0, "other": 5.0})
    assert found.seconds == {"train@x": 10, "train@y": 30, "train@z": 20, "new": 15}
    assert found.pace({}, 0.0) == 1
    found.learn("new", 100.0)  # says nothing of the pace, as nothing was expected of it
    assert found.pace({}, 0.0) == 1 and found.seconds["new"] == 100


def test_before_anything_is_known_nothing_is_said():
    found = Estimate(plan(FORK), {})
    assert found.left(waiting(found, *FORK), {}, (), 2, 0.0) is None
    assert found.chain == {"a": 3, "b": 2, "c": 1, "d": 1}, "so many stages"
    found.learn("a", 8.0)
    assert found.left(waiting(found, "b", "c", "d"), {}, {"a"}, 2, 0.0) == 16


def test_first_goes_what_all_would_wait_for_then_the_first_pictures_then_samples_then_the_longest_chain():
    needs = {"x": (), "long": (), "end": ("long",), "sample@q": (), "train@p": (), "sample@p": ("train@p",)}
    known = {"x": 25.0, "long": 30.0, "end": 30.0, "sample@q": 1.0, "train@p": 9.0, "sample@p": 5.0}
    found = Estimate(plan(needs, "train@p sample@p"), known)

    def order(slots: int) -> list[str]:
        return [stage.address for stage in found.choose(waiting(found, *needs), (), slots, 9)]

    assert order(slots=1) == ["train@p", "sample@q", "long", "x"]  # 60 of 100 seconds: not all that one slot has
    assert order(slots=2) == ["long", "train@p", "sample@q", "x"]  # more than the 50 of each slot
    done = {"train@p"}
    chosen = found.choose(waiting(found, *needs.keys() - done), done, 1, 1)
    assert [stage.address for stage in chosen] == ["sample@p"]


def test_the_embedded_run_has_its_first_pictures_early_and_ends_no_later(project):
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    assert project.stage("recipe", "embedded", "--force").returncode == 0
    stages, known = graph.plan(), estimate.read()
    assert {stage.address for stage in stages} == set(known), "the table has every stage"
    found = Estimate(stages, known)
    waits, done, busy, now, ended = waiting(found, *known), set(), [], 0.0, {}
    while waits or busy:
        for stage in found.choose(waits, done, 2, 2 - len(busy)):
            del waits[stage.address]
            heapq.heappush(busy, (now + known[stage.address], stage.address))
        now, address = heapq.heappop(busy)
        done.add(address)
        ended[address] = now
    samples = sorted(end for address, end in ended.items() if address.startswith("sample@"))
    assert ended["sample@msf"] < min(now / 3, 240)
    assert samples[4] < 2 * now / 3, "the others follow one by one"
    alone = sum(known[address] for address in ("code", "download", "timing", "report"))  # nothing can run beside them
    assert now < 1.02 * (sum(known.values()) + alone) / 2, "two slots are busy to the end"


def test_the_seconds_of_this_folder_go_before_those_of_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "TABLES", tmp_path)
    (tmp_path / "small.json").write_text(json.dumps({"vae": 100.0, "report": 5.0}))
    assert estimate.read() == {}, "no experiment, no recipe"
    estimate.record("vae", 80.04)
    estimate.record("train@x", 7.0)
    for recipe, report in (("small", {"report": 5.0}), ("large", {})):
        Path("params.yaml").write_text(f"recipe: {recipe}\n")
        assert estimate.read() == {"vae": 80.0, "train@x": 7.0} | report
    estimate.RECORD.write_text('{"vae": 8')
    assert estimate.read() == {}


@pytest.fixture
def run(tmp_path, monkeypatch) -> Scheduler:
    """A run of the fork where a has ended in time and b and c are at work."""
    monkeypatch.chdir(tmp_path)
    run = Scheduler(plan(FORK), lambda *_: None, [])
    run.slots, run.estimate, run.ends = 2, after_a(60.0), {"a": End("Completed", "ran")}
    run.waiting, run.running = waiting(run.estimate, "d"), {"b": Running(since=10.0), "c": Running(since=10.0)}
    return run


def test_the_bars_of_tqdm_are_understood(run):
    for elapsed, percent, left in ((1300.0, 25, 3900), (75.0, 50, 75)):
        assert run._read("b", tqdm.format_meter(percent, 100, elapsed, prefix="train b", unit="img"))
        assert run.running["b"].percent == percent
        assert run.running["b"].ends - time.monotonic() == pytest.approx(left, abs=1)
    assert run._read("b", tqdm.format_meter(100, 100, 150.0)) and run.running["b"].ends is None
    assert run._read("c", tqdm.format_meter(0, 100, 0.0)) and run.running["c"].ends is None
    assert not run._read("b", "loss 0.5 at 30% of it") and not run._read("b", "Running stage 'b':")


def test_the_line_says_what_is_done_what_runs_and_how_long_it_takes(run):
    run.running["c"] = Running(since=10.0, percent=26, ends=50.0)
    # b ends at 30, d at 60: 40 from now, or 29.
    assert status(run, 20.0) == "1/4 stages, 1 min left | b 50% 0:10 | c 26% 0:30"
    assert status(run, 31.0) == "1/4 stages, less than 1 min left | b ending | c 26% 0:19"
    run.running["c"] = Running(since=10.0, percent=99, ends=4000.0)
    run.estimate.known.pop("c")  # of which nothing was expected: it says nothing of the pace
    assert status(run, 30.0) == "1/4 stages, 1 h 6 min left | b ending | c 99% 1:06:10"


def test_no_stage_that_runs_stands_at_100_percent(run):
    run.running["c"] = Running(since=10.0, percent=100)  # the bar is full; of 40 seconds 8 are left
    assert status(run, 42.0).endswith("| c 80% 0:08")
    run.estimate = Estimate(plan(FORK), {})
    assert status(run, 42.0) == "1/4 stages, unknown time left | b for 0:32 | c for 0:32"
