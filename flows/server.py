"""Prefect's server as the dashboard has it: one interface, whose pages ask nobody but this machine."""

from __future__ import annotations

import prefect
from fastapi import FastAPI, Request, Response
from prefect.cli import app
from prefect.server.api import server
from starlette.middleware.base import RequestResponseEndpoint

# The pages load from an analytics host as they start, though analytics are off; the browser refuses it.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob: http://127.0.0.1:* ws://127.0.0.1:*"

create = server.create_ui_app


def confined(ephemeral: bool) -> FastAPI:
    """Prefect's pages, in a browser that is told to ask this machine alone."""
    pages = create(ephemeral)

    @pages.middleware("http")
    async def confine(request: Request, answer: RequestResponseEndpoint) -> Response:
        response = await answer(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    return pages


def start() -> None:
    """What `prefect` does with the arguments of the command line."""
    prefect.__ui_static_path__ = ""  # of the older interface, which shows adverts whatever the settings say
    server.create_ui_app = confined
    app()
