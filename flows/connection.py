"""The Prefect server that a run shows on, and the password of this folder's dashboard.

Prefect is imported only where there may be a server: it takes seconds.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from multiscale.core.terminal import announce
from stages.common import orphans
from stages.common.errors import BadInput

HOME = Path(".prefect")  # the same in pyproject.toml: runs, schedules and the password of this folder's dashboard
PASSWORD = HOME / "password"
ADDRESS = HOME / "address"  # of the dashboard that runs here, or of the last one
REPORT = "MULTISCALE_REPORT"  # the variable with the address, and the key, at which the dashboard serves the report
DASHBOARD = "MULTISCALE_DASHBOARD"  # the variable with the number of its process, for the runs that it starts


def password() -> tuple[str, bool]:
    """The password (user:password) of this folder's dashboard, and whether it was made just now."""
    HOME.mkdir(exist_ok=True)
    try:
        descriptor = os.open(PASSWORD, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        found = PASSWORD.read_text().strip()
        if ":" not in found:
            raise BadInput(f"{PASSWORD}: holds no USER:PASSWORD; delete it, and a new one is made") from None
        return found, False
    made = f"admin:{secrets.token_urlsafe(16)}"
    try:
        with open(descriptor, "w") as file:
            file.write(made + "\n")
    except OSError:  # a full disk
        PASSWORD.unlink()
        raise
    return made, True


def end_with_dashboard() -> None:
    """Ends this process with the dashboard that has started it, if one has: nobody could see or cancel what it runs."""
    if owner := os.environ.get(DASHBOARD):
        orphans.end_with(int(owner))


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a stage or a worker may have: none is for Prefect, whose server runs whatever it is sent."""
    return {name: value for name, value in environment.items() if not name.startswith(("PREFECT_", "MULTISCALE_"))}


def answers(url: str, auth: str | None) -> int | None:
    """The HTTP status with which a server answers to this password; None where no server answers."""
    credentials = tuple(auth.split(":", 1)) if auth else None
    try:
        return httpx.get(f"{url}/admin/version", auth=credentials, timeout=10).status_code
    except (httpx.HTTPError, httpx.InvalidURL):
        return None


@contextmanager
def server() -> Iterator[bool]:
    """The server at PREFECT_API_URL, else the dashboard of this folder if it is up; yields whether there is one."""
    if "PREFECT_API_URL" not in os.environ and not ADDRESS.exists():
        yield False
        return
    announce("loading Prefect, to show the run in a dashboard")
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    url, auth = PREFECT_API_URL.value(), PREFECT_API_AUTH_STRING.value()
    found = {}
    if auth and ":" not in auth:
        raise BadInput("PREFECT_API_AUTH_STRING: is not allowed; allowed: USER:PASSWORD")
    if url:
        status = answers(url, auth)
        if status is None:
            raise BadInput(f"PREFECT_API_URL: no server answers at {url}; allowed: the address of one, or none")
        if status in (401, 403):
            raise BadInput(f"PREFECT_API_AUTH_STRING: {url} refuses it; allowed: what {PASSWORD} of its folder holds")
    elif ADDRESS.exists() and answers(ADDRESS.read_text(), password()[0]) == 200:
        found = {PREFECT_API_URL: ADDRESS.read_text(), PREFECT_API_AUTH_STRING: password()[0]}
    with temporary_settings(found):
        yield bool(url or found)
