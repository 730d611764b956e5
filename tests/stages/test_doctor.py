"""`make doctor` finds what is wrong with a machine and says what to do; `make upgrade` writes pins as they were."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import ROOT, Project, called

from stages import doctor
from stages.common import settings
from stages.common.paths import EXPERIMENT

Free = namedtuple("Free", "available free")
OK, NOTE, FIX = doctor.OK, doctor.NOTE, doctor.FIX


def verdicts(findings) -> list[tuple[str, str]]:
    """The verdict of each finding, and what was found with what to do."""
    return [(verdict, f"{what}; {remedy}") for verdict, what, remedy in findings]


def test_every_finding_is_a_line_and_what_has_to_be_done_is_exit_code_1(project: Project):
    done = called("stages.doctor")
    lines = done.stdout.splitlines()
    assert not done.stderr and all(re.match("(ok|note|FIX) +[^ ]", line) for line in lines) and len(lines) > 8
    assert done.returncode == any(line.startswith(FIX) for line in lines)
    project.change({"seed": "x"})
    done = called("stages.doctor")
    assert done.returncode == 1 and "FIX   params.yaml: seed: 'x' is not allowed" in done.stdout


def test_a_package_of_another_version_or_that_is_missing_is_named(project, monkeypatch):
    pins = doctor.CONSTRAINTS.read_text()
    there = re.search("^numpy==(.*)$", pins, re.MULTILINE)[1]
    doctor.CONSTRAINTS.write_text(pins.replace(f"numpy=={there}", "numpy==0.1"))
    ((verdict, what),) = verdicts(doctor.versions())
    assert verdict == FIX and f"numpy {there} instead of 0.1" in what and "torch " not in what
    doctor.CONSTRAINTS.write_text(pins)
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["none-of-this>=1", "x ; extra == 'docs'"])
    ((verdict, what),) = verdicts(doctor.versions())
    assert verdict == FIX and "packages are missing: none-of-this;" in what


def test_a_port_that_something_listens_on_is_named(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", (port,))
        assert [(verdict, f"{port}" in what) for verdict, what in verdicts(doctor.ports())] == [(NOTE, True)]
    assert verdicts(doctor.ports()) == []


@pytest.mark.parametrize("free, verdict", [(0.5e9, FIX), (2e9, NOTE), (20e9, OK)])
def test_room_is_measured_against_what_a_run_takes(monkeypatch, free, verdict):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Free(0, free))
    assert verdicts(doctor.disk())[0][0] == verdict
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: Free(free, 0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    ((found, what),) = verdicts(doctor.memory())
    assert found == verdict and ("make flow SLOTS=2" in what) == (verdict == NOTE)


def test_a_command_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [what.partition(";")[0] for _, what in verdicts(doctor.tools())] == [
        f"no command {name}" for name in ("git", "make", "dvc")
    ]


def test_threads_that_spin_or_have_no_core_are_told_of(tiny, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(2))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")

    def told(count: int) -> list[str]:
        params = settings.validate(tiny | {"run": {"threads": count}}, EXPERIMENT)
        return [verdict for verdict, _ in verdicts(doctor.threads(params))]

    assert told(1) == [OK] and told(2) == [OK, NOTE] and told(3) == [OK, FIX, NOTE]
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert told(2) == [OK]
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert told(2) == [OK]
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 0.0, 0.0))
    assert told(1) == [OK, NOTE]


def test_weights_that_a_run_would_fetch_are_told_of(tiny, project):
    params = settings.validate(tiny, EXPERIMENT)
    assert [verdict for verdict, _ in verdicts(doctor.weights(params))] == [OK, OK]  # of both extractors
    data = params.data.model_copy(update={"source": "hub", "url": "someone/cats"})
    ((verdict, what),) = verdicts(doctor.weights(params.model_copy(update={"data": data})))[2:]
    assert verdict == NOTE and "someone/cats is fetched" in what
    Path(".scratch/hub/datasets--someone--cats").mkdir(parents=True)
    assert len(verdicts(doctor.weights(params.model_copy(update={"data": data})))) == 2


def test_pins_are_those_of_the_environment_in_the_order_of_the_file(tmp_path):
    """As they were, but for the package that is another version here, and for one that the file lacks."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    numpy = next(line for line in lines if line.startswith("numpy=="))
    old = ["numpy==0.1" if line == numpy else line for line in lines if not line.startswith("tqdm==")]
    (tmp_path / "constraints.txt").write_text("\n".join([*old, "zzz-not-here==1.0"]) + "\n")
    done = subprocess.run([sys.executable, ROOT / ".ci/pins.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    new = done.stdout.splitlines()
    assert numpy in new and "zzz-not-here==1.0" in new
    assert [line for line in new if line in lines] == [line for line in lines if line in new]
    assert any(line.startswith("tqdm==") for line in new)
