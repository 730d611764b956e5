"""On one machine, nothing that a command starts listens to another machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Project, as_yaml
from listeners import is_open, run

from stages.common import cluster
from stages.common.errors import BadInput
from stages.schema.data import Run

SWEEP = {"method": "dit", "metric": "kid", "images": 12, "space": {"parts.dit.training.lr": {"grid": [1e-3]}}}


@pytest.fixture
def alone(trained, working_copy, monkeypatch) -> Project:
    """A copy of the trained project with two workers and no cluster; it is the working directory."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    project = Project(working_copy(trained))
    project.change({"run.workers": 2, "parts.msf-1.training.images": 400, "run.checkpoint_seconds": 0})
    return project


def check(project: Project, *command: str, least: int) -> None:
    """Runs a command, in which so many different processes or more listen, and none to others."""
    found, said = run(project.folder, *command)
    assert len({name for _, name in found}) >= least, f"{sorted(found)}\n{said}"
    assert not [each for each in found if is_open(each[0])]


def test_a_training_on_workers_listens_on_the_loopback_alone(alone):
    check(alone, "stages.train", "msf-1", least=5)  # GCS, raylet, its agent, the stage, a worker


def test_a_pool_and_a_flow_with_workers_listen_on_the_loopback_alone(alone):
    stage = {"cmd": "python -m stages.latents 24 && touch a", "outs": ["a"]}
    Path("dvc.yaml").write_text(json.dumps({"stages": {"a": stage}}))
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    shutil.rmtree("data/latents/24")
    check(alone, "flows.reproduce", least=5)
    assert Path("data/latents/24").exists()


def test_a_sweep_listens_on_the_loopback_alone(alone):
    Path("params/sweeps/mine.yaml").write_text(as_yaml(SWEEP))
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    check(alone, "flows.sweeps", "mine", least=5)


def test_an_interface_that_is_not_there_is_one_line():
    with pytest.raises(BadInput, match="run.interface: 'nope0' is not allowed; allowed: null, or one of lo"):
        cluster.connect(Run(workers=2, interface="nope0"))


@pytest.mark.parametrize(
    "address, others",
    [
        ("127.0.0.1", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("::", True),
        ("0.0.0.0", True),
        ("10.0.0.2", True),
    ],
)
def test_what_counts_as_open(address, others):
    assert is_open(address) == others
