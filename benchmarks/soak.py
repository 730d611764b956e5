"""Flows and sweeps on a served dashboard for hours: memory, open files, processes, database; counts scheduled runs.

    python -m benchmarks.soak --hours 2     # every 30 seconds a line in results/soak.jsonl, the last one a summary
    python -m benchmarks.soak --plot        # results/soak.png from these lines

A clone of what is committed, with the tiny recipe, is served by `flows.dashboard`. The schedule of `nightly` starts a
run every few seconds, in which all is up to date; each that was due must be there and completed. Between them
`on-demand` trains DiT with another learning rate, and `search` runs a sweep of two trials on Ray. Ctrl-C ends it early.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import matplotlib
import polars as pl
import psutil
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.schedules import RRuleSchedule
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from benchmarks.common import RESULTS, line
from benchmarks.drill import SWEEP, tiny
from benchmarks.kills import FLOW, call, environment

PORT = 4280
NEVER = "0 0 29 2 *"  # or in years; the schedule that is counted comes with the runs
PAUSE = 30.0  # seconds between two lines
READY = 300.0  # seconds for the dashboard to start
LATE = 1800.0  # seconds for the runs that wait to end
NEEDS = ["reference", "classifier", "decompose", "latents"]  # of a sweep; up to date in every scheduled run
KINDS = ("server", "dashboard", "runs")
Line = dict[str, object]


@contextmanager
def dashboard(folder: Path) -> Iterator[psutil.Process]:
    """The dashboard of a folder, and settings with which clients reach it."""
    about = {name: value for name, value in environment(folder).items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-m", "flows.dashboard", "--port", str(PORT), "--nightly", NEVER]
    with open(folder / ".scratch.log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, env=about, stdout=log, stderr=log)
    try:
        until = time.monotonic() + READY
        while "Ctrl-C" not in (said := (folder / ".scratch.log").read_text()):
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"error: the dashboard did not start\n{said}")
            time.sleep(0.5)
        password = (folder / ".prefect/password").read_text().strip()
        url = f"http://127.0.0.1:{PORT}/api"
        with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: password}):
            yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def sizes(top: psutil.Process, folder: Path) -> Line:
    """Memory (PSS, MB), open files and processes of the server, of the dashboard, and of runs; the MB of files."""
    row: Line = {}
    below = top.children(recursive=True)
    found = Counter[str]()
    for process in (top, *below):
        with suppress(psutil.Error):
            is_server = "flows import server" in " ".join(process.cmdline())
            kind = "dashboard" if process.pid == top.pid else "server" if is_server else "runs"
            pss, files = process.memory_full_info().pss / 2**20, process.num_fds()
            found += Counter({f"{kind}_mb": pss, f"{kind}_files": files, f"{kind}_processes": 1})
    for kind in KINDS:
        for what, digits in (("mb", 1), ("files", None), ("processes", None)):
            row[f"{kind}_{what}"] = round(found[f"{kind}_{what}"], digits)
    known = {process.pid for process in (top, *below)}
    row["strangers"] = [name for pid, name in at_work_in(folder) if pid not in known]
    row["database_mb"] = round(sum(path.stat().st_size for path in folder.glob(".prefect/prefect.db*")) / 2**20, 2)
    for place in (".prefect", ".scratch", ".dvc"):
        row[f"{place[1:]}_disk_mb"] = round(disk(folder / place) / 2**20, 1)
    return row


def at_work_in(folder: Path) -> Iterator[tuple[int, str]]:
    """The processes that work in a folder, whoever started them."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder):
                yield process.pid, " ".join(process.cmdline())[:80]


def disk(folder: Path) -> int:
    """The bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # gone meanwhile
            total += 0 if path.is_symlink() or not path.is_file() else path.stat().st_size
    return total


def counted(runs: Sequence[FlowRun], due: Sequence[datetime]) -> Line:
    """How many of the runs that were due have completed with nothing to do, and how many still wait for their turn."""
    runs = [run for run in runs if run.auto_scheduled]
    found = Counter(_second(run.expected_start_time) for run in runs)
    waiting = {_second(run.expected_start_time) for run in runs if not run.state.is_final()}
    idle = [run for run in runs if run.state.is_completed() and run.state.message.startswith("0 stages ran")]
    right = {_second(run.expected_start_time) for run in idle}
    wanted = [_second(time) for time in due]
    waits = [(run.start_time - run.expected_start_time).total_seconds() for run in runs if run.start_time]
    return {
        "due": len(wanted),
        "completed": sum(time in right for time in wanted),
        "waiting": sum(time in waiting for time in wanted),
        "twice": sum(found[time] > 1 for time in wanted),
        "lost": sum(time not in right | waiting for time in wanted),
        "seconds_late": {"median": round(statistics.median(waits), 1), "max": round(max(waits), 1)} if waits else None,
    }


def _second(time: datetime) -> int:
    return round(time.timestamp())


class Served:
    """The runs of the deployments of a dashboard: those of a schedule that ends by itself, and those asked for."""

    def __init__(self, client: SyncPrefectClient, folder: Path, every: int, count: int):
        while len(deployments := {each.name: each.id for each in client.read_deployments()}) < 3:
            time.sleep(1)
        self.client, self.folder, self.deployments = client, folder, deployments
        self.asked: list[tuple[str, UUID]] = []
        first = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=every)
        self.due = [first + timedelta(seconds=every * index) for index in range(count)]
        client.update_deployment(deployments["nightly"], DeploymentUpdate(parameters={"targets": NEEDS}))
        rule = f"DTSTART:{first:%Y%m%dT%H%M%SZ}\nRRULE:FREQ=SECONDLY;INTERVAL={every};COUNT={count}"
        client.create_deployment_schedules(deployments["nightly"], [(RRuleSchedule(rrule=rule), True)])

    def flow(self) -> None:
        """Asks for a training of DiT with a learning rate that no run had."""
        rate = f"+parts.dit.training.lr={1e-4 * (1 + len(self.asked)):.6f}"
        self._ask("flow", "on-demand", targets=["train@dit"], overrides=[rate])

    def sweep(self) -> None:
        """Asks for a sweep of its own name."""
        name = f"soak-{len(self.asked)}"
        (self.folder / f"params/sweeps/{name}.yaml").write_text(SWEEP)
        self._ask("sweep", "search", name=name)

    def _ask(self, what: str, deployment: str, **parameters: object) -> None:
        run = self.client.create_flow_run_from_deployment(self.deployments[deployment], parameters=parameters)
        self.asked.append((what, run.id))

    def scheduled(self) -> list[FlowRun]:
        """All runs of the schedule, page by page; the scheduler may add some meanwhile."""
        found: dict[UUID, FlowRun] = {}
        wanted = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[self.deployments["nightly"]]))
        order, start = FlowRunSort.EXPECTED_START_TIME_ASC, 0
        while page := self.client.read_flow_runs(flow_run_filter=wanted, sort=order, limit=200, offset=start):
            found |= {run.id: run for run in page}
            start += len(page)
        return list(found.values())

    def others(self) -> list[tuple[str, State]]:
        """The states of the runs that were asked for."""
        return [(what, self.client.read_flow_run(run).state) for what, run in self.asked]

    def ended(self) -> Line:
        """How many runs have completed, how many have not, and how many are late or at work."""
        due = [run for run in self.scheduled() if run.expected_start_time < datetime.now(UTC)]
        states = [("scheduled", run.state) for run in due] + self.others()
        done = Counter(what for what, state in states if state.is_completed())
        late = sum(not state.is_final() for _, state in states)
        named = {what: done[what] for what in ("scheduled", "flow", "sweep")}
        return named | {"failed": len(states) - late - done.total(), "waiting": late}


def soak(folder: Path, hours: float, every: int, flow: float, sweep: float, out: Path) -> None:
    """Serves the folder for so long, and writes a line each half minute; then waits for what is late and counts."""
    started = time.monotonic()
    with dashboard(folder) as top, open(out, "w", buffering=1) as file, get_client(sync_client=True) as client:
        served = Served(client, folder, every, int(3600 * hours / every))
        turns = {served.flow: (0.0, flow), served.sweep: (sweep / 2, sweep)}  # the next minute, and how often
        with suppress(KeyboardInterrupt):
            while (seconds := time.monotonic() - started) < 3600 * hours + LATE:
                for ask, (minute, pause) in turns.items():
                    if minute < seconds / 60 < 60 * hours:
                        ask()
                        turns[ask] = (minute + pause, pause)
                ended = served.ended()
                print(line({"seconds": round(seconds), **ended, **sizes(top, folder)}), file=file)
                if datetime.now(UTC) > served.due[-1] and not ended["waiting"]:
                    break
                time.sleep(PAUSE)
        due = [time for time in served.due if time < datetime.now(UTC)]
        said = [state.message for _, state in served.others() if state.is_final() and not state.is_completed()]
        summary = {"hours": round(seconds / 3600, 2), **counted(served.scheduled(), due), "not completed": said}
        print(line(summary), file=file)


def draw(out: Path) -> None:
    """Memory, open files, processes and the database against hours."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in out.read_text().splitlines()]
    rows = pl.DataFrame([line for line in lines if "seconds" in line]).with_columns(hours=pl.col("seconds") / 3600)
    figure, panels = plt.subplots(2, 2, figsize=(12, 7), sharex=True)
    titles = {"mb": "memory (PSS), MB", "files": "open files", "processes": "processes"}
    for axes, (what, title) in zip(panels.flat, titles.items()):
        for kind in KINDS:
            axes.plot(rows["hours"], rows[f"{kind}_{what}"], label=kind, linewidth=1)
        axes.set(title=title, ylim=(0, None))
        axes.legend(fontsize=8)
    axes = panels[1, 1]
    for name in ("database_mb", "scratch_disk_mb"):
        axes.plot(rows["hours"], rows[name], label=name.replace("_mb", ", MB").replace("_", " "), linewidth=1)
    for name in ("scheduled", "flow", "sweep", "failed", "waiting"):
        axes.plot(rows["hours"], rows[name], "--", label=f"runs: {name}", linewidth=1)
    axes.set(title="MB of files, and numbers of runs", ylim=(0, None))
    axes.legend(fontsize=8)
    for axes in panels[1]:
        axes.set(xlabel="hours")
    figure.tight_layout()
    figure.savefig(out.with_suffix(".png"), dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--every", type=int, default=14, help="seconds between two scheduled runs (14)")
    parser.add_argument("--flow", type=float, default=5.0, help="minutes between two flows with work (5)")
    parser.add_argument("--sweep", type=float, default=20.0, help="minutes between two sweeps (20)")
    parser.add_argument("--plot", action="store_true", help="draw what was written")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.jsonl")
    given = parser.parse_args()
    if not given.plot:
        with tempfile.TemporaryDirectory() as place:
            project = Path(place, "project")
            tiny(project)
            call(project, *FLOW, *NEEDS)
            soak(project, given.hours, given.every, given.flow, given.sweep, given.out)
    draw(given.out)
