"""One call of the `python` of `flows.warm`: requests a stage from the server and represents it until it has ended.

python -IS flows/call.py SOCKET ARGUMENTS...

Isolated and without site-packages it starts in hundredths of a second. It passes signals on, and asks the stage to end
when the process that waits for it is gone. However this process ends, the stage ends with it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress

GRACE = 20  # seconds that a stage has to end in order
PARENT = os.getppid()  # who waits for this process


def ask(address: str, command: list[str]) -> tuple[socket.socket, int] | None:
    """The connection to a stage and its process; None where nothing serves."""
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(address)
        socket.send_fds(server, [b"."], [0, 1, 2])
        server.sendall(json.dumps([os.getcwd(), dict(os.environ), *command]).encode() + b"\n")
        process = server.recv(10, socket.MSG_WAITALL)
    except OSError:
        return None
    return (server, int(process)) if process else None


def wait(server: socket.socket, stage: int) -> int:
    """Waits for a stage; returns its exit code."""

    def end(number: int, *_: object) -> None:
        if not signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.alarm(GRACE)  # ends this process, unless the stage is faster
        with suppress(ProcessLookupError):
            os.kill(stage, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)
    while not select.select([server], [], [], 1.0)[0]:
        if os.getppid() != PARENT:
            end(signal.SIGTERM)
    return (server.recv(1) or b"\x01")[0]


if __name__ == "__main__":
    address, *arguments = sys.argv[1:]
    is_stage = arguments[:1] == ["-m"] and "".join(arguments[1:2]).startswith("stages.")
    if not (asked := ask(address, arguments[1:]) if is_stage else None):
        os.execv(sys.executable, [sys.executable, *arguments])
    sys.exit(wait(*asked))
