"""Ends a process when the one that it works for has ended, also by a kill, of which nobody else would tell it.

A parent-death signal would be lost where a shell stands between them, and is sent when the parent's thread ends.
"""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil

POLL = 1.0  # seconds between two looks
GRACE = 20.0  # seconds to end in order


def end_with(owner: int) -> None:
    """Ends this process soon after the process `owner` has ended."""
    try:
        process: psutil.Process | None = psutil.Process(owner)  # another one of this number later is not it
    except psutil.NoSuchProcess:
        process = None

    def watch() -> None:
        while process and is_alive(process):
            time.sleep(POLL)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="watch over the owner", daemon=True).start()


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still works; one that has ended and that nobody waits for does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def starter() -> int:
    """The process that has started this one, by a shell or without one."""
    parent = psutil.Process().parent()
    if parent and "-c" in parent.cmdline()[1:4] and (above := parent.parent()):  # bash --noprofile --norc -c
        parent = above
    return int(parent.pid) if parent else os.getppid()
