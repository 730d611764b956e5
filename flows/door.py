"""The door of the servers that a dashboard starts: asked by their own name, with the password, and not by guessing."""

from __future__ import annotations

import base64
import math
import secrets
import threading
import time
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ["127.0.0.1", "localhost"]  # a page of another name that leads here would count as of the same origin
GUESSES = 10  # different wrong passwords
PERIOD = 60.0  # seconds, in which there may be so many
PAGES = ("/", "/ui-settings")  # without a password, with all below /v2: what the form that asks for it is made of
WANTED = {"WWW-Authenticate": 'Basic realm="Multiscale"'}


class Guesses:
    """The wrong passwords of the last minute, from whoever: on one machine all come from one address.

    The same one again is no guess: a page that was left open with an old password locks nobody out.
    """

    def __init__(self) -> None:
        self.tried: dict[object, float] = {}
        self.lock = threading.Lock()

    def add(self, wrong: object) -> None:
        """Notes a wrong password."""
        with self.lock:
            self.tried[wrong] = time.monotonic()

    def wait(self) -> int:
        """The seconds until another password is looked at; 0: now."""
        with self.lock:
            since = time.monotonic() - PERIOD
            self.tried = {wrong: when for wrong, when in self.tried.items() if when > since}
            return math.ceil(min(self.tried.values()) - since) if len(self.tried) >= GUESSES else 0


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a browser sends this for a page of another site, whose guesses would lock out those who know better."""
    return headers.get("Sec-Fetch-Site") == "cross-site"


def basic(password: str) -> str:
    """The header `Authorization` of who knows the password (user:password)."""
    return "Basic " + base64.b64encode(password.encode()).decode()


def same(given: str, expected: str) -> bool:
    """Whether they are equal, in a time that does not tell where they differ."""
    return secrets.compare_digest(given.encode(), expected.encode())


class Door:
    """Stands before Prefect's server, which asks for the password in its API alone, and as often as one likes."""

    def __init__(self, app: ASGIApp, password: str):
        self.app, self.password, self.guesses = app, basic(password), Guesses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or lets it through."""
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        elif scope["type"] == "http" and (refused := self._refused(scope)):
            await refused(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refused(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), scope["path"]
        given = headers.get("authorization")
        if "\0" in path or not path.startswith("/"):
            return Response(status_code=400)
        if given is not None:
            if wait := self.guesses.wait():
                return Response(status_code=429, headers={"Retry-After": str(wait)})
            if same(given, self.password):
                return None
            if not is_foreign(headers):
                self.guesses.add(given)
        if path in PAGES or f"{path}/".startswith(("/v2/", "/api/")):  # the API asks for itself, except for its health
            return None
        return Response(status_code=401, headers=WANTED)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The first message on a socket holds the password; where it is wrong, Prefect closes with code 1008.

        A browser opens sockets for any page, and says whose it is.
        """
        headers = Headers(scope=scope)
        port = headers.get("host", "").rpartition(":")[2]
        if headers.get("origin") not in (None, *(f"http://{host}:{port}" for host in HOSTS)):
            await send({"type": "websocket.close", "code": 1008})
            return
        first: list[str] = []

        async def hear() -> Message:
            message = await receive()
            if not first and message.get("text"):
                if self.guesses.wait():
                    return {"type": "websocket.disconnect", "code": 1008}
                first.append(message["text"])
            return message

        async def tell(message: Message) -> None:
            if first and message["type"] == "websocket.close" and message.get("code") == 1008:
                self.guesses.add(first[0])
            await send(message)

        await self.app(scope, hear, tell)
