"""Streamed: from a blocking iterator of chunks to a client that may hang up at any time."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gmoe.gguf.file import GGUFError
from gmoe.server.ask import Refused

Chunk = dict[str, Any] | tuple[str, dict[str, Any]] | str
log = logging.getLogger("gmoe.server")


class Dialect(Protocol):
    """How a family of routes speaks."""

    media: str  # of a stream

    def encode(self, chunk: Chunk) -> bytes:
        """A chunk of a stream as it goes over the wire."""

    def refuse(self, error: Refused, late: bool) -> Chunk:
        """An error; `late`: as a chunk, after the stream has begun."""


class Source(NamedTuple):
    """What to send: `chunks` is run in a thread, `cancel` ends it from another."""

    chunks: Callable[[], Iterator[Chunk]]
    cancel: Callable[[], None]


class Threads:
    """The threads in which answers are iterated; further answers wait their turn."""

    def __init__(self, number: int):
        self._pool = ThreadPoolExecutor(number, thread_name_prefix="gmoe-answer")

    async def iterate(self, source: Source) -> AsyncGenerator[Chunk, None]:
        """The chunks; leaving early cancels the source and waits until its thread has let go."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[Chunk | None, BaseException | None]] = asyncio.Queue()

        def put(chunk: Chunk | None, error: BaseException | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, (chunk, error))

        def work() -> None:
            try:
                for chunk in source.chunks():
                    put(chunk, None)
                put(None, None)
            except BaseException as error:
                put(None, error)

        future = loop.run_in_executor(self._pool, work)
        try:
            while True:
                chunk, error = await queue.get()
                if error is not None:
                    raise error
                if chunk is None:
                    return
                yield chunk
        finally:
            source.cancel()
            future.cancel()
            await asyncio.wait([future])

    def close(self) -> None:
        """No more answers."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Streamed(Response):
    """The chunks that `open` gives, as a stream or (`stream` false) its only chunk as JSON.

    An error before the first chunk has its own status; one after it is a last chunk in the dialect's form.
    """

    def __init__(
        self,
        dialect: Dialect,
        open: Callable[[], AbstractAsyncContextManager[AsyncIterator[Chunk]]],
        stream: bool,
        headers: dict[str, str] | None = None,
    ):
        self.dialect, self.open, self.stream = dialect, open, stream
        self.more = headers or {}
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client hangs up first."""
        answer = asyncio.create_task(self._answer(send))
        hangup = asyncio.create_task(_hung_up(receive))
        try:
            await asyncio.wait({answer, hangup}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (answer, hangup):
                task.cancel()
            await asyncio.wait({answer, hangup})
        if not answer.cancelled() and (error := answer.exception()) and not isinstance(error, OSError):
            raise error

    async def _answer(self, send: Send) -> None:
        begun = False
        try:
            async with self.open() as chunks:
                async for chunk in chunks:
                    if not self.stream:
                        assert isinstance(chunk, dict)
                        await send_json(send, 200, chunk)
                        return
                    if not begun:
                        begun = True
                        await self._start(send)
                    await self._send(send, self.dialect.encode(chunk))
            await self._send(send, b"", last=True)
        except Exception as error:
            if isinstance(error, OSError) and begun and not error.filename:
                raise
            refused = refused_of(error)
            if begun:
                await self._send(send, self.dialect.encode(self.dialect.refuse(refused, True)))
                await self._send(send, b"", last=True)
            else:
                body = self.dialect.refuse(refused, False)
                assert isinstance(body, dict)
                await send_json(send, refused.status, body)

    async def _start(self, send: Send) -> None:
        headers = {"content-type": self.dialect.media, "cache-control": "no-cache"} | self.more
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _send(self, send: Send, body: bytes, last: bool = False) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": not last})


def refused_of(error: Exception) -> Refused:
    """Any error as a status and one sentence; one that nobody expected is logged whole."""
    if isinstance(error, Refused):
        return error
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, GGUFError | ValueError):
        return Refused(400 if isinstance(error, ValueError) and not isinstance(error, GGUFError) else 500, text)
    if isinstance(error, MemoryError):
        return Refused(500, "there is not enough memory")
    log.error("a request failed: %s", text, exc_info=error)
    return Refused(500, text)


def to_bytes(value: Any) -> bytes:
    """Compact JSON; a lone surrogate is written as its escape."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


async def send_json(send: Send, status: int, body: Any) -> None:
    """A whole JSON response."""
    data = to_bytes(body)
    headers = [(b"content-type", b"application/json; charset=utf-8"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
