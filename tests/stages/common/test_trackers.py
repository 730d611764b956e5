"""Trackers are told each row of a training as it comes, and a training is none the worse for them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from stages.common import trackers
from stages.common.errors import BadInput
from stages.schema.data import Run

ROWS = [{"images": 16, "loss": 0.5, "lr": 1e-3}, {"images": 16, "validation_loss": 0.25}, {"images": 32, "loss": 0.125}]


def tell(kind: str, rows=ROWS, key: str = "k") -> None:
    with trackers.tracking(kind, "dit", key) as told:
        for row in rows:
            for each in told:
                each(row)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """As if a library were installed, whose modules are those given."""
    monkeypatch.chdir(tmp_path)

    def installed(**modules: SimpleNamespace) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        for name, content in modules.items():
            module = ModuleType(name)
            module.__dict__.update(vars(content))
            monkeypatch.setitem(sys.modules, name.replace("__", "."), module)

    return installed


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_a_library_that_is_not_installed_is_one_line(kind, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput) as error:
        tell(kind)
    allowed = f"null, or {kind} after pip install '.[{kind}]'"
    assert str(error.value) == f"params.yaml: run.tracker: '{kind}' is not allowed; allowed: {allowed}"
    assert Run(tracker=kind).tracker == kind and Run().tracker is None


def test_without_a_tracker_and_in_every_worker_but_the_first_nobody_is_told(monkeypatch, installed):
    with trackers.tracking(None, "dit", "k") as told:
        assert told == []
    installed()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        with trackers.tracking("mlflow", "dit", "k") as told:
            assert len(told) == 1 - rank


def test_an_event_file_holds_the_rows_and_a_resumed_training_replaces_what_it_tells_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tell("tensorboard")
    tell("tensorboard", [{"images": 32, "loss": 0.0625}])
    found = EventAccumulator(str(tmp_path / ".scratch/tensorboard/dit/k"))
    found.Reload()
    assert [(each.step, each.value) for each in found.Scalars("loss")] == [(16, 0.5), (32, 0.0625)]
    assert [(each.step, each.value) for each in found.Scalars("validation_loss")] == [(16, 0.25)]


def test_tensorboard_is_called_as_torch_documents_it(installed):
    calls = []

    class SummaryWriter:
        def __init__(self, log_dir, purge_step):
            calls.append((log_dir, purge_step))

        def add_scalar(self, tag, scalar_value, global_step):
            calls.append((tag, scalar_value, global_step))

        def flush(self):
            calls.append("flush")

        def close(self):
            calls.append("close")

    installed(torch__utils__tensorboard=SimpleNamespace(SummaryWriter=SummaryWriter))
    tell("tensorboard")
    assert calls[:4] == [(".scratch/tensorboard/dit/k", 16), ("loss", 0.5, 16), ("lr", 1e-3, 16), "flush"]
    assert calls[4:] == [("validation_loss", 0.25, 16), "flush", ("loss", 0.125, 32), "flush", "close"]


class Server:
    """What MLflow's client keeps, in memory."""

    def __init__(self):
        self.experiments, self.runs, self.metrics, self.ended = {}, [], [], []

    def client(self, uri: str) -> Server:
        self.uri = uri
        return self

    def get_experiment_by_name(self, name):
        return self.experiments.get(name)

    def create_experiment(self, name):
        self.experiments[name] = SimpleNamespace(experiment_id="1")
        return "1"

    def search_runs(self, experiment_ids, filter_string):
        wanted = [run for run in self.runs if f"tags.key = '{run.key}'" == filter_string]
        return wanted if experiment_ids == ["1"] else []

    def create_run(self, experiment_id, tags, run_name):
        self.runs.append(SimpleNamespace(info=SimpleNamespace(run_id=run_name + tags["key"]), key=tags["key"]))
        return self.runs[-1]

    def log_batch(self, run_id, metrics):
        self.metrics += [(run_id, *metric) for metric in metrics]

    def set_terminated(self, run_id):
        self.ended.append(run_id)


@pytest.fixture
def server(installed) -> Server:
    server = Server()
    entities = SimpleNamespace(Metric=lambda key, value, timestamp, step: (key, value, step))
    installed(mlflow=SimpleNamespace(MlflowClient=server.client), mlflow__entities=entities)
    return server


def test_a_training_is_one_run_of_mlflow_also_where_it_went_on(server, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tell("mlflow", ROWS[:2])
    tell("mlflow", ROWS[2:])
    tell("mlflow", ROWS[2:], "other")
    assert server.uri.startswith("sqlite:////") and server.uri.endswith(".scratch/mlflow.db")
    assert Path(server.uri.removeprefix("sqlite:///")).parent.is_dir()
    assert server.metrics[:3] == [
        ("ditk", "loss", 0.5, 16),
        ("ditk", "lr", 1e-3, 16),
        ("ditk", "validation_loss", 0.25, 16),
    ]
    assert server.metrics[3:] == [("ditk", "loss", 0.125, 32), ("ditother", "loss", 0.125, 32)]
    assert server.ended == ["ditk", "ditk", "ditother"]


@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="mlflow is not installed")
def test_mlflow_itself_keeps_the_rows_of_a_training_in_one_run(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tell("mlflow", ROWS[:2])
    tell("mlflow", ROWS[2:])
    client = MlflowClient(f"sqlite:///{tmp_path}/.scratch/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("multiscale").experiment_id])
    assert (run.info.run_name, run.info.status) == ("dit", "FINISHED")
    found = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    assert {name: [(each.step, each.value) for each in rows] for name, rows in found.items()} == {
        "loss": [(16, 0.5), (32, 0.125)],
        "lr": [(16, 1e-3)],
        "validation_loss": [(16, 0.25)],
    }


def test_a_tracker_that_fails_is_a_warning_and_the_training_goes_on(server, monkeypatch):
    monkeypatch.setattr(server, "log_batch", None)
    with pytest.warns(UserWarning, match="mlflow was not told of dit: TypeError"):
        tell("mlflow")
