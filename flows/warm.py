"""A `python` whose stages start at once: each is forked from a process that has imported what takes seconds.

`python -m flows.warm FOLDER` writes the command `python` into a folder and serves it. It forks for `python -m
stages.NAME` alone; anything else, and all once the server is gone, is the real Python. Nothing of the project is kept
from before: a stage takes it from its working directory, as it is then. The server ends, and takes its folder along,
at the end of its input.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

WORTH = 4  # stages, from which on the server saves the seconds that its own imports take
# What every stage imports, and torch's compiler, which every training's optimiser loads; what fewer need would count as
# memory of all. None takes a device.
IMPORTS = "torch torch._dynamo pydantic safetensors.torch ruamel.yaml"
CALL = Path(__file__).with_name("call.py")


@contextmanager
def serving(environment: Mapping[str, str]) -> Iterator[Path]:
    """A folder for PATH, whose `python` is there as soon as it can serve; the server ends with the block or with us."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # Of a short path, as that of a socket must be.
    with tempfile.TemporaryDirectory(prefix="multiscale-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "flows.warm", folder]
        # In a session of its own: what kills us must not keep it from tidying up.
        with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as server:
            try:
                yield Path(folder)
            finally:
                server.kill()


def load() -> None:
    """Imports what is none of the project."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # both: see stages.common.harness
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in IMPORTS.split():
        import_module(name)
    gc.freeze()


def serve(folder: Path) -> socket.socket:
    """Answers calls to the end of the input; returns only in a process of its own for a call."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "calls"))
        server.listen(64)
        _offer(folder)
        while 0 not in select.select([server, 0], [], [])[0]:
            call, _ = server.accept()
            with suppress(OSError):  # no memory for another process: the call takes the real Python
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    return call
            call.close()
    for name in ("python", "calls"):
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()
    sys.exit()


def _offer(folder: Path) -> None:
    """Writes the command: now it can be answered."""
    command = shlex.join([sys.executable, "-IS", str(CALL), str(folder / "calls")])
    script = folder / "python.part"
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o700)
    script.rename(folder / "python")


def answer(call: socket.socket) -> NoReturn:
    """Forks the stage of a call, and tells the call its number and its exit code.

    The stage and all that it has started end with it and with the call, whichever is first.
    """
    _, streams, *_ = socket.recv_fds(call, 1, 3)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    folder, environment, *command = json.loads(call.makefile().readline())
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if (stage := os.fork()) == 0:
        os.setpgid(0, 0)
        call.close()
        run(*command)
    with suppress(OSError):  # the stage was faster
        os.setpgid(stage, stage)
    call.sendall(f"{stage:10}".encode())
    select.select([call, os.pidfd_open(stage)], [], [])
    with suppress(ProcessLookupError):
        os.killpg(stage, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(stage, 0)[1])
    with suppress(OSError):  # the call is gone
        call.sendall(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def run(module: str, *arguments: str) -> NoReturn:
    """Runs a stage as `python -m` does.

    It ends as Python does, but for freeing all that the server has imported, which takes a third of a second.
    """
    sys.argv, sys.path[0] = [module, *arguments], os.getcwd()
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 255)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m flows.warm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="an empty folder of this user alone, of a short path")
    given = parser.parse_args()
    load()
    answer(serve(given.folder))
