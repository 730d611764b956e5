"""Prefect's server as the dashboard has it: behind a door, with one interface, whose pages ask only this machine."""

from __future__ import annotations

from typing import Any

import prefect
from fastapi import FastAPI, Request, Response
from prefect.cli import app
from prefect.server.api import server
from prefect.settings import PREFECT_SERVER_API_AUTH_STRING
from starlette.middleware.base import RequestResponseEndpoint
from starlette.middleware.trustedhost import TrustedHostMiddleware

from flows.door import HOSTS, Door

# The pages load from an analytics host as they start, though analytics are off; the browser refuses it.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob: http://127.0.0.1:* ws://127.0.0.1:*"

create, create_pages = server.create_app, server.create_ui_app


def confined(ephemeral: bool) -> FastAPI:
    """Prefect's pages, in a browser that is told to ask this machine alone."""
    pages = create_pages(ephemeral)

    @pages.middleware("http")
    async def confine(request: Request, answer: RequestResponseEndpoint) -> Response:
        response = await answer(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    return pages


def guarded(**options: Any) -> FastAPI:
    """Prefect's server, behind the door; asked again with the same options, Prefect gives the same one."""
    made = create(**options)
    if not any(each.cls is Door for each in made.user_middleware):
        made.add_middleware(Door, password=PREFECT_SERVER_API_AUTH_STRING.value())
        made.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    return made


def start() -> None:
    """What `prefect` does with the arguments of the command line."""
    prefect.__ui_static_path__ = ""  # of the older interface, which shows adverts whatever the settings say
    server.create_app, server.create_ui_app = guarded, confined
    app()
