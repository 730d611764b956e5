"""Tells a tracker of the user each row of a training's history as it comes: TensorBoard or MLflow (run.tracker).

TensorBoard reads .scratch/tensorboard. MLflow's server is that of MLFLOW_TRACKING_URI, by default .scratch/mlflow.db.
One training is one run, also where it was killed and went on, by the key of its checkpoints. The rows since the last
checkpoint are then told once more: TensorBoard replaces them, MLflow keeps both. A tracker decides no result, and a
training goes on where it fails.
"""

from __future__ import annotations

import importlib.util
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from multiscale.training.parallel import first_worker
from stages.common.errors import refuse
from stages.common.paths import EXPERIMENT, SCRATCH

Row = dict[str, float]


class TensorBoard:
    """Event files in .scratch/tensorboard/NAME/KEY."""

    def __init__(self, name: str, key: str):
        self.folder = str(SCRATCH / "tensorboard" / name / key)
        self.writer: Any = None

    def add(self, images: int, values: Row) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # A resumed training replaces what it tells anew, from its first row on.
        self.writer = self.writer or SummaryWriter(self.folder, purge_step=images)
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, images)
        self.writer.flush()

    def close(self) -> None:
        if self.writer:
            self.writer.close()


class MLflow:
    """A run NAME of the experiment multiscale, with the key as a tag."""

    def __init__(self, name: str, key: str):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        SCRATCH.mkdir(exist_ok=True)  # SQLite makes no folders
        local = f"sqlite:///{(SCRATCH / 'mlflow.db').absolute()}"
        self.client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", local))
        known = self.client.get_experiment_by_name("multiscale")
        experiment = known.experiment_id if known else self.client.create_experiment("multiscale")
        runs = self.client.search_runs([experiment], f"tags.key = '{key}'")
        self.run = (runs or [self.client.create_run(experiment, tags={"key": key}, run_name=name)])[0].info.run_id

    def add(self, images: int, values: Row) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(self.run, [Metric(name, value, now, images) for name, value in values.items()])

    def close(self) -> None:
        self.client.set_terminated(self.run)


TRACKERS: dict[str, type[TensorBoard | MLflow]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


@contextmanager
def tracking(kind: str | None, name: str, key: str) -> Iterator[list[Callable[[Row], None]]]:
    """What is to be told each row of a training: one function in the first worker, if there is a tracker.

    Raises BadInput where the library of the tracker is not installed.
    """
    if kind and not importlib.util.find_spec(kind):
        raise refuse(EXPERIMENT, "run.tracker", kind, f"null, or {kind} after pip install '.[{kind}]'")
    if not kind or not first_worker():
        yield []
        return
    found: list[TensorBoard | MLflow] = []

    def tell(row: Row) -> None:
        try:
            found[:] = found or [TRACKERS[kind](name, key)]
            found[0].add(int(row["images"]), {name: value for name, value in row.items() if name != "images"})
        except Exception as error:
            warnings.warn(f"{kind} was not told of {name}: {type(error).__name__}: {error}", stacklevel=2)

    yield [tell]
    with suppress(Exception):  # the numbers are there
        for tracker in found:
            tracker.close()
