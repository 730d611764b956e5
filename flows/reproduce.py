"""Runs the stale stages of the pipeline, several at once, and shows the progress in one line.

python -m flows.reproduce                        # everything that `dvc repro` would run
python -m flows.reproduce msf train@dit          # methods, stages or groups of stages, with those that they need
python -m flows.reproduce --recipe embedded -S training.lr=0.0007 --name lr7

Runs appear in the dashboard that `make dashboard` started here, or on the server at PREFECT_API_URL. Without either
they need no server, and do not import Prefect.
"""

from __future__ import annotations

import argparse

from stages.common.harness import launch

if __name__ == "__main__":  # first: the imports below take seconds
    parser = argparse.ArgumentParser(
        prog="python -m flows.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", help="a method, a stage or a group of stages; all by default")
    parser.add_argument("--recipe", help="a recipe to switch to first (python -m stages.recipe lists them)")
    parser.add_argument("-S", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help="a setting")
    parser.add_argument("--name", dest="experiment", help="save the result as a DVC experiment of this name")
    parser.add_argument("--slots", type=int, help="stages at once; by default as many as the cores allow")
    launch("flows.reproduce", "loading the pipeline, to see what is stale", **vars(parser.parse_args()))

import os
import signal
import sys
from contextlib import nullcontext
from typing import Any

from flows import connection, inputs
from flows.graph import Stage
from flows.run import bring, summary
from flows.scheduler import in_thread
from flows.terminal import Terminal


def run(**given: Any) -> None:
    """Runs the pipeline; the process ends with exit code 1 unless all of it is done."""
    with connection.server() as server, inputs.prepared(**given) as stages:
        terminal = Terminal(stages)
        message, failed = (_in_dashboard if server else _here)(stages, terminal, given)
    terminal.end(message, failed)
    sys.exit(failed)


def _here(stages: list[Stage], terminal: Terminal, given: dict[str, Any]) -> tuple[str, bool]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the stages on its way
    done, fault = bring(stages, given["slots"], given["experiment"], in_thread, [terminal])
    return fault or summary(done), fault is not None


def _in_dashboard(stages: list[Stage], terminal: Terminal, given: dict[str, Any]) -> tuple[str, bool]:
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")  # the rest is in the dashboard
    from flows import flow

    prepared, beside = flow.prepared.set(nullcontext(stages)), flow.beside.set([terminal])
    try:
        state = flow.reproduce(**given, return_state=True)
    finally:  # the next run of this process is another one
        flow.prepared.reset(prepared)
        flow.beside.reset(beside)
    return state.message, not state.is_completed()
