"""The Starlette application: the routes of all dialects, the page, and the safety around them."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gmoe import __version__
from gmoe.server.ask import Refused
from gmoe.server.library_api import LibraryApi
from gmoe.server.openapi import description
from gmoe.server.safety import Limits, Safety, dialect_of
from gmoe.server.service import Service, json_response
from gmoe.server.text_api import TextApi

OLLAMA_VERSION = "0.30.0"  # of the API that is spoken here; clients compare it
PAGE = {
    "/page.css": "text/css",
    "/page.js": "text/javascript",
    "/icon.svg": "image/svg+xml",
}
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


def application(service: Service, limits: Limits | None = None) -> Starlette:
    """Everything that a server answers."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await service.close()

    views = _Views(service)
    routes = [
        Route("/", views.root, methods=["GET"]),
        *(Route(path, views.asset, methods=["GET"]) for path in PAGE),
        Route("/api/version", views.version, methods=["GET"]),
        Route("/api/experts", views.experts, methods=["GET"]),
        Route("/openapi.json", views.openapi, methods=["GET"]),
        *LibraryApi(service).routes(),
        *TextApi(service).routes(),
    ]
    safety = Middleware(Safety, limits=limits or Limits())
    handlers: dict[Any, Any] = {HTTPException: _refused, Exception: _failed}
    app = Starlette(routes=routes, lifespan=lifespan, middleware=[safety], exception_handlers=handlers)
    app.router.redirect_slashes = False
    return app


class _Views:
    """What belongs to no dialect."""

    def __init__(self, service: Service):
        self.service = service
        self.description = description()

    async def root(self, request: Request) -> Response:
        """The page for browsers, and Ollama's sign of life, which clients compare, for everybody else."""
        if "text/html" in request.headers.get("accept", ""):
            headers = {"content-security-policy": POLICY, "vary": "Accept", "x-content-type-options": "nosniff"}
            return Response(_asset("page.html"), media_type="text/html", headers=headers)
        return PlainTextResponse("Ollama is running", headers={"vary": "Accept"})

    async def asset(self, request: Request) -> Response:
        """A part of the page."""
        name = request.url.path
        return Response(_asset(name[1:]), media_type=PAGE[name], headers={"x-content-type-options": "nosniff"})

    async def version(self, request: Request) -> Response:
        """GET /api/version"""
        return json_response({"version": OLLAMA_VERSION, "gmoe": __version__})

    async def experts(self, request: Request) -> Response:
        """GET /api/experts: the live view of each model in memory."""
        found = []
        self.service.looked = time.monotonic()
        for running in list(self.service.host.loaded):
            if running.llm is not None:
                seen = await asyncio.to_thread(self.service.watch(running).look)
                found += [{"model": name, **seen} for name in running.names]
        return json_response({"models": found, "pending": self.service.host.pending})

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json"""
        return json_response(self.description)


def _asset(name: str) -> bytes:
    return (files("gmoe.server") / "page" / name).read_bytes()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: "404 page not found", 405: "405 method not allowed"}.get(error.status_code, str(error.detail))
    body = dialect_of(request.url.path).refuse(Refused(error.status_code, text), False)
    response = json_response(body, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _failed(request: Request, error: Exception) -> Response:
    return json_response(dialect_of(request.url.path).refuse(Refused(500, "internal server error"), False), 500)
