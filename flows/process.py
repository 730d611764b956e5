"""One command and all that it starts: its output as it comes, its end on demand, and no orphan whatever happens."""

from __future__ import annotations

import codecs
import os
import re
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

import psutil

# The guard: a shell leads the group and runs the command beside a watcher. The watcher reads from a pipe that only this
# process can close; at its end, also when this process is killed, it kills the group. A parent-death signal would reach
# the command alone (the kernel forgets it at fork), and DVC, when it dies, leaves its stage behind.
GUARD = """
exec 3<&0
(trap '' INT TERM HUP; read _ <&3; kill -KILL 0) >/dev/null 2>&1 &
"$@" </dev/null 3<&-
code=$?
kill -KILL $! && wait $! 2>/dev/null
exit $code
"""
POLL = 0.1  # seconds between looks at the order to stop, and until a line without an end is taken as it is
GRACE = 10.0  # seconds that a stopped command has to end by itself


class Stopped(Exception):
    """The command was ended before its time, because it was told to."""


@contextmanager
def group(
    command: list[str], environment: dict[str, str], output: IO | int | None = None
) -> Iterator[subprocess.Popen]:
    """Starts a command in a session of its own; what is left of it at the end of the block, or of us, is killed."""
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", GUARD, "guard", *command],
            stdin=reader,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    except BaseException:
        os.close(writer)
        raise
    finally:
        os.close(reader)
    try:
        yield process
    finally:
        os.close(writer)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the guard that has ended took its watcher with it
        process.wait()


def run(command: list[str], environment: dict[str, str], tell: Callable[[str], None], stop: threading.Event) -> int:
    """Runs a command to its end and tells every line of its output. Returns the exit code.

    A bar that is drawn over itself is told as a line each time. Raises Stopped when `stop` is set.
    """
    with group(command, environment, subprocess.PIPE) as process:
        lines = _Lines(process.stdout, tell)
        while process.poll() is None:
            lines.read(POLL)
            if stop.is_set():
                end(process, spare=True, wait=lines.read)
                raise Stopped
    lines.drain()
    return process.returncode


def end(process: subprocess.Popen, spare: bool = False, wait: Callable[[float], object] = time.sleep) -> None:
    """Asks a command of `group` to end and gives it a while.

    With `spare` only what the command has started is asked, so that the command can tidy up: DVC then gives its locks
    back, and is never cut off while it writes dvc.lock, which it does in place.
    """
    deadline = time.monotonic() + GRACE
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess):
            for command in psutil.Process(process.pid).children():
                for asked in command.children(recursive=True) if spare else [command]:
                    with suppress(psutil.NoSuchProcess):
                        asked.terminate()
        wait(POLL)


class _Lines:
    """Lines from a pipe; one ends at a line feed, at a carriage return, or when nothing follows for a while."""

    def __init__(self, pipe: IO[bytes], tell: Callable[[str], None]):
        self.pipe, self.tell, self.text = pipe, tell, ""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        os.set_blocking(pipe.fileno(), False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(pipe, selectors.EVENT_READ)

    def read(self, seconds: float) -> bool:
        """Waits for output and tells the lines in it. Returns whether there was any."""
        if not self.selector.select(seconds):
            self._tell(self.text)
            self.text = ""
            return False
        chunk = self.pipe.read(65536)
        *whole, self.text = re.split(r"[\r\n]+", self.text + self.decoder.decode(chunk or b""))
        for line in whole:
            self._tell(line)
        if not chunk:
            time.sleep(seconds)  # closed, while the command goes on
        return bool(chunk)

    def drain(self) -> None:
        """Tells what is left when the command has ended."""
        while self.read(0):
            pass
        self._tell(self.text)
        self.selector.close()
        self.pipe.close()

    def _tell(self, line: str) -> None:
        if line.strip():
            self.tell(line.rstrip())
