"""The flow runs what `dvc repro` would, in parallel, and tells in one line what went wrong. Real DVC, real Prefect."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, Pipeline, free_port, processes, until
from dvc.utils.hydra import apply_overrides
from prefect import get_client, settings
from prefect.client.schemas.filters import FlowRunFilter

from flows import inputs, process
from flows.reproduce import reproduce
from stages.common.errors import BadInput

# In the order of a plain `dvc repro`: a, slow, fast, join, alone. The flow ends them in another.
DIAMOND = """
    a: {cmd: echo a > a, outs: [a]}
    slow: {cmd: sleep 1; cat a > slow, deps: [a], outs: [slow]}
    fast: {cmd: cat a > fast, deps: [a], outs: [fast]}
    evaluate:
      matrix: {name: [x, y]}
      cmd: cat slow fast > ${item.name}
      deps: [slow, fast]
      outs: ["${item.name}"]
    alone: {cmd: echo alone > alone, outs: [alone]}
"""
FAILS = """
    a: {cmd: echo a > a, outs: [a]}
    bad: {cmd: "echo a; echo >&2 'error: a: 1 is not allowed; allowed: 2'; exit 2", deps: [a], outs: [bad]}
    after: {cmd: cat bad > after, deps: [bad], outs: [after]}
    other: {cmd: cat a > other, deps: [a], outs: [other]}
"""


QUEUE = """
    few: {cmd: echo few | tee -a order > few, outs: [few]}
    many: {cmd: echo many | tee -a order > many, outs: [many]}
    long: {cmd: echo long | tee -a order > long, outs: [long]}
    x: {cmd: cat few many > x, deps: [few, many], outs: [x]}
    y: {cmd: cat many > y, deps: [many], outs: [y]}
    middle: {cmd: cat long > middle, deps: [long], outs: [middle]}
    end: {cmd: cat middle > end, deps: [middle], outs: [end]}
"""


def task_states(state) -> dict[str, tuple[str, str]]:
    """The name and the message of the last state of every task of a flow run, by stage."""
    flow = FlowRunFilter(id={"any_": [state.state_details.flow_run_id]})
    client = get_client(sync_client=True)

    def tasks():  # the server hears of them by events
        found = client.read_task_runs(flow_run_filter=flow)
        return found if all(task.state and task.state.is_final() for task in found) else []

    return {task.name: (task.state.name, task.state.message) for task in until(tasks)}


def test_the_lock_equals_that_of_a_plain_repro_byte_for_byte(server, pipeline, tmp_path):
    pipeline.write(DIAMOND)
    plain = Pipeline(shutil.copytree(pipeline.folder, tmp_path / "plain"))
    plain.run("dvc", "repro")
    shutil.rmtree(pipeline.folder / ".dvc/tmp")  # a fresh clone has none
    assert reproduce(slots=4, return_state=True).is_completed()
    assert pipeline.lock() == plain.lock() and pipeline.is_clean()
    for each in (plain, pipeline):  # old entries keep their places, new ones follow
        each.write(DIAMOND.replace("echo a >", "echo b >") + "    first: {cmd: echo 1 > first, outs: [first]}\n")
    plain.run("dvc", "repro")
    assert reproduce(slots=4, return_state=True).is_completed()
    assert pipeline.lock() == plain.lock() and pipeline.is_clean()


def test_unchanged_stages_are_shown_as_cached_and_not_as_work(server, pipeline):
    pipeline.write(DIAMOND)
    first = reproduce(return_state=True)
    assert first.message == "6 stages ran, 0 were up to date"
    assert {name for name, _ in task_states(first).values()} == {"Completed"}
    before = pipeline.lock()
    second = reproduce(return_state=True)
    assert second.message == "0 stages ran, 6 were up to date" and pipeline.lock() == before
    assert set(task_states(second).values()) == {("Cached", "up to date")}
    (pipeline.folder / "fast").unlink()
    third = task_states(reproduce(["evaluate@x"], return_state=True))
    assert {address: name for address, (name, _) in third.items()} == dict.fromkeys(
        ("a", "slow", "fast", "evaluate@x"), "Cached"
    )
    assert "cached" in third["fast"][1], "DVC had it in its cache"


def test_what_the_longest_chain_or_most_stages_wait_for_goes_first(server, pipeline):
    pipeline.write(QUEUE)
    assert reproduce(slots=1, return_state=True).is_completed()
    assert (pipeline.folder / "order").read_text().split() == ["long", "many", "few"]


@pytest.mark.parametrize(
    "target, ran", [("x", {"a", "slow", "fast", "evaluate@x"}), ("slow", {"a", "slow"}), ("alone", {"alone"})]
)
def test_a_target_is_a_method_or_a_stage_with_what_it_needs(server, pipeline, target, ran):
    pipeline.write(DIAMOND)
    assert set(task_states(reproduce([target], return_state=True))) == ran


def test_a_failed_stage_stops_its_descendants_alone_and_says_why(server, pipeline):
    pipeline.write(FAILS)
    state = reproduce(return_state=True)
    tasks = task_states(state)
    assert tasks.pop("bad") == ("Failed", "error: a: 1 is not allowed; allowed: 2")
    assert {address: name for address, (name, _) in tasks.items()} == {"a": "Completed", "other": "Completed"}
    assert state.is_failed() and state.message == "bad: error: a: 1 is not allowed; allowed: 2; held back: after"
    assert (pipeline.folder / "other").exists() and "after" not in pipeline.lock()


def test_a_crash_without_an_error_line_is_told_by_its_exception(server, pipeline):
    pipeline.write("a: {cmd: \"python -c 'import json; json.loads(chr(123))'\", outs: [a]}")
    assert "json.decoder.JSONDecodeError: Expecting property name" in reproduce(return_state=True).message


# Stands for another DVC process that works on b: it has an entry in DVC's table of locks, until b was tried once.
HOLDER = """
import json, os, pathlib, psutil, time

def tried():
    return [each for each in psutil.process_iter(["cmdline"]) if (each.info["cmdline"] or [])[-2:] == ["-s", "b"]]

while not pathlib.Path("started").exists():
    time.sleep(0.05)
table = pathlib.Path(".dvc/tmp/rwlock")
locks = json.loads(table.read_text())
locks.setdefault("write", {})[os.path.abspath("b")] = {"pid": os.getpid(), "cmd": "dvc repro b"}
table.write_text(json.dumps(locks))
pathlib.Path("held").touch()
while not tried():
    time.sleep(0.02)
while tried():
    time.sleep(0.02)
"""


def test_another_dvc_in_the_way_is_waited_for(server, pipeline):
    pipeline.write("""
        a: {cmd: "touch started; while [ ! -e held ]; do sleep 0.1; done; echo a > a", outs: [a]}
        b: {cmd: cat a > b, deps: [a], outs: [b]}
    """)
    holder = subprocess.Popen([sys.executable, "-c", HOLDER])
    threading.Thread(target=holder.wait).start()  # a process that nobody waits for still counts as one
    state = reproduce(return_state=True)
    assert state.is_completed() and pipeline.is_clean()
    assert task_states(state)["b"] == ("Completed", "ran")
    flow = FlowRunFilter(id={"any_": [state.state_details.flow_run_id]})
    tasks = get_client(sync_client=True).read_task_runs(flow_run_filter=flow)
    assert {task.name: task.run_count > 1 for task in tasks} == {"a": False, "b": True}


def test_many_stages_at_once_lose_nothing(server, pipeline):
    numbers = ", ".join(map(str, range(16)))
    pipeline.write(
        f"many: {{matrix: {{n: [{numbers}]}}, cmd: 'echo ${{item.n}} > m${{item.n}}', outs: ['m${{item.n}}']}}"
    )
    assert reproduce(slots=8, return_state=True).message == "16 stages ran, 0 were up to date"
    assert pipeline.lock().count("cmd:") == 16 and pipeline.is_clean()


def test_a_run_can_be_saved_as_an_experiment(server, pipeline):
    pipeline.write(DIAMOND)
    assert reproduce(["x"], experiment="one", return_state=True).is_completed()
    assert "one" in pipeline.run("dvc", "exp", "list")
    assert "alone" not in pipeline.lock(), "only what ran is recorded"
    again = reproduce(experiment="one", return_state=True)
    assert again.is_failed() and again.message.startswith("error: experiment: name: 'one' is not allowed; allowed: ")


def test_output_is_told_by_lines_with_each_state_of_a_bar_and_a_line_that_is_not_finished_yet():
    told: list[str] = []
    command = ["sh", "-c", r"printf '1%%\r2%%\rdone\nwait'; sleep 1; printf ' on'; exit 3"]
    assert process.run(command, dict(os.environ), told.append, threading.Event()) == 3
    assert told == ["1%", "2%", "done", "wait", " on"]


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_ended_flow_leaves_no_process_no_lock_and_no_output(server, pipeline, kill):
    marker = f"9{os.getpid()}{kill.value}"  # seconds to sleep, found in the command line
    pipeline.write(f"a: {{cmd: touch started; sleep {marker} & sleep {marker}; echo a > a, outs: [a]}}")
    flow = subprocess.Popen([sys.executable, "-m", "flows.reproduce"], env=os.environ | {"PYTHONPATH": str(ROOT)})
    until((pipeline.folder / "started").exists)
    begun = [*processes(f"sleep {marker}"), *(each.pid for each in psutil.Process(flow.pid).children(recursive=True))]
    assert begun
    flow.send_signal(kill)
    until(lambda: not processes(f"sleep {marker}"), 60)
    until(lambda: not any(map(psutil.pid_exists, begun)), 60)
    assert flow.wait(120) != 0 and not (pipeline.folder / "a").exists()
    pipeline.write("a: {cmd: echo a > a, outs: [a]}")
    pipeline.run("dvc", "repro")  # no lock is in the way
    assert pipeline.is_clean()


def main(*arguments: str) -> None:
    """What `python -m flows.reproduce arguments...` does, in this process."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", ["reproduce", *arguments])
        warnings.filterwarnings("ignore", ".*found in sys.modules after import.*")
        runpy.run_module("flows.reproduce", run_name="__main__", alter_sys=True)


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["nope"], "error: dvc.yaml: target: 'nope' is not allowed; allowed: a stage (a, alone, evaluate, fast, slow)"),
        (["--slots", "0"], "error: reproduce: slots: 0 is not allowed; allowed: 1 or more stages at once"),
        (["--recipe", "nope"], "error: params/recipes: recipe: 'nope' is not allowed; allowed: one of "),
        (["--name", "a b"], "error: experiment: name: 'a b' is not allowed; allowed: "),
        (["-S", "other.yaml:a=1"], "error: -S: file: 'other.yaml' is not allowed; allowed: KEY=VALUE or "),
    ],
)
def test_bad_input_is_one_line_and_nothing_runs(server, pipeline, capfd, arguments, line):
    pipeline.write(DIAMOND)
    with pytest.raises(SystemExit, match="^2$"):
        main(*arguments)
    out, errors = capfd.readouterr()
    assert out == "" and errors.startswith(line) and errors.count("\n") == 1
    assert not (pipeline.folder / "dvc.lock").exists()


@pytest.mark.parametrize("name, value", [("PREFECT_API_AUTH_STRING", "admin:wrong"), ("PREFECT_API_URL", None)])
def test_a_server_that_refuses_or_is_not_there_is_one_line(server, pipeline, capfd, name, value):
    value = value or f"http://127.0.0.1:{free_port()}/api"
    with settings.temporary_settings({getattr(settings, name): value}):
        with pytest.raises(SystemExit, match="^2$"):
            main()
    errors = capfd.readouterr().err
    assert errors.startswith(f"error: {name}: ") and errors.count("\n") == 1


@pytest.fixture
def repository(project, empty_pipeline) -> Pipeline:
    """The project's own sources as a git and DVC project; nothing has run."""
    for name in (".git", ".dvc"):
        shutil.copytree(empty_pipeline / name, project.folder / name)
    repository = Pipeline(project.folder)
    repository.run("git", "add", "-A")
    repository.run("git", "commit", "-qm", "sources")
    return repository


def test_an_override_changes_its_key_as_dvc_does(repository):
    setting = "+parts.msf-1.training.lr=0.0007"
    with inputs.prepared(["train@msf-1"], None, [setting], None, 1) as stages:
        assert stages[-1].address == "train@msf-1"
    ours = (repository.folder / "params/experiment.yaml").read_text()
    repository.run("git", "checkout", "-q", ".")
    apply_overrides("params/experiment.yaml", [setting])
    assert (repository.folder / "params/experiment.yaml").read_text() == ours and "lr: 0.0007" in ours


@pytest.mark.parametrize(
    "given, line",
    [
        ({"overrides": ["sed=1"]}, "params/experiment.yaml: sed: '1' is not allowed; allowed: KEY=VALUE with a key of"),
        ({"overrides": ["seed=x"]}, "params/experiment.yaml: seed: 'x' is not allowed; allowed: a valid integer"),
        ({"overrides": ["seed"]}, "-S: override: 'seed' is not allowed; allowed: KEY=VALUE"),
        ({"overrides": ["seed=1"], "targets": ["nope"]}, "dvc.yaml: target: 'nope' is not allowed; allowed: "),
        ({"overrides": ["seed=1"], "recipe": "nope"}, "params/recipes: recipe: 'nope' is not allowed; allowed: one of"),
    ],
)
def test_what_is_refused_leaves_the_experiment_as_it_was(repository, given, line):
    before = Path("params/experiment.yaml").read_bytes()
    with pytest.raises(BadInput) as error:
        with inputs.prepared(*({"targets": [], "recipe": None, "overrides": []} | given).values(), None, 1):
            raise AssertionError("not refused")
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
    assert Path("params/experiment.yaml").read_bytes() == before
    assert repository.run("git", "status", "--porcelain") == ""


def test_a_recipe_is_switched_to_but_never_over_unsaved_edits(repository):
    experiment = Path("params/experiment.yaml")
    experiment.write_text(experiment.read_text().replace("seed: 0", "seed: 7"))
    with pytest.raises(BadInput, match="has uncommitted edits"):
        with inputs.prepared([], "embedded", [], None, 1):
            raise AssertionError("not refused")
    assert "seed: 7" in experiment.read_text()
    repository.run("git", "checkout", "-q", ".")
    with inputs.prepared(["download"], "embedded", ["seed=3"], None, 1) as stages:
        assert [stage.address for stage in stages] == ["download"]
    assert "recipe: embedded" in experiment.read_text() and "seed: 3" in experiment.read_text()


def test_two_runs_in_one_folder_are_refused(pipeline):
    pipeline.write(DIAMOND)
    with inputs.prepared([], None, [], None, 1):
        with pytest.raises(BadInput, match="another run is at work here"):
            with inputs.prepared([], None, [], None, 1):
                raise AssertionError("not refused")
