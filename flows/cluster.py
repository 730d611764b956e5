"""One Ray cluster for all stages of a flow, so that they wait for their turn instead of sharing a GPU by accident."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from flows.connection import without_secrets
from multiscale.core.device import default_device
from stages.common import cluster
from stages.schema.data import Run


def connect(run: Run) -> None:
    """Joins or starts the cluster, and keeps SIGTERM, by which Prefect cancels a flow, as it was. Raises BadInput."""
    before, environment = signal.getsignal(signal.SIGTERM), dict(os.environ)
    for name in environment.keys() - without_secrets(environment):
        del os.environ[name]  # a cluster that starts here hands its variables to all workers
    try:
        cluster.connect(run)
    finally:
        os.environ.update(environment)
    if signal.getsignal(signal.SIGTERM) is not before:  # Ray took it
        signal.signal(signal.SIGTERM, before)


@contextmanager
def shared(run: Run) -> Iterator[None]:
    """Starts a cluster and names it in RAY_ADDRESS, unless that is set or the stages run without workers.

    It ends with the flow. Raises BadInput where `run` asks for more than there is.
    """
    if not run.workers or os.environ.get("RAY_ADDRESS"):
        yield
        return
    connect(run)
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        ray.shutdown()


def slots(run: Run, asked: int | None) -> int:
    """How many stages run at once: by default as many as the cores have threads for.

    One at a time where they would share a GPU without asking Ray for it.
    """
    if not run.workers and default_device().type != "cpu":
        return 1
    return asked or max(1, len(os.sched_getaffinity(0)) // run.threads)
