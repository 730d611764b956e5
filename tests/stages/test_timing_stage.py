"""The stage `timing`: costs that are the same on every run beside seconds that are not, and where each is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import flipped, sealed

from multiscale import model
from stages import timing
from stages.common import settings, timings
from stages.common.paths import COSTS, MODELS, SAMPLES, TIMINGS


@pytest.fixture
def sampled(trained, working_copy):
    """The working directory of a project in which MSF and DiT are sampled, and every other method left out."""
    from conftest import Project

    project = Project(working_copy(trained))
    given, kept = project.read(), ("dit", "msf")
    others = [f"methods.{name}" for name in given["methods"] if name not in kept]
    others += [f"parts.{name}" for name, part in given["parts"].items() if part["method"] not in kept]
    others += [f"students.{name}" for name in given["students"]]
    project.change(dict.fromkeys(others, ...) | {"timing.rounds": 2, "timing.batch": 3})
    for name in kept:
        done = project.stage("sample", name)
        assert done.returncode == 0, done.stderr
    return project


def test_costs_are_the_same_in_every_run_and_seconds_are_not(sampled):
    assert sampled.stage("timing").returncode == 0
    costs, first = COSTS.read_bytes(), timings.read("sampling", COSTS)
    samples = {path: path.read_bytes() for path in SAMPLES.rglob("*") if path.is_file()}
    for name in ("dit", "msf"):
        assert sampled.stage("sample", name).returncode == 0
    assert sampled.stage("timing").returncode == 0
    assert COSTS.read_bytes() == costs and {path: path.read_bytes() for path in samples} == samples
    second = timings.read("sampling", COSTS)
    assert first["methods"] != second["methods"]
    assert json.loads(costs)["msf"]["network_calls_by_network"] == {"scale-0": 8, "scale-1": 2}
    assert json.loads(costs).keys() == first["methods"].keys() == {"dit", "msf"}
    assert not {"seconds", "memory"} & set("_".join(json.loads(costs)["msf"]).split("_"))


def test_the_figures_are_those_of_one_image(sampled, monkeypatch):
    """The same ratios to a reference of a second, in batches of 3 and of 1."""
    asked = []

    class Counting:
        def __init__(self, name: str):
            self.name = name

        def __call__(self, seeds, labels):
            asked.append((self.name, seeds, labels.tolist()))
            return labels.float()

    monkeypatch.setattr(model, "load", lambda folder, section, precision: Counting(folder.name))
    lap = timing.timing.Lap
    monkeypatch.setattr(timing.timing, "reference", lambda: lambda: asked.append("reference"))

    def timed(call):
        before = len(asked)
        call()
        if asked[before] == "reference":
            return lap(1.0, 1.0)
        name, seeds, _ = asked[before]
        wall = {("dit", 3): 6.0, ("dit", 1): 4.0, ("msf", 3): 3.0, ("msf", 1): 2.0}[name, len(seeds)]
        return lap(wall, wall / 2)

    monkeypatch.setattr(timing.timing, "lap", timed)
    monkeypatch.setattr(timing.timing, "clock", lambda: "wall")
    found = timing.measure(["dit", "msf"], settings.load())["methods"]
    assert found["dit"]["seconds_per_image"] == 2.0 and found["dit"]["processor_seconds_per_image"] == 1.0
    assert found["msf"]["seconds_per_image"] == 1.0 and found["msf"]["seconds_per_image_batch_1"] == 2.0
    assert found["msf"]["processor_seconds_per_image_batch_1"] == 1.0
    assert found["dit"]["ratio"] == 6.0 and found["dit"]["spread"] == 0.0
    assert found["dit"]["busy_rounds"] == found["dit"]["busy_rounds_batch_1"] == 2, "half the time it waited"
    assert ("dit", [0, 1, 2], [0, 0, 0]) in asked and ("msf", [0], [0]) in asked


def test_the_clock_is_that_of_the_worker_and_not_of_this_process(sampled, monkeypatch):
    """A worker may have a GPU or several threads where this process has neither."""
    lap = timing.timing.Lap
    monkeypatch.setattr(timing, "calls", lambda name, size, params: [lambda: 0, lambda: 0])
    monkeypatch.setattr(timing.timing, "lap", lambda call: lap(8.0, 4.0) if call() == 0 else lap(1.0, 2.0))
    monkeypatch.setattr(timing.timing, "clock", lambda: "processor")
    assert timing.measure(["dit"], settings.load())["methods"]["dit"]["ratio"] == 2.0
    monkeypatch.setattr(timing.Bench, "clock", lambda self: "wall")
    assert timing.measure(["dit"], settings.load())["methods"]["dit"]["ratio"] == 8.0


def test_other_numbers_of_steps_are_timed_with_their_own_solvers(sampled, monkeypatch):
    sampled.change({"methods.dit.steps": [7, 2]})
    steps, lap = [], timing.timing.Lap

    class Counting:
        def __init__(self, section):
            self.steps = section.scales[0].steps

        def __call__(self, seeds, labels):
            steps.append((self.steps, len(seeds)))
            return labels.float()

    monkeypatch.setattr(model, "load", lambda folder, section, precision: Counting(section))
    monkeypatch.setattr(timing.timing, "reference", lambda: lambda: steps.append((1, 1)))

    def timed(call):
        call()
        return lap(steps[-1][0] * steps[-1][1], 1.0)

    monkeypatch.setattr(timing.timing, "lap", timed)
    monkeypatch.setattr(timing.timing, "clock", lambda: "wall")
    found = timing.measure(["dit"], settings.load())["methods"]["dit"]
    assert found["seconds_per_image_of_steps"] == {"7": 7.0, "2": 2.0} and found["seconds_per_image"] == 4.0


def test_without_a_batch_of_its_own_whole_batches_are_timed(sampled, monkeypatch):
    sampled.change({"timing.batch": ..., "sample.batch": 7})
    batches = []
    monkeypatch.setattr(timing, "calls", lambda name, size, params: batches.append(size) or [lambda: 0, lambda: 0])
    monkeypatch.setattr(timing.timing, "LAP", 0.0)
    assert timing.measure(["dit"], settings.load())["batch"] == 7 and batches == [7]


def test_repeated_trainings_of_a_method_are_costed_and_timed_once(sampled, monkeypatch):
    given = sampled.read()
    parts = {f"parts.{name}-seed-1": given["parts"][name] | {"method": "msf-seed-1"} for name in ("msf-0", "msf-1")}
    sampled.change(parts | {"methods.msf-seed-1": given["methods"]["msf"] | {"repeat_of": "msf"}})
    (SAMPLES / "msf-seed-1").mkdir()
    (SAMPLES / "msf-seed-1" / COSTS.name).write_text((SAMPLES / "msf" / COSTS.name).read_text())
    sealed(SAMPLES / "msf-seed-1")
    monkeypatch.setattr(timing, "measure", lambda names, params: {"methods": dict.fromkeys(names, {})})
    timing.main(settings.load())
    assert json.loads(COSTS.read_text()).keys() == {"dit", "msf", "msf-seed-1"}
    assert timings.read("sampling", COSTS)["methods"].keys() == {"dit", "msf"}


def test_a_training_and_a_sampling_say_what_they_took_and_of_what(sampled):
    training = timings.read("msf-0", MODELS / "msf/msf-0/history.jsonl")
    assert training["train_seconds"] > 0 and training["peak_memory_bytes"] > 2**20 and training["workers"] == 1
    assert timings.read("sample-msf", SAMPLES / "msf" / COSTS.name)["peak_memory_bytes"] > 2**20


def test_what_was_measured_is_read_beside_its_own_result_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    of = Path("result")
    of.write_text("a")
    assert timings.read("x", of) == {}
    timings.write("x", of, {"seconds": 2.0})
    assert timings.read("x", of)["seconds"] == 2.0 and [path.name for path in TIMINGS.iterdir()] == ["x.json"]
    of.write_text("b")
    assert timings.read("x", of) == {}
    of.write_text("a")
    assert timings.read("x", of)["seconds"] == 2.0
    with flipped(TIMINGS / "x.json", (TIMINGS / "x.json").read_text().index("2.0"), 0):  # 3.0
        assert timings.read("x", of) == {}
