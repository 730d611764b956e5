"""A `python` whose stages start at once: each is forked from a process that has imported what takes seconds.

`python tests/warm.py FOLDER` writes the command `python` into a folder and serves it. It forks for `python -m
stages.NAME` alone; anything else is the real Python. Nothing of the project is kept before: a stage takes it from its
working directory.
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import socketserver
import sys
from importlib import import_module
from pathlib import Path

IMPORTS = "torch torch.distributed.fsdp polars pyarrow pydantic safetensors.torch scipy.stats matplotlib.pyplot"
IMPORTS += " efficientnet_lite_pytorch pywt ruamel.yaml"
# Isolated and without site-packages, it starts in hundredths of a second.
CLIENT = """#!{python} -IS
import json, os, socket, sys

if sys.argv[1:2] != ["-m"] or not sys.argv[2].startswith("stages."):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps([os.getcwd(), dict(os.environ), *sys.argv[2:]]).encode() + b"\\n")
    sys.exit(int(server.recv(4) or 1))
"""


class Call(socketserver.StreamRequestHandler):
    """One call, in a process of its own, with the streams, the folder and the environment of who calls."""

    def handle(self) -> None:
        _, streams, *_ = socket.recv_fds(self.request, 1, 3)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        folder, environment, module, *arguments = json.loads(self.rfile.readline())
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [module, *arguments]
        sys.path[0] = folder
        code = 1
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stdout.flush()
            self.wfile.write(f"{code}".encode())


class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    max_children = 1000


def load() -> None:
    """Imports what is none of the project; diffusers as the project does, which hides what it need not load."""
    for name in IMPORTS.split():
        import_module(name)
    sys.path[0] = str(Path(__file__).parent.parent)
    import_module("multiscale.networks.autoencoder").kl_class()
    for name in [name for name in sys.modules if name.partition(".")[0] == "multiscale"]:
        del sys.modules[name]


if __name__ == "__main__":
    load()
    folder = Path(sys.argv[1])
    with Server(str(folder / "calls"), Call) as server:
        python = folder / "python"
        python.write_text(CLIENT.format(python=sys.executable, address=server.server_address))
        python.chmod(0o700)
        server.serve_forever()
