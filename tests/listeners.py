"""Who listens for connections: the addresses of a process and all that it starts, looked up again and again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import psutil


def listeners(root: int) -> set[tuple[str, str]]:
    """(address, command) of every socket of a process and its descendants that waits for connections."""
    found = set()
    try:
        family = [(main := psutil.Process(root)), *main.children(recursive=True)]
    except psutil.NoSuchProcess:
        return set()
    for process in family:
        try:
            sockets = process.net_connections("inet")
            waiting = [
                each for each in sockets if each.status == psutil.CONN_LISTEN or not each.raddr and each.type == 2
            ]
            found |= {(each.laddr.ip, " ".join(process.cmdline())[:80]) for each in waiting}
        except psutil.Error:
            continue  # it has ended
    return found


def numbers() -> set[str]:
    """The numbers of all sockets of the machine that wait for connections or, of UDP, for anybody."""
    rows = [
        line.split()
        for kind in ("tcp", "tcp6", "udp", "udp6")
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]
    ]
    return {row[9] for row in rows if row[3] in ("0A", "07")}  # the kernel's numbers of LISTEN and CLOSE


@contextmanager
def watched(root: int) -> Iterator[set[tuple[str, str]]]:
    """The listeners of a process at any moment of the block, or nearly: it looks twice a second whether any are new."""
    found: set[tuple[str, str]] = set()
    done = threading.Event()

    def look() -> None:
        known: set[str] = set()
        while not done.wait(0.5):
            if (there := numbers()) - known:  # to find out whose they are takes a tenth of a second and more
                found.update(listeners(root))
                known = there

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def is_open(address: str) -> bool:
    """Whether another machine could reach it."""
    found = ip_address(address)
    return not (getattr(found, "ipv4_mapped", None) or found).is_loopback


def run(folder: Path, *command: str, **environment: str) -> tuple[set[tuple[str, str]], str]:
    """Runs a command of the project to its good end; gives all its listeners, and what it said."""
    python = [sys.executable, "-m", *command]
    with subprocess.Popen(
        python, cwd=folder, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        with watched(process.pid) as found:
            said, _ = process.communicate()
    assert process.returncode == 0, said
    return found, said
