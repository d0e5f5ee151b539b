"""The Starlette application: the routes of all dialects."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gmoe import __version__
from gmoe.gguf.file import GGUFFile
from gmoe.library.manifest import Library
from gmoe.llm import LLM
from gmoe.options import RuntimeOptions
from gmoe.server import ollama, ollama_models
from gmoe.server.answer import Answer
from gmoe.server.ask import Ask, End, Events, Refused
from gmoe.server.catalog import Catalog
from gmoe.server.host import ModelHost
from gmoe.server.stream import Chunk, Source, Streamed, Threads, log, refused_of, to_bytes

OLLAMA_VERSION = "0.30.0"  # of the API that is spoken here; clients compare it
Parse = Callable[[Any], Ask]
Render = Callable[[Ask, Events], Iterator[Chunk]]
Endpoint = Callable[[Request], Awaitable[Response]]


class Server:
    """What the routes share."""

    def __init__(self, library: Library, files: list[Path], options: RuntimeOptions, **limits: Any):
        self.host = ModelHost(Catalog.of(library, files), options, self.load, **limits)
        self.threads = Threads(64)

    def load(self, path: Path, options: RuntimeOptions) -> LLM:
        """A model; its context is at most its own, or what the server's flags say, however large a request wants it."""
        with GGUFFile.open(path) as file:
            own = file.metadata.get(f"{file.architecture}.context_length")
        if isinstance(own, int):
            options = replace(options, context=min(options.context, max(own, self.host.options.context)))
        return LLM.load(path, options)

    def app(self) -> Starlette:
        """The application."""

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            await self.host.close()
            self.threads.close()

        return Starlette(routes=self.routes(), lifespan=lifespan)

    def routes(self) -> list[Route]:
        """Method and path -> function."""
        return [
            Route("/", _running, methods=["GET"]),
            Route("/api/version", _version, methods=["GET"]),
            Route("/api/tags", spoken(ollama, self.tags), methods=["GET"]),
            Route("/api/generate", self.asks(ollama, ollama.parse_generate, ollama.render_generate), methods=["POST"]),
            Route("/api/chat", self.asks(ollama, ollama.parse_chat, ollama.render_chat), methods=["POST"]),
        ]

    def asks(self, dialect: ModuleType, parse: Parse, render: Render) -> Endpoint:
        """The endpoint of a request for text."""

        async def endpoint(request: Request) -> Response:
            ask = parse(await read_json(request))
            for warning in ask.warnings:
                log.warning("%s", warning)
            return Streamed(dialect, lambda: self.chunks(ask, render), ask.stream)

        return spoken(dialect, endpoint)

    async def tags(self, request: Request) -> Response:
        """GET /api/tags"""
        entries = await asyncio.to_thread(self.host.catalog.entries)
        return json_response({"models": [ollama_models.summary(entry) for entry in entries]})

    @asynccontextmanager
    async def chunks(self, ask: Ask, render: Render) -> AsyncIterator[AsyncIterator[Chunk]]:
        """The chunks of an answer, as long as the model is leased."""
        if ask.empty and ask.keep_alive == 0:
            await self.host.unload(ask.model)
            yield _given(render(ask, iter([End("unload")])))
            return
        began = time.perf_counter()
        async with self.host.admitted(), self.host.lease(ask.model, ask.keep_alive, ask.num_ctx, ask.num_thread) as run:
            if ask.empty:
                yield _given(render(ask, iter([End("load")])))
                return
            answer = Answer(run.llm, run.entry, ask, time.perf_counter() - began)
            chunks = self.threads.iterate(Source(lambda: render(ask, iter(answer)), answer.cancel))
            try:
                yield chunks
            finally:
                await chunks.aclose()


def spoken(dialect: ModuleType, endpoint: Endpoint) -> Endpoint:
    """An endpoint whose errors are said in its dialect."""

    async def told(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:
            refused = refused_of(error)
            return json_response(dialect.refuse(refused, False), refused.status)

    return told


def json_response(body: Any, status: int = 200) -> Response:
    """A body as JSON."""
    return Response(to_bytes(body), status, media_type="application/json; charset=utf-8")


async def read_json(request: Request) -> Any:
    """The body as JSON."""
    data = await request.body()
    if not data.strip():
        raise Refused(400, "missing request body")
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the request body is not JSON: {error}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


async def _given(chunks: Iterator[Chunk]) -> AsyncIterator[Chunk]:
    for chunk in chunks:
        yield chunk


async def _running(request: Request) -> Response:
    return PlainTextResponse("gmoe is running")


async def _version(request: Request) -> Response:
    return json_response({"version": OLLAMA_VERSION, "gmoe": __version__})
