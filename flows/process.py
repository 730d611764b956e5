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
from contextvars import copy_context
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
POLL = 0.1  # seconds: between looks whether the command has ended, and until an unfinished line is taken as it is
GRACE = 10.0  # seconds that a stopped command has to end by itself


class Stopped(Exception):
    """The command was ended before its time, because it was told to."""


@contextmanager
def group(
    command: list[str], environment: dict[str, str], output: IO[bytes] | int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
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
    """Runs a command to its end and tells every line of its output, in a thread. Returns the exit code.

    A bar that is drawn over itself is told as a line each time. Raises Stopped when `stop` is set.
    """
    with group(command, environment, subprocess.PIPE) as process:
        # In this context: Prefect knows by it whose log it is.
        told = threading.Thread(target=copy_context().run, args=(_tell_lines, process.stdout, tell), daemon=True)
        told.start()
        while process.poll() is None:
            if stop.wait(POLL):
                end(process, spare=True)
                raise Stopped
    told.join(GRACE)  # what has left the group may keep the pipe open
    return process.returncode


def end(process: subprocess.Popen[bytes], spare: bool = False) -> None:
    """Asks a command of `group` to end and gives it a while.

    With `spare` only what the command has started is asked, so that the command can tidy up: DVC then releases its
    locks, and is never cut off while it writes dvc.lock, which it does in place.
    """
    deadline = time.monotonic() + GRACE
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess):
            for command in psutil.Process(process.pid).children():
                for asked in command.children(recursive=True) if spare else [command]:
                    with suppress(psutil.NoSuchProcess):
                        asked.terminate()
        time.sleep(POLL)


def _tell_lines(pipe: IO[bytes], tell: Callable[[str], None]) -> None:
    """Tells lines to the end of a pipe; one ends at a line feed, a carriage return, or when nothing follows a while."""
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    with pipe, selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while chunk := os.read(pipe.fileno(), 65536) if selector.select(POLL) else b"\n":
            *lines, rest = re.split(r"[\r\n]", rest + decoder.decode(chunk))
            for line in filter(str.strip, lines):
                tell(line.rstrip())
    if rest.strip():
        tell(rest.rstrip())
