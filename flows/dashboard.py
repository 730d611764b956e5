"""Starts the dashboard: a Prefect server, the flow on demand and every night, the sweeps, and the report.

It listens on this machine only (127.0.0.1), keeps everything in .prefect/ and ends with Ctrl-C. Started again, it has
the same runs, schedules and password.
"""

from __future__ import annotations

import argparse

from stages.common.harness import launch

if __name__ == "__main__":  # first: the imports below take seconds
    parser = argparse.ArgumentParser(
        prog="python -m flows.dashboard", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=4200, help="port; the next serves the report (4200)")
    parser.add_argument("--nightly", default="0 2 * * *", metavar="CRON", help="nightly schedule, in UTC ('0 2 * * *')")
    launch("flows.dashboard", "loading Prefect", **vars(parser.parse_args()))

import hmac
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from subprocess import DEVNULL
from types import MappingProxyType
from urllib.parse import unquote

import psutil
from prefect import serve
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import EntrypointType
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from flows import connection, process
from flows.door import HOSTS, WANTED, Guesses, basic, is_foreign, same
from flows.flow import reproduce
from flows.sweeps.board import sweep
from multiscale.core.terminal import announce
from stages.common.errors import BadInput, refuse
from stages.common.paths import REPORTS

HOST = "127.0.0.1"
COOKIE = "multiscale-reports"
TIMEOUT = 900.0  # seconds for the server to start: a loaded machine takes minutes
SERVER = "from flows import server; server.start()"  # Prefect's, with its newer interface alone, at /v2


class Reports(SimpleHTTPRequestHandler):
    """Serves reports/ to who knows the dashboard's password, or comes by a link in the dashboard, which holds a key."""

    def __init__(self, *arguments, password: str, guesses: Guesses, **options):
        self.password, self.key, self.guesses = basic(password), key(password), guesses
        super().__init__(*arguments, directory=str(REPORTS), **options)

    def send_head(self):
        path, _, query = self.path.partition("?")
        if self.headers.get("Host", "").partition(":")[0] not in HOSTS or "\0" in unquote(path):
            return self._answer(400)
        cookies = self.headers.get("Cookie", "").split("; ")
        given = [self.headers.get("Authorization", ""), query if query.startswith("key=") else ""]
        given = [*filter(None, given), *(cookie for cookie in cookies if cookie.startswith(COOKIE))]
        if given and (wait := self.guesses.wait()):
            return self._answer(429, {"Retry-After": str(wait)})
        cookie = f"{COOKIE}={self.key}"
        if same(query, f"key={self.key}"):  # once: from here on a cookie holds it, and no address
            about = {"Location": "/" + path.lstrip("/"), "Set-Cookie": f"{cookie}; Path=/; HttpOnly; SameSite=Lax"}
            return self._answer(303, about)
        if any(same(text, right) for text in given for right in (self.password, cookie)):
            return super().send_head()
        for text in [] if is_foreign(self.headers) else given:
            self.guesses.add(text)
        return self._answer(401, WANTED)

    def _answer(self, status: int, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        """An answer without a body."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def key(password: str) -> str:
    """What opens reports/ alone: made from the password, so that old links go on working, and not to be turned back."""
    return hmac.digest(password.encode(), b"reports", "sha256").hex()


@contextmanager
def reports(port: int, password: str) -> Iterator[str]:
    """Serves reports/ and yields the address of the report, with its key."""
    with ThreadingHTTPServer((HOST, port), partial(Reports, password=password, guesses=Guesses())) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{port}/report.html?key={key(password)}"
        server.shutdown()


@contextmanager
def prefect_server(port: int, password: str) -> Iterator[str]:
    """Starts a Prefect server, waits until it answers, and yields the address of its API."""
    url = f"http://{HOST}:{port}/api"
    command = [sys.executable, "-c", SERVER, "server", "start", "--host", HOST, "--port", str(port)]
    environment = os.environ | {
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{host}:{port}" for host in HOSTS),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_UI_API_URL": url,  # by default the pages ask port 4200, whatever the port
    }
    announce("starting the server of the dashboard")
    with process.group(command, environment, DEVNULL) as server:
        deadline = time.monotonic() + TIMEOUT
        while connection.answers(url, password) != 200:
            if server.poll() is not None or time.monotonic() > deadline:
                raise BadInput(f"the Prefect server did not start; `{shlex.join(command)}` says why")
            time.sleep(0.2)
        connection.ADDRESS.write_text(url)
        try:
            yield url
        finally:
            connection.ADDRESS.unlink(missing_ok=True)
            process.end(server)


@contextmanager
def ending_runs() -> Iterator[None]:
    """Ends the flow runs that are left at the end of the block, and lets them stop their stages."""
    try:
        yield
    finally:
        runs = []
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):  # Ctrl-C reaches it, too
                if "prefect.engine" in child.cmdline():
                    child.terminate()
                    runs.append(child)
        psutil.wait_procs(runs, timeout=2 * process.GRACE)


def check_free(port: int, use: str = "the dashboard") -> None:
    """Raises BadInput where something listens already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise BadInput(f"port {port}, for {use}, is busy ({error}); choose another with --port") from None


def run(port: int, nightly: str) -> None:
    """Runs the dashboard until it is interrupted."""
    try:
        CronSchedule(cron=nightly)
    except ValueError:
        raise refuse("dashboard", "--nightly", nightly, "a cron line such as '0 2 * * *'") from None
    check_free(port)
    check_free(port + 1, "the report")
    password, new = connection.password()
    with (
        suppress(KeyboardInterrupt),
        prefect_server(port, password) as url,
        reports(port + 1, password) as address,
    ):
        os.environ |= {connection.REPORT: address, "PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": password}
        os.environ[connection.DASHBOARD] = str(os.getpid())
        os.environ["PREFECT_UI_URL"] = url.replace("/api", "/v2")  # to which the links in a log lead
        shown = f"{password} (kept in {connection.PASSWORD})" if new else f"in {connection.PASSWORD}"
        print(f"dashboard: {url.removesuffix('/api')}\npassword:  {shown}")
        print("Ctrl-C ends it. Schedules are kept.", flush=True)
        with temporary_settings({PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: password}), ending_runs():
            serve(
                reproduce.to_deployment("on-demand", entrypoint_type=EntrypointType.MODULE_PATH),
                reproduce.to_deployment("nightly", cron=nightly, entrypoint_type=EntrypointType.MODULE_PATH),
                sweep.to_deployment("search", entrypoint_type=EntrypointType.MODULE_PATH),
                limit=1,  # one run at a time in one folder
                pause_on_shutdown=False,
                print_starting_message=False,
            )
