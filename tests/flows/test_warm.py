"""Stages that start at once: what they print, how they end, and that nothing of them outlives who waits for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, processes, until

from flows import warm, work

# A stage that takes long, with a child of its own; it says how it was asked to end.
SLOW = """
import os, signal, subprocess, sys, time

def end(number, _):
    with open("asked", "w") as file:
        print(number, file=file)
    sys.exit(7)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    child = subprocess.Popen(["sleep", "1000"])
    with open("began.part", "w") as file:
        print(os.getpid(), child.pid, file=file)
    os.rename("began.part", "began")
    time.sleep(1000)
"""
SAYS = """
import sys
print(sys.argv[1:], __name__, flush=True)
print("to the other stream", file=sys.stderr)
sys.exit({code})
"""
LOADED = """
import os, sys
print("flows.warm" in open(f"/proc/{os.getppid()}/cmdline").read(), "torch" in sys.modules, "multiscale" in sys.modules)
"""
# What a stage ends with, and its exit code.
CODES = {"3": 3, "0": 0, "None": 0, "'a line'": 1, "''": 1, "True": 1, "False": 0, "261": 5, "1 / 0": 1}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with stages of its own."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/__init__.py").touch()
    (tmp_path / "stages/slow.py").write_text(SLOW)
    (tmp_path / "stages/says.py").write_text(SAYS.format(code=3))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(warm: Path, *arguments: str, **options) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([warm / "python", *arguments], env=work.environment(), **pipes | options)


def began(folder: Path) -> list[int]:
    """The processes of the stage `slow`."""
    until((folder / "began").exists, 60)
    return [int(number) for number in (folder / "began").read_text().split()]


def gone(numbers: list[int]) -> bool:
    return not any(os.access(f"/proc/{number}/exe", os.R_OK) for number in numbers)


def test_a_stage_prints_and_ends_as_under_python_itself(warm, folder):
    results = []
    for python in (warm / "python", sys.executable):
        for number, code in enumerate(CODES):  # of names of their own: two of a size in a second are one to Python
            (folder / f"stages/says{number}.py").write_text(SAYS.format(code=code))
            command = [python, "-m", f"stages.says{number}", "a b", "c"]
            done = subprocess.run(command, env=work.environment(), capture_output=True, text=True)
            results.append((done.returncode, done.stdout, done.stderr.splitlines()[0], done.stderr.splitlines()[-1]))
    found = results[: len(CODES)]
    assert found == results[len(CODES) :]
    assert [code for code, *_ in found] == list(CODES.values()) and found[0][1] == "['a b', 'c'] __main__\n"


def test_a_stage_that_is_killed_ends_with_the_code_of_a_shell(warm, folder):
    (folder / "stages/says.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    assert call(warm, "-m", "stages.says").wait() == 137


def test_a_stage_starts_without_importing_torch_anew(warm, folder):
    before = os.times()
    assert call(warm, "-m", "stages.says").wait() == 3
    after = os.times()
    assert after.children_user - before.children_user < 0.3, "the call's own; the stage is no child of ours"
    (folder / "stages/says.py").write_text(LOADED)
    assert call(warm, "-m", "stages.says").communicate()[0] == "True True False\n"


def test_anything_but_a_stage_is_the_real_python(warm, folder):
    code = "import sys; print(sys.flags.isolated, sys.modules.get('torch'), sys.argv[1:])"
    assert call(warm, "-c", code, "a b").communicate()[0] == "0 None ['a b']\n"
    (folder / "other.py").write_text(code)
    assert call(warm, "-m", "other", "c").communicate()[0] == "0 None ['c']\n"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_call_that_is_asked_to_end_asks_its_stage(warm, folder, how):
    waiting = call(warm, "-m", "stages.slow")
    numbers = began(folder)
    waiting.send_signal(how)
    assert waiting.wait(30) == 7 and (folder / "asked").read_text() == f"{how:d}\n"
    until(lambda: gone(numbers), 10)


def test_a_call_that_is_killed_takes_its_stage_and_what_that_started_along(warm, folder):
    waiting = call(warm, "-m", "stages.slow")
    numbers = began(folder)
    waiting.kill()
    until(lambda: gone(numbers), 10)
    assert not (folder / "asked").exists()


def test_a_stage_is_asked_to_end_when_who_waits_for_it_is_killed(warm, folder):
    command = ["/bin/sh", "-c", f"'{warm / 'python'}' -m stages.slow; true"]
    with subprocess.Popen(command, env=work.environment()) as shell:
        numbers = began(folder)
        shell.kill()
    until(lambda: gone(numbers), 10)
    assert (folder / "asked").exists()


def test_without_its_server_a_call_goes_on_and_the_next_is_the_real_python(folder):
    with chdir(ROOT), warm.serving(work.environment()) as commands:
        until(lambda: os.access(commands / "python", os.X_OK))
        waiting = call(commands, "-m", "stages.slow", cwd=folder)
        numbers = began(folder)
        server = psutil.Process(numbers[0]).parent().parent()
        server.kill()
        until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, 10)
        assert call(commands, "-m", "stages.says", cwd=folder).wait(60) == 3
    assert not commands.exists() and waiting.poll() is None and not gone(numbers)
    waiting.kill()
    until(lambda: gone(numbers) and not processes(f"flows.warm {commands}"), 10)


def test_a_run_that_is_killed_with_its_session_leaves_no_server_and_no_folder():
    code = "with warm.serving(work.environment()) as folder:\n    print(folder, flush=True)\n    time.sleep(1000)"
    command = [sys.executable, "-c", f"import time\nfrom flows import warm, work\n{code}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as run:
        folder = Path(run.stdout.readline().strip())
        until((folder / "python").exists, 60)
        os.killpg(run.pid, signal.SIGKILL)
    until(lambda: not folder.exists() and not processes(f"flows.warm {folder}"), 10)
