"""Streamed: from a blocking iterator of chunks to a client that may hang up at any time."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, NamedTuple, Protocol, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gmoe.engine.sampler import NotNumbers
from gmoe.gguf.file import GGUFError
from gmoe.server.ask import Refused

Chunk = dict[str, Any] | list[dict[str, Any]] | tuple[str, dict[str, Any]] | str
T = TypeVar("T")
log = logging.getLogger("gmoe.server")

_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}  # httpx cuts lines there


class Dialect(Protocol):
    """How a family of routes speaks."""

    media: str  # of a stream

    def encode(self, chunk: Chunk) -> bytes:
        """A chunk of a stream as it goes over the wire."""

    def refuse(self, error: Refused, late: bool) -> Chunk:
        """An error; `late`: as a chunk, after the stream has begun."""


Put = Callable[[Chunk], None]


class Gone(Exception):
    """Nobody wants what a thread still gives."""


class Source(NamedTuple):
    """What to send: `run` gives chunks to its argument, in a thread; `cancel` ends it from another."""

    run: Callable[[Put], None]
    cancel: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, chunks: Callable[[], Iterator[Chunk]], cancel: Callable[[], None] = lambda: None) -> "Source":
        """What an iterator gives."""

        def run(put: Put) -> None:
            for chunk in chunks():
                put(chunk)

        return cls(run, cancel)


class Threads:
    """The threads in which answers are made; further ones wait their turn."""

    def __init__(self, number: int):
        self._pool = ThreadPoolExecutor(number, thread_name_prefix="gmoe-answer")

    async def iterate(self, source: Source) -> AsyncGenerator[Chunk, None]:
        """The chunks; leaving early cancels the source and waits until its thread has let go."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Chunk | BaseException | None] = asyncio.Queue()
        left = threading.Event()

        def put(chunk: Chunk | BaseException | None) -> None:
            if left.is_set():
                raise Gone
            loop.call_soon_threadsafe(queue.put_nowait, chunk)

        def work() -> None:
            with suppress(Gone):
                try:
                    source.run(put)
                    put(None)
                except Exception as error:
                    put(error)

        job = self._pool.submit(work)
        try:
            while (chunk := await queue.get()) is not None:
                if isinstance(chunk, BaseException):
                    raise chunk
                yield chunk
        finally:
            left.set()
            source.cancel()
            await _ended(job)

    async def run(self, work: Callable[[], T], cancel: Callable[[], None] = lambda: None) -> T:
        """What `work` gives; leaving early calls `cancel` and waits until the thread has let go."""
        job = self._pool.submit(work)
        try:
            return await asyncio.wrap_future(job)
        finally:
            if not job.done():
                cancel()
                await _ended(job)

    def close(self) -> None:
        """No more answers."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def _ended(job: Future[Any]) -> None:
    """A job is cancelled where it waits for a thread; where it has one it comes to its end."""
    if not job.cancel():
        await asyncio.wait([asyncio.wrap_future(job)])


class Streamed(Response):
    """The chunks that `open` gives, as a stream or (`stream` false) the last of them as JSON; in so many `seconds`.

    An error before the first chunk has its own status; one after it is a last chunk in the dialect's form.
    """

    def __init__(
        self,
        dialect: Dialect,
        open: Callable[[], AbstractAsyncContextManager[AsyncIterator[Chunk]]],
        stream: bool,
        seconds: float | None = None,
    ):
        self.dialect, self.open, self.stream, self.seconds = dialect, open, stream, seconds
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
            async with asyncio.timeout(self.seconds), self.open() as chunks:
                last: Chunk = {}
                async for chunk in chunks:
                    if not self.stream:
                        last = chunk
                        continue
                    if not begun:
                        begun = True
                        await self._start(send)
                    await self._send(send, self.dialect.encode(chunk))
            if self.stream:
                await self._send(send, b"", last=True)
            else:
                await send_json(send, 200, last)
        except TimeoutError:
            await self._refuse(send, Refused(504, f"the answer took longer than {self.seconds:g} seconds"), begun)
        except Exception as error:
            if begun and isinstance(error, OSError) and (isinstance(error, ConnectionError) or error.errno is None):
                raise  # the client is gone
            await self._refuse(send, refused_of(error), begun)

    async def _refuse(self, send: Send, refused: Refused, begun: bool) -> None:
        if begun:
            await self._send(send, self.dialect.encode(self.dialect.refuse(refused, True)))
            await self._send(send, b"", last=True)
        else:
            await send_json(send, refused.status, self.dialect.refuse(refused, False))

    async def _start(self, send: Send) -> None:
        headers = {"content-type": self.dialect.media, "cache-control": "no-cache"}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _send(self, send: Send, body: bytes, last: bool = False) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": not last})


def refused_of(error: Exception) -> Refused:
    """Any error as a status and one sentence; one that nobody expected is logged whole."""
    if isinstance(error, Refused):
        return error
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, GGUFError | NotNumbers):
        return Refused(500, text)
    if isinstance(error, ValueError):
        return Refused(400, text)
    if isinstance(error, ClientDisconnect):
        return Refused(499, "request canceled")
    if isinstance(error, MemoryError):
        return Refused(500, "there is not enough memory")
    log.error("a request failed: %s", text, exc_info=error)
    return Refused(500, text)


def to_bytes(value: Any) -> bytes:
    """Compact JSON in one line; lone surrogates and what clients take for a line's end are escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(_LINE_ENDS).encode("utf-8", "backslashreplace")


async def send_json(send: Send, status: int, body: Any) -> None:
    """A whole JSON response."""
    data = to_bytes(body)
    headers = [(b"content-type", b"application/json; charset=utf-8"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
