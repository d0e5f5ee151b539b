"""Ollama's routes that concern the library: what is there, and how it comes, changes and goes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any, BinaryIO, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gmoe.gguf.file import GGUFError
from gmoe.library.create import create
from gmoe.library.manifest import Library, LibraryError, ModelNotFound
from gmoe.library.pull import pull
from gmoe.library.push import push
from gmoe.passes.quantized import quantized
from gmoe.server import ollama
from gmoe.server.ask import Refused
from gmoe.server.body import read
from gmoe.server.ollama_models import (
    CopyBody,
    CreateBody,
    NameBody,
    PullBody,
    loaded,
    name_of,
    progress_line,
    recipe,
    show,
    summary,
)  # fmt: skip
from gmoe.server.service import Service, json_response, read_json, spoken
from gmoe.server.stream import Chunk, Put, Source, Streamed

BLOB = "application/octet-stream"


class LibraryApi:
    """The endpoints; the library is only touched in threads."""

    def __init__(self, service: Service):
        self.service, self.host = service, service.host
        self.library: Library = service.host.catalog.library

    def routes(self) -> list[Route]:
        """Method and path -> function."""
        table = [
            ("/api/tags", self.tags, ["GET"]),
            ("/api/ps", self.ps, ["GET"]),
            ("/api/show", self.show, ["POST"]),
            ("/api/create", self.create, ["POST"]),
            ("/api/copy", self.copy, ["POST"]),
            ("/api/delete", self.delete, ["DELETE"]),
            ("/api/pull", self.pull, ["POST"]),
            ("/api/push", self.push, ["POST"]),
            ("/api/blobs/{digest}", self.blob, ["HEAD", "POST"]),
        ]
        return [Route(path, spoken(ollama, endpoint), methods=methods) for path, endpoint, methods in table]

    async def tags(self, request: Request) -> Response:
        """All models."""
        return json_response({"models": await asyncio.to_thread(self._tags)})

    def _tags(self) -> list[dict[str, Any]]:
        found = []
        for entry in self.host.catalog.entries():
            try:
                found.append(summary(entry))
            except (OSError, ValueError):  # a file that cannot be read hides no other
                continue
        return found

    async def ps(self, request: Request) -> Response:
        """The models in memory."""
        return json_response(loaded(self.host.loaded))

    async def show(self, request: Request) -> Response:
        """All about one."""
        body = await read_json(request)
        name = read(NameBody, body).named
        return json_response(await asyncio.to_thread(lambda: show(self.host.catalog.find(name), body)))

    async def create(self, request: Request) -> Response:
        """A new model from another one or from a blob."""
        given = read(CreateBody, await read_json(request))
        name, modelfile = name_of(given.named), recipe(given)

        def run(put: Put) -> None:
            try:
                with ExitStack() as stack:
                    source = modelfile
                    if kind := given.quantize or given.quantization:
                        smaller = quantized(self.library, modelfile, None, kind, lambda step: put(progress_line(step)))
                        source = stack.enter_context(smaller)
                    create(self.library, name, source, None, lambda status: put({"status": status}))
            except ModelNotFound as error:
                raise self._missing(given.from_ or "", str(error)) from None
            except (LibraryError, GGUFError) as error:
                raise Refused(400, str(error)) from None

        return self._reporting(run, given.stream)

    async def copy(self, request: Request) -> Response:
        """Another name for a model."""
        given = read(CopyBody, await read_json(request))
        source, target = name_of(given.source), name_of(given.destination)
        try:
            await asyncio.to_thread(self.library.copy, source, target)
        except ModelNotFound:
            raise self._missing(given.source) from None
        return Response(status_code=200)

    async def delete(self, request: Request) -> Response:
        """Forget a model."""
        name = read(NameBody, await read_json(request)).named
        parsed = name_of(name)
        try:
            await asyncio.to_thread(self.library.resolve, parsed)
            await self.host.unload(name)
            await asyncio.to_thread(self.library.remove, parsed)
        except ModelNotFound:
            raise self._missing(name) from None
        return Response(status_code=200)

    def _missing(self, name: str, otherwise: str = "") -> Refused:
        """Why a model is not in the library."""
        if self.host.catalog.file_called(name_of(name)) is None:
            return Refused(404, otherwise or f"model '{name}' not found")
        return Refused(400, f"model '{name}' is a file that the server was started with: the library has it not")

    async def pull(self, request: Request) -> Response:
        """A model from a registry."""
        return await self._transfer(request, pull)

    async def push(self, request: Request) -> Response:
        """A model to a registry."""
        return await self._transfer(request, push)

    async def _transfer(self, request: Request, work: Callable[..., Any]) -> Response:
        given = read(PullBody, await read_json(request))
        name, insecure = name_of(given.named), bool(given.insecure)

        def run(put: Put) -> None:
            try:
                work(self.library, name, lambda step: put(progress_line(step)), insecure=insecure)
            except ModelNotFound:
                raise Refused(404, f"model '{given.named}' not found") from None
            except LibraryError as error:
                raise Refused(500, str(error)) from None

        return self._reporting(run, given.stream)

    def _reporting(self, run: Callable[[Put], None], stream: bool | None) -> Response:
        """The lines of what takes a while; a client that hangs up ends it."""

        @asynccontextmanager
        async def open() -> AsyncIterator[AsyncIterator[Chunk]]:
            chunks = self.service.threads.iterate(Source(run))
            try:
                yield chunks
            finally:
                await chunks.aclose()

        return Streamed(ollama, open, stream is not False)

    async def blob(self, request: Request) -> Response:
        """Whether a blob is here; or take it."""
        digest = request.path_params["digest"]
        try:
            here = await asyncio.to_thread(self.library.has_blob, digest)
        except LibraryError as error:
            raise Refused(400, str(error)) from None
        if request.method == "HEAD":
            return Response(status_code=200 if here else 404)
        if not here:
            try:
                body = cast(BinaryIO, _Body(request))
                await self.service.uploads.run(lambda: self.library.upload(body, BLOB, digest))
            except LibraryError as error:
                raise Refused(400, str(error)) from None
        return Response(status_code=200 if here else 201)


class _Body:
    """A request's body as a file to read in another thread; no more of it is taken than is read."""

    def __init__(self, request: Request):
        self._loop = asyncio.get_running_loop()
        self._chunks = request.stream()

    def read(self, size: int = -1) -> bytes:
        """Some bytes; none at the end."""
        while True:
            try:
                chunk = asyncio.run_coroutine_threadsafe(self._chunks.__anext__(), self._loop).result()
            except StopAsyncIteration:
                return b""
            if chunk:
                return chunk
