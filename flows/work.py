"""One stage, brought up to date by `dvc repro` for that stage alone; all that it prints goes to a log of its own."""

from __future__ import annotations

import os
import random
import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flows import connection, mend, process
from flows.graph import Stage
from stages.common.paths import SCRATCH

LOGS = SCRATCH / "logs"  # STAGE.log, each of the last run of the stage
# Failures that pass: another DVC process in the way, or killed while it wrote; a Ray worker that is gone. Nothing else
# is tried again.
TRANSIENT = re.compile(
    r"Unable to acquire lock|is busy, it is being blocked|(Worker|Actor|Node)\w*(Died|Crashed)"
    r"|unable to read: 'dvc.lock'|Unable to read RWLock"
)
EXCEPTION = re.compile(r"[\w.]+(Error|Exception|Interrupt)\b")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class End:
    """How a stage ended: Completed, Cached (nothing to do), Failed, Cancelled or Crashed."""

    name: str
    message: str

    @property
    def good(self) -> bool:
        """Whether the stage is up to date."""
        return self.name in ("Completed", "Cached")


def log_of(address: str) -> Path:
    """The file that holds what a stage printed in its last run."""
    return LOGS / f"{address.replace('/', '-')}.log"


def environment(*commands: Path) -> dict[str, str]:
    """The environment of a stage, without the password of the dashboard and the key of its report.

    commands: folders whose commands come before those of this Python's environment.
    """
    return connection.without_secrets(os.environ) | {
        "PATH": os.pathsep.join(
            [*map(str, commands), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        ),
        "PYTHONUNBUFFERED": "1",  # output as it comes
    }


def bring(
    stage: Stage, environment: dict[str, str], is_bar: Callable[[str], bool], tell: Tell, stop: threading.Event
) -> End:
    """Brings a stage up to date. Tells the lines that it prints, all but those that `is_bar` takes."""
    if stage.current:
        return End("Cached", "up to date")
    lines: list[str] = []
    log_of(stage.address).parent.mkdir(parents=True, exist_ok=True)
    with log_of(stage.address).open("w", buffering=1) as log:

        def note(line: str) -> None:
            with suppress(OSError):  # a full disk; the line is told all the same
                print(line, file=log)
            if not is_bar(line):
                lines.append(line)
                tell(line)

        try:
            for pause in (*mend.PAUSES, None):
                lines.clear()
                command = ["dvc", "--wait-for-lock", "repro", "-s", stage.address]
                code = process.run(command, environment, note, stop)
                reason = _reason(lines, code)
                if not code or pause is None or not TRANSIENT.search(reason):
                    break
                note(f"once more, because it may pass: {reason}")
                stop.wait(pause * random.uniform(1, 1.5))  # so that two do not meet twice
                mend.run()
        except process.Stopped:
            return End("Cancelled", "stopped with its flow run")
    if code:
        return End("Failed", reason)
    if any(line.startswith("Running stage") for line in lines):
        return End("Completed", "ran")
    said = [line for line in lines if line.startswith(f"Stage '{stage.address}'")]
    return End("Cached", said[-1] if said else "up to date")


def _reason(lines: list[str], code: int) -> str:
    """The one line that says why a stage failed: its own, else that of its exception, else DVC's."""
    own = [line for line in lines if line.startswith("error: ")]
    raised = [line for line in lines if EXCEPTION.match(line)]
    dvc = [line for line in lines if line.startswith("ERROR: ")]
    return (own or raised or dvc or [f"dvc ended with exit code {code}"])[-1]
