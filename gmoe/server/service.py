"""Service: what all dialects share: a host of models, threads, and the way of a request through both."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from gmoe.gguf.file import GGUFFile
from gmoe.llm import LLM
from gmoe.options import RuntimeOptions
from gmoe.server.answer import Answer
from gmoe.server.ask import Ask, End, Events, Loading, Refused
from gmoe.server.catalog import Catalog
from gmoe.server.host import Lease, ModelHost, Running
from gmoe.server.several import Several
from gmoe.server.stream import Chunk, Dialect, Source, Streamed, Threads, log, refused_of, to_bytes
from gmoe.server.watch import PATIENCE, Watch

Parse = Callable[[Any], Ask]
Render = Callable[[Ask, Events], Iterator[Chunk]]
Endpoint = Callable[[Request], Awaitable[Response]]
THREADS = 64
PROGRESS_SECONDS = 0.5
JSON = "application/json; charset=utf-8"


class Service:
    """`seconds` bounds an answer; `limits` are those of `ModelHost`."""

    def __init__(self, catalog: Catalog, options: RuntimeOptions, seconds: float | None = None, **limits: Any):
        self.host = ModelHost(catalog, options, self.load, **limits)
        self.seconds = seconds
        self.threads = Threads(THREADS)
        self.uploads = Threads(THREADS)  # as slow as their clients
        self.last_used = ""
        self.looked = -PATIENCE  # when somebody last asked for the live view

    def load(self, path: Path, options: RuntimeOptions) -> LLM:
        """A model; its context is at most its own, or what the server's flags say, however large a request wants it."""
        with GGUFFile.open(path) as file:
            own = file.metadata.get(f"{file.architecture}.context_length")
        if isinstance(own, int):
            options = replace(options, context=min(options.context, max(own, self.host.options.context)))
        return LLM.load(path, options)

    async def close(self) -> None:
        """Unload everything."""
        await self.host.close()
        self.threads.close()
        self.uploads.close()

    def asks(self, dialect: Dialect, parse: Parse, render: Render) -> Endpoint:
        """The endpoint of a request for text."""

        async def endpoint(request: Request) -> Response:
            return self.answer(dialect, parse(await read_json(request)), render)

        return spoken(dialect, endpoint)

    def answer(self, dialect: Dialect, ask: Ask, render: Render) -> Streamed:
        """The response to a request for text."""
        for warning in ask.warnings:
            log.warning("%s", warning)
        return Streamed(dialect, lambda: self.chunks(ask, render), ask.stream, self.seconds)

    @asynccontextmanager
    async def chunks(self, ask: Ask, render: Render) -> AsyncIterator[AsyncIterator[Chunk]]:
        """The chunks of an answer, as long as the model is leased."""
        if ask.empty and ask.keep_alive == 0:
            await self.host.unload(ask.model)
            yield _given(render(ask, iter([End("unload")])))
            return
        began = time.perf_counter()
        async with self.host.admitted():
            if ask.progress and ask.stream:
                yield self._with_progress(ask, render, began)
                return
            async with self.lease(ask) as lease:
                chunks = self._answer(lease, ask, render, began)
                try:
                    yield chunks
                finally:
                    await chunks.aclose()

    @asynccontextmanager
    async def lease(self, ask: Ask) -> AsyncIterator[Lease]:
        """The model of a request."""
        async with self.host.lease(ask.model, ask.keep_alive, ask.num_ctx, ask.num_thread) as lease:
            self.last_used = lease.entry.name
            if time.monotonic() - self.looked < PATIENCE:  # so that the first answer of a model is seen too
                self.watch(lease.running).attend()
            yield lease

    def watch(self, running: Running) -> Watch:
        """The live view of a model, which lives as long as it does."""
        watch: Watch = running.extra.setdefault("watch", Watch(running.llm))
        return watch

    def _answer(self, lease: Lease, ask: Ask, render: Render, began: float) -> Any:
        if ask.empty:
            return _given(render(ask, iter([End("load")])))
        waited = time.perf_counter() - began
        answers = [Answer(lease.llm, lease.entry, part, waited) for part in ask.parts or [ask]]
        answer = Several(answers) if ask.parts else answers[0]
        return self.threads.iterate(Source.of(lambda: render(ask, iter(answer)), answer.cancel))

    async def _with_progress(self, ask: Ask, render: Render, began: float) -> AsyncIterator[Chunk]:
        """The same, with chunks while the model loads."""
        lease = self.lease(ask)
        waiting = asyncio.ensure_future(lease.__aenter__())
        try:
            while not (await asyncio.wait([waiting], timeout=PROGRESS_SECONDS))[0]:
                for chunk in render(ask, iter([Loading(time.perf_counter() - began)])):
                    yield chunk
            chunks = self._answer(waiting.result(), ask, render, began)
            try:
                async for chunk in chunks:
                    yield chunk
            finally:
                await chunks.aclose()
        finally:
            waiting.cancel()
            await asyncio.wait([waiting])
            if not waiting.cancelled() and waiting.exception() is None:
                await lease.__aexit__(None, None, None)

    async def embed(
        self, name: str, inputs: list[Any], *, keep_alive: float | None = None, truncate: bool = True,
        dimensions: int | None = None, num_ctx: int | None = None,
    ) -> tuple[list[np.ndarray], int, float]:  # fmt: skip
        """Unit vectors float32 [n_embd or `dimensions`] of texts or ids, their tokens, and the seconds of loading."""
        began = time.perf_counter()
        async with self.host.admitted(), self.host.lease(name, keep_alive, num_ctx) as lease:
            self.last_used = lease.entry.name
            waited = time.perf_counter() - began
            left = threading.Event()
            work = _embedding(lease.llm, inputs, truncate, dimensions, left)
            vectors, count = await self.threads.run(work, left.set)
        return vectors, count, waited

    def once(self, dialect: Dialect, body: Callable[[], Awaitable[dict[str, Any]]]) -> Streamed:
        """The response of one body, which nobody goes on with once the client has hung up."""

        @asynccontextmanager
        async def open() -> AsyncIterator[AsyncIterator[Chunk]]:
            yield _one(body)

        return Streamed(dialect, open, False, self.seconds)

    async def with_model(self, name: str | None, work: Callable[[LLM], Any]) -> Any:
        """Run something short in a thread, on a model that is loaded if need be."""
        async with self.host.admitted(), self.host.lease(self.named(name)) as lease:
            return await asyncio.to_thread(work, lease.llm)

    def named(self, name: str | None) -> str:
        """The model that is meant: of a request that names none, the one last used, or the only one there is."""
        if name:
            return name
        names = [entry.name for entry in self.host.catalog.entries()]
        if self.last_used in names:
            return self.last_used
        if len(names) != 1:
            raise Refused(400, "model is required")
        return names[0]


def spoken(dialect: Dialect, endpoint: Endpoint) -> Endpoint:
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
    return Response(to_bytes(body), status, media_type=JSON)


async def read_json(request: Request) -> Any:
    """The body as JSON."""
    data = await request.body()
    if not data.strip():
        raise Refused(400, "missing request body")
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the request body is not JSON: {error}") from None


def _embedding(
    llm: LLM, inputs: list[Any], truncate: bool, dimensions: int | None, left: threading.Event
) -> Callable[[], tuple[list[np.ndarray], int]]:
    def work() -> tuple[list[np.ndarray], int]:
        vectors, count = [], 0
        last = llm.file.metadata.get(f"{llm.file.architecture}.pooling_type") == 3
        for one in inputs:
            if left.is_set():
                break  # nobody wants them any more
            ids = llm.tokenizer.encode(one, add_special=True) if isinstance(one, str) else list(one)
            if len(ids) > llm.context:
                if not truncate:
                    raise Refused(400, "the input length exceeds the context length")
                ids = ids[: llm.context]
            if not ids:
                raise Refused(400, "the input is empty: there is nothing to embed")
            count += len(ids)
            vector = llm.embed(ids, "last" if last else "mean")[:dimensions]
            vectors.append(vector / max(float(np.linalg.norm(vector)), 1e-12))
        return vectors, count

    return work


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


async def _one(body: Callable[[], Awaitable[dict[str, Any]]]) -> AsyncIterator[Chunk]:
    yield await body()


async def _given(chunks: Iterator[Chunk]) -> AsyncIterator[Chunk]:
    for chunk in chunks:
        yield chunk
