"""The flow runs what `dvc repro` would, in parallel, and tells in one line what went wrong. Real DVC, real Prefect."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import pty
import re
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from conftest import ROOT, Pipeline, free_port, processes, until
from dvc.utils.hydra import apply_overrides
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from prefect import get_client, settings
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter

from flows import board, graph, inputs, process, terminal, work
from flows.flow import reproduce
from flows.scheduler import Scheduler
from stages.common.errors import BadInput
from stages.common.paths import EXPERIMENT

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


PICTURES = """
    sample:
      foreach: [msf, dit]
      do:
        cmd: mkdir -p samples/${item} && cp ${item}.png samples/${item}/grid.png
        deps: ["${item}.png"]
        outs: ["samples/${item}"]
"""
TRAININGS = """
    train:
      foreach: [dit, msf-0]
      do:
        cmd: >-
          mkdir -p .scratch/previews/${item} && cp first.png .scratch/previews/${item}/latest.png && sleep 3 &&
          cp second.png .scratch/previews/${item}/latest.png && echo a > ${item}
        outs: ["${item}"]
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


def test_a_stage_that_cannot_be_started_ends_the_run(pipeline):
    pipeline.write(DIAMOND)
    raised = []

    def launch(*given):
        raise RuntimeError("can't start new thread")

    def run() -> None:
        with pytest.raises(RuntimeError, match="new thread") as error:
            Scheduler(graph.plan(), launch, []).execute(lambda: 1)
        raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(30)
    assert raised, "it waits for the stage"


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


def artifacts(state) -> dict:
    """What a flow run shows in the dashboard, by its key."""
    found = get_client(sync_client=True).read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id={"any_": [state.state_details.flow_run_id]})
    )
    return {each.key: each for each in found}


def test_the_table_has_first_what_runs_then_what_failed_then_what_is_done(server, pipeline):
    rows = [board._row(*row) for row in (("a", "waiting"), ("b", "cached"), ("c", "failed"), ("d", "running"))]
    assert [row["stage"] for row in sorted(rows, key=board._place)] == ["d", "c", "b", "a"]
    pipeline.write(FAILS)
    table = json.loads(artifacts(reproduce(slots=1, return_state=True))["stages"].data)
    assert [row["stage"] for row in table] == ["bad", "a", "other", "after"]
    assert table[-1]["state"] == "held back by bad"


def test_what_a_stopped_run_has_not_begun_is_held_back_by_nothing():
    run = SimpleNamespace(ends={}, running={}, done={"a"})
    rows = [board._state(run, graph.Stage("b", needs, False, 0, False), 0.0, True) for needs in (("a",), ("a", "c"))]
    assert [row["state"] for row in rows] == ["not started", "held back by c"]


def test_a_grid_that_a_kill_has_left_half_way_is_no_picture_of_a_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("dit", ".dit.7.tmp"):
        Path("samples", name).mkdir(parents=True)
        Path("samples", name, "grid.png").touch()
    assert list(map(str, board._pictures())) == ["samples/dit/grid.png"]


def test_a_run_shows_the_pictures_that_it_changed_alone(server, pipeline):
    for name in ("msf", "dit"):
        (pipeline.folder / f"{name}.png").write_text(name)
    pipeline.write(PICTURES)
    first = artifacts(reproduce(return_state=True))
    assert first["samples"].description == "Samples that this run changed: dit, msf"
    (pipeline.folder / "msf.png").write_text("other")
    second = artifacts(reproduce(return_state=True))
    assert second["samples"].description == "Samples that this run changed: msf"
    assert re.findall("^### (.*)$", second["samples"].data, re.M) == ["samples/msf/grid.png"]
    assert "samples" not in artifacts(reproduce(return_state=True))


def write_previews(folder: Path) -> None:
    """Two pictures of a training for its stages to show, and one that an earlier run has left."""
    for name in ("first", "second"):
        about = PngInfo()
        about.add_text("Title", f"the {name} tenth")
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png", pnginfo=about)
    (folder / ".scratch/previews/dit").mkdir(parents=True)
    shutil.copy(folder / "second.png", folder / ".scratch/previews/dit/latest.png")


def test_a_training_shows_its_newest_picture_in_an_artifact_of_its_own(server, pipeline, monkeypatch):
    write_previews(pipeline.folder)
    pipeline.write(TRAININGS)
    created, create = [], board.create_markdown_artifact
    monkeypatch.setattr(board, "create_markdown_artifact", lambda *given: created.append(given) or create(*given))
    shown = artifacts(reproduce(slots=2, return_state=True))
    assert sorted(given[1:] for given in created) == [
        ("training-dit", "the first tenth"),
        ("training-msf-0", "the first tenth"),
    ]
    second = base64.b64encode((pipeline.folder / "second.png").read_bytes()).decode()
    for key in ("training-dit", "training-msf-0"):
        assert shown[key].description == "the second tenth", "drawn as the stage ended"
        assert second in shown[key].data and shown[key].data.count("data:image/png") == 1
    assert not any(key.startswith("training-") for key in artifacts(reproduce(return_state=True)))


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
    again = {name: "once more, because it may pass: " in work.log_of(name).read_text() for name in "ab"}
    assert again == {"a": False, "b": True}


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


# A training with a bar, as a stage draws it where nobody watches; then the samples of two methods, and one that fails.
TOLD = """
    train: {cmd: python bar.py && echo t > t, deps: [bar.py], outs: [t]}
    sample:
      foreach: {msf: 0, dit: 2}
      do:
        cmd: sleep ${item}; mkdir -p samples/${key} && cat t > samples/${key}/grid.png
        deps: [t]
        outs: ["samples/${key}"]
    bad: {cmd: "python bar.py; echo >&2 'error: bad: 1 is not allowed; allowed: 2'; exit 2", deps: [t], outs: [bad]}
"""
BAR = "import time, tqdm\nfor _ in tqdm.tqdm(range(6), desc='training', mininterval=0): time.sleep(0.6)\n"


@pytest.fixture
def alone(pipeline, tmp_path, monkeypatch) -> Callable[..., subprocess.Popen]:
    """Starts a run where there is no server and Prefect cannot be imported."""
    (tmp_path / "none").mkdir()
    (tmp_path / "none/prefect.py").write_text("raise SystemExit('Prefect was imported')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "none"), str(ROOT)])}
    environment.pop("PREFECT_API_URL", None)
    (pipeline.folder / "bar.py").write_text(BAR)
    (pipeline.folder / ".gitignore").write_text(".scratch/\n")

    def alone(*arguments: str, **streams: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "flows.reproduce", *arguments]
        return subprocess.Popen(command, env=environment, text=True, **streams)

    return alone


def test_where_nobody_watches_plain_lines_tell_of_stages_and_the_first_pictures(pipeline, alone):
    pipeline.write(TOLD)
    out, errors = (run := alone("--slots", "1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)).communicate()
    said = "bad: error: bad: 1 is not allowed; allowed: 2"
    assert run.returncode == 1 and out == "" and errors.endswith(said + "\n")
    assert errors == (pipeline.folder / ".scratch/logs/run.log").read_text()
    lines = errors.splitlines()
    assert lines[0] == (
        "4 of 4 stages to run, 1 at once; log: .scratch/logs/run.log, of each stage: .scratch/logs/STAGE.log"
    )
    ended = [re.sub(r"^\d:\d\d \| |, [^|]* left", "", line) for line in lines if line[1] == ":"]
    assert ended == [
        "1/4 stages | train completed",
        "2/4 stages | sample@msf completed",
        "3/4 stages | sample@dit completed",
        "3/4 stages | bad failed",
    ]
    first = lines.index("first images: samples/msf/grid.png")
    assert "sample@msf completed" in lines[first - 1] and lines[first + 2] == "images: samples/dit/grid.png"
    tail = lines.index("bad failed. The end of .scratch/logs/bad.log:")
    shown = [line.strip() for line in lines[tail + 1 : -1]]
    assert "error: bad: 1 is not allowed; allowed: 2" in shown and not any("training: " in line for line in shown)
    assert "training: 100%" in (pipeline.folder / ".scratch/logs/train.log").read_text()
    seconds = json.loads((pipeline.folder / ".scratch/seconds.json").read_text())
    assert seconds.keys() == {"train", "sample@msf", "sample@dit"} and seconds["train"] > 1.2


def test_the_first_picture_of_a_training_is_told_of_once(pipeline, alone):
    pipeline.write(TRAININGS)
    write_previews(pipeline.folder)
    _, errors = (run := alone("--slots", "1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)).communicate()
    told = [line for line in errors.splitlines() if "learnt" in line]
    shown = r"what (dit|msf-0) has learnt so far: \.scratch/previews/\1/latest\.png, redrawn at each tenth of .*"
    assert run.returncode == 0 and len(told) == 1 and re.fullmatch(shown, told[0])


def test_a_stage_that_runs_long_is_told_of_now_and_then(pipeline, monkeypatch, capfd):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(terminal, "EVERY", 0.5)
    monkeypatch.setattr(sys, "argv", ["reproduce"])
    pipeline.write("a: {cmd: sleep 4; echo a > a, outs: [a]}")
    with pytest.raises(SystemExit, match="^False$"):
        main()
    out, errors = capfd.readouterr()
    assert out == "1 stages ran, 0 were up to date\n"
    assert 3 <= errors.count("0/1 stages, unknown time left | a for 0:0") <= 30


def test_a_wrong_experiment_is_one_line_and_stops_what_was_begun(pipeline, alone):
    (pipeline.folder / "params.yaml").write_text("recipe: mine\n")
    pipeline.write("a: {cmd: sleep 60; echo a > a, outs: [a]}")
    out, errors = (run := alone(stdout=subprocess.PIPE, stderr=subprocess.PIPE)).communicate()
    assert run.returncode == 2 and out == "" and not (pipeline.folder / "a").exists()
    assert errors == "error: params.yaml: seed: missing; allowed: a value (the key has no default)\n"


def test_on_a_terminal_one_line_is_drawn_over_itself_and_no_bar_of_a_stage(pipeline, alone):
    pipeline.write(TOLD.replace("exit 2", "echo > bad"))
    screen, stderr = pty.openpty()
    fcntl.ioctl(stderr, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    run = alone("--slots", "2", stdout=subprocess.PIPE, stderr=stderr)
    os.close(stderr)
    drawn = ""
    with suppress(OSError):  # Linux has no other end of a terminal
        while part := os.read(screen, 4096).decode():
            drawn += part
    assert run.communicate()[0] == "4 stages ran, 0 were up to date\n"
    kept = [line.split("\r")[-1] for line in drawn.replace("\r\n", "\n").split("\n")]
    assert kept[0] == "loading the pipeline, to see what is stale ..."
    assert kept[1].startswith("4 of 4 stages to run, 2 at once; log: ")
    assert kept[2:] == ["first images: samples/msf/grid.png", "images: samples/dit/grid.png", ""]
    over = [text for text in re.split(r"[\r\n]+", drawn) if "/4 stages, " in text]
    assert len(over) > 4 and all(len(text.rstrip()) <= 60 for text in over)
    assert any(re.search(r"\| train \d\d?% 0:0\d", text) for text in over) and "training" not in drawn


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("watched", [True, False])
def test_an_ended_flow_leaves_no_process_no_lock_and_no_output(server, pipeline, alone, kill, watched):
    marker = f"9{os.getpid()}{kill.value}{watched:d}"  # seconds to sleep, found in the command line
    pipeline.write(f"a: {{cmd: touch started; sleep {marker} & sleep {marker}; echo a > a, outs: [a]}}")
    if watched:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        flow = subprocess.Popen([sys.executable, "-m", "flows.reproduce"], env=environment, stderr=subprocess.PIPE)
    else:
        flow = alone(stderr=subprocess.PIPE)
    until((pipeline.folder / "started").exists)
    begun = [*processes(f"sleep {marker}"), *(each.pid for each in psutil.Process(flow.pid).children(recursive=True))]
    assert begun
    flow.send_signal(kill)
    until(lambda: not processes(f"sleep {marker}"), 60)
    until(lambda: not any(map(psutil.pid_exists, begun)), 60)
    _, errors = flow.communicate(timeout=120)
    assert flow.returncode != 0 and not (pipeline.folder / "a").exists()
    if kill == signal.SIGINT and not watched:
        assert errors.splitlines()[1:] == ["interrupted; the next run resumes from the last checkpoint"]
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
        (["--slots", "0"], "error: reproduce: slots: 0 is not allowed; allowed: 1 to 1024 stages at once"),
        (["--recipe", "nope"], "error: params/recipes: recipe: 'nope' is not allowed; allowed: one of "),
        (["--name", "a b"], "error: experiment: name: 'a b' is not allowed; allowed: "),
        (["-S", "other.yaml:a=1"], "error: -S: file: 'other.yaml' is not allowed; allowed: KEY=VALUE, of "),
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
    ours = (repository.folder / "params.yaml").read_text()
    repository.run("git", "checkout", "-q", ".")
    apply_overrides("params.yaml", [setting])
    assert (repository.folder / "params.yaml").read_text() == ours and "lr: 0.0007" in ours


@pytest.mark.parametrize(
    "given, line",
    [
        ({"overrides": ["sed=1"]}, "params.yaml: sed: not in the file (did you mean seed?); +sed=1 adds"),
        ({"overrides": ["seed=x"]}, "params.yaml: seed: 'x' is not allowed; allowed: a valid integer"),
        ({"overrides": ["training.lrr=1"]}, "params.yaml: training.lrr: not in the file (did you mean lr?); +training"),
        (
            {"overrides": ["+training.lrr=1"]},
            "params.yaml: training.lrr: 'lrr' is no key of this section (did you mean ",
        ),
        ({"overrides": ["seed=[1"]}, "params.yaml: seed: '[1' is not allowed; allowed: a value of YAML ("),
        (
            {"overrides": ["seed=range(1,3)"]},
            "params.yaml: seed: 'range(1,3)' is not allowed; allowed: a value of YAML",
        ),
        ({"overrides": ["seed"]}, "-S: override: 'seed' is not allowed; allowed: KEY=VALUE"),
        ({"overrides": ["seed=1"], "targets": ["nope"]}, "dvc.yaml: target: 'nope' is not allowed; allowed: "),
        ({"overrides": ["seed=1"], "recipe": "nope"}, "params/recipes: recipe: 'nope' is not allowed; allowed: one of"),
    ],
)
def test_what_is_refused_leaves_the_experiment_as_it_was(repository, given, line):
    before = Path("params.yaml").read_bytes()
    with pytest.raises(BadInput) as error:
        with inputs.prepared(*({"targets": [], "recipe": None, "overrides": []} | given).values(), None, 1):
            raise AssertionError("not refused")
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
    assert Path("params.yaml").read_bytes() == before
    assert repository.run("git", "status", "--porcelain") == ""


@pytest.mark.parametrize(
    "make, line",
    [
        pytest.param(lambda path: path.symlink_to("/dev/null"), "allowed: a regular file", id="a device"),
        pytest.param(lambda path: path.write_text("a: 1\na: 1"), "not valid YAML: found dup", id="no YAML"),
    ],
)
def test_an_experiment_that_cannot_be_read_is_one_line_before_dvc_reads_it(tmp_path, monkeypatch, make, line):
    monkeypatch.chdir(tmp_path)
    Path(".dvc").mkdir()
    make(Path("params.yaml"))
    with pytest.raises(BadInput, match=f"^params.yaml: .*{line}"), inputs.prepared([], None, [], None, None):
        raise AssertionError("not refused")


def test_a_secret_of_the_environment_is_never_written(repository, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    before = EXPERIMENT.read_bytes()
    for value in ("${oc.env:SECRET}", "raw/${oc.env:SECRET}", "${oc.decode:${oc.env:SECRET}}"):
        with pytest.raises(BadInput, match="^-S: data.path: .* is not allowed; allowed: a plain value"):
            with inputs.prepared([], None, [f"data.path={value}"], None, 1):
                raise AssertionError("not refused")
    assert EXPERIMENT.read_bytes() == before


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError, OSError])
def test_whatever_ends_the_preparations_puts_the_experiment_back(repository, monkeypatch, end):
    before, seen = EXPERIMENT.read_bytes(), []

    def plan(targets):
        seen.append(EXPERIMENT.read_bytes())
        raise end

    monkeypatch.setattr(inputs.graph, "plan", plan)
    with pytest.raises(end):
        with inputs.prepared([], None, ["seed=3"], None, 1):
            raise AssertionError("it is planned")
    assert b"seed: 3" in seen[0] and EXPERIMENT.read_bytes() == before


def test_an_edit_that_is_made_during_the_plan_stays(repository, monkeypatch):
    plan, edited = inputs.graph.plan, {}

    def edit(targets):
        EXPERIMENT.write_text(edited[len(targets)])
        return plan(["nope"] if targets else [])

    monkeypatch.setattr(inputs.graph, "plan", edit)
    for targets in ([], ["refused"]):
        edited[len(targets)] = EXPERIMENT.read_text() + f"# edit {len(targets)}\n"
        with suppress(BadInput), inputs.prepared(targets, None, ["seed=3"], None, 1, passing=True):
            assert not targets
        assert EXPERIMENT.read_text() == edited[len(targets)]


def test_a_refused_run_of_another_recipe_deletes_nothing(repository):
    results = Path("samples/mine/grid.png")
    results.parent.mkdir(parents=True)
    results.touch()
    for given in ([["nope"], "embedded", []], [[], "embedded", ["seed=x"]]):
        with pytest.raises(BadInput):
            with inputs.prepared(*given, None, 1):
                raise AssertionError("not refused")
    assert results.exists()
    with inputs.prepared(["code"], "embedded", [], None, 1):
        assert not results.exists()


def test_overrides_of_a_passing_run_that_was_killed_are_put_back_by_the_next_but_no_edit(repository):
    run = "from flows.inputs import prepared; from os import kill, getpid\n"
    run += "with prepared(['code'], None, ['seed=3'], None, 1, passing=True): kill(getpid(), 9)"
    for end in ("", "# an edit\n"):
        before = EXPERIMENT.read_text()
        killed = subprocess.run([sys.executable, "-c", run], env=os.environ | {"PYTHONPATH": str(repository.folder)})
        assert killed.returncode == -9 and "seed: 3" in EXPERIMENT.read_text()
        EXPERIMENT.write_text(left := EXPERIMENT.read_text() + end)
        with inputs.alone():
            assert EXPERIMENT.read_text() == (left if end else before) and not inputs.PASSING.exists()


@pytest.mark.parametrize("name", ["-f", "-", "HEAD", "@", "a b", "a;b", "a/b", "x" * 101, "", ".x", "x.lock"])
def test_a_name_that_git_or_dvc_refuses_is_refused_before_the_run(pipeline, name):
    pipeline.write(DIAMOND)
    with pytest.raises(BadInput, match="^experiment: name: "):
        inputs._check_name(name)
    inputs._check_name("lr-7e-4_a.2")


def test_a_recipe_is_switched_to_but_never_over_unsaved_edits(repository):
    experiment = Path("params.yaml")
    experiment.write_text(experiment.read_text().replace("seed: 0", "seed: 7"))
    with pytest.raises(BadInput, match="has uncommitted edits"):
        with inputs.prepared([], "embedded", [], None, 1):
            raise AssertionError("not refused")
    assert "seed: 7" in experiment.read_text()
    repository.run("git", "checkout", "-q", ".")
    with inputs.prepared(["download"], "embedded", ["seed=3"], None, 1) as stages:
        assert [stage.address for stage in stages] == ["code", "download"]
    assert "recipe: embedded" in experiment.read_text() and "seed: 3" in experiment.read_text()


def test_overrides_of_a_passing_run_are_put_back_but_no_edit_made_meanwhile(server, repository):
    before = EXPERIMENT.read_text()
    state = reproduce(["code"], overrides=["seed=3"], return_state=True)
    assert state.is_completed() and EXPERIMENT.read_text() == before
    client = get_client(sync_client=True)
    assert client.read_flow_run(state.state_details.flow_run_id).name == "code with seed=3"
    with pytest.raises(KeyboardInterrupt):
        with inputs.prepared(["code"], "embedded", ["seed=3"], None, 1, passing=True):
            assert "seed: 3" in EXPERIMENT.read_text()
            raise KeyboardInterrupt
    switched = EXPERIMENT.read_text()
    assert "recipe: embedded" in switched and "seed: 3" not in switched, "a recipe stays"
    with inputs.prepared(["code"], None, ["seed=3"], None, 1, passing=True):
        EXPERIMENT.write_text(edited := EXPERIMENT.read_text().replace("seed: 3", "seed: 4"))
    assert EXPERIMENT.read_text() == edited


def test_two_runs_in_one_folder_are_refused(pipeline, monkeypatch):
    monkeypatch.setattr(inputs, "ENDS", 0.1)
    pipeline.write(DIAMOND)
    with inputs.prepared([], None, [], None, 1):
        with pytest.raises(BadInput, match="another run is at work here"):
            with inputs.prepared([], None, [], None, 1):
                raise AssertionError("not refused")


def test_a_run_that_is_ending_is_waited_for(pipeline):
    pipeline.write(DIAMOND)
    hold = f"import filelock, time; filelock.FileLock({str(inputs.LOCK)!r}).acquire(); print(flush=True); time.sleep(1)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as ending:
        ending.stdout.readline()
        with inputs.prepared([], None, [], None, 1) as stages:
            assert ending.wait(10) == 0 and stages
