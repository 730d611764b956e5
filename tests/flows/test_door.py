"""The door before the servers of a dashboard, and what of its secrets stages and workers see."""

from __future__ import annotations

import os
import socket

import httpx
import pytest
from conftest import free_port
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from flows import cluster, dashboard, door, work
from stages.schema.data import Run

RIGHT = ("admin", "right")
SECRETS = ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "MULTISCALE_REPORT")


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the door goes by, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(door.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def visitor():
    """A client of a server behind the door, with sockets that know the password `right` as Prefect's do."""

    async def socket(websocket) -> None:
        await websocket.accept()
        if (await websocket.receive_json())["token"] == "right":
            await websocket.send_text("in")
        await websocket.close(1008)

    page = Mount("/", lambda scope, receive, send: PlainTextResponse("in")(scope, receive, send))
    app = Starlette(routes=[WebSocketRoute("/api/events", socket), Route("/", lambda _: PlainTextResponse("in")), page])
    return TestClient(door.Door(app, "admin:right"))


def greeting(visitor: TestClient, token: str, **headers: str) -> str:
    """What a socket says to a password; raises WebSocketDisconnect where it closes."""
    with visitor.websocket_connect("/api/events", headers=headers) as websocket:
        websocket.send_json({"type": "auth", "token": token})
        return websocket.receive_text()


def test_after_ten_wrong_passwords_none_is_looked_at_for_a_minute(visitor, clock):
    for guess in range(10):
        assert visitor.get("/docs", auth=("admin", str(guess))).status_code == 401
        clock[0] += 1
    refused = visitor.get("/docs", auth=RIGHT)
    assert refused.status_code == 429 and refused.headers["Retry-After"] == "50"
    with pytest.raises(WebSocketDisconnect):
        greeting(visitor, "right")
    assert visitor.get("/").status_code == 200, "the form that asks for the password stays"
    clock[0] += 50
    assert visitor.get("/docs", auth=RIGHT).status_code == 200 and greeting(visitor, "right") == "in"


def test_an_old_password_that_a_page_goes_on_sending_locks_nobody_out(visitor, clock):
    for _ in range(30):
        assert visitor.get("/docs", auth=("admin", "old")).status_code == 401
    assert visitor.get("/docs", auth=RIGHT).status_code == 200


def test_guesses_on_sockets_count_too(visitor, clock):
    for guess in range(10):
        with pytest.raises(WebSocketDisconnect):
            greeting(visitor, str(guess))
    assert visitor.get("/docs", auth=RIGHT).status_code == 429


def test_guesses_of_a_page_of_another_site_lock_nobody_out(visitor, clock):
    foreign = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    for guess in range(10):
        assert visitor.get("/docs", auth=("admin", str(guess)), headers=foreign).status_code == 401
        with pytest.raises(WebSocketDisconnect):
            greeting(visitor, str(guess), **foreign)
    with pytest.raises(WebSocketDisconnect):
        greeting(visitor, "right", **foreign)
    for own in ("http://127.0.0.1:4300", "http://localhost:4300"):
        assert greeting(visitor, "right", Host="127.0.0.1:4300", Origin=own) == "in"
    assert visitor.get("/docs", auth=RIGHT).status_code == 200


@pytest.mark.parametrize("path", ["*", "docs", ""])
def test_a_path_that_begins_with_no_slash_is_a_bad_request(visitor, path):
    scope = {"type": "http", "method": "GET", "path": path, "headers": []}
    assert visitor.app._refused(scope).status_code == 400


@pytest.mark.parametrize("path", ["/%00", "/v2/%00", "/api/%00"])
def test_a_path_with_a_nul_is_a_bad_request(visitor, path):
    assert visitor.get(path, auth=RIGHT).status_code == 400


def test_the_report_has_the_same_door(clock, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/report.html").write_text("the report")
    port = free_port()
    with dashboard.reports(port, "admin:right") as link:
        page = link.partition("?")[0]
        assert httpx.get(page, auth=RIGHT).text == "the report"
        assert httpx.get(page, auth=RIGHT, headers={"Host": f"evil.example:{port}"}).status_code == 400
        assert httpx.get(f"http://127.0.0.1:{port}/%00", auth=RIGHT).status_code == 400
        with socket.create_connection(("127.0.0.1", port)) as raw:
            about = f"Host: 127.0.0.1\r\nAuthorization: {door.basic(':'.join(RIGHT))}"
            raw.sendall(f"GET /a\0b HTTP/1.0\r\n{about}\r\n\r\n".encode())
            assert b" 400 " in raw.recv(100)
        for guess in range(10):
            assert httpx.get(f"{page}?key={guess}", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 401
        for guess in range(5):
            assert httpx.get(f"{page}?key={guess}").status_code == 401
            assert httpx.get(page, headers={"Cookie": f"multiscale-reports={guess}"}).status_code == 401
        assert httpx.get(page).status_code == 401
        assert [httpx.get(link).status_code, httpx.get(page, auth=RIGHT).status_code] == [429, 429]
        clock[0] += 60
        assert httpx.get(link).status_code == 303


def test_neither_stages_nor_workers_get_the_secrets_of_the_dashboard(monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OTHER", "1")
    seen = []
    monkeypatch.setattr("stages.common.cluster.connect", lambda run: seen.append(dict(os.environ)))
    cluster.connect(Run())
    for environment in (work.environment(), *seen):
        assert "secret" not in environment.values() and environment["OTHER"] == "1"
    assert all(os.environ[name] == "secret" for name in SECRETS)
