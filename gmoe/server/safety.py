"""Safety: who may ask, from where, how much and how slowly; an ASGI application around the application."""

import asyncio
import hmac
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gmoe.server import anthropic, llama, ollama, openai
from gmoe.server.ask import Refused
from gmoe.server.stream import Dialect, send_json

LOCAL_NAMES = ("localhost", ".localhost", ".local", ".internal")
LOCAL_ORIGINS = re.compile(r"https?://(localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(:\d+)?")
APP_ORIGINS = ("app://", "file://", "tauri://", "vscode-webview://", "vscode-file://")
ALLOWED_HEADERS = "authorization content-type user-agent accept x-requested-with openai-beta x-api-key".split()
HEADER_PREFIXES = ("x-stainless-", "anthropic-")
OPEN_PATHS = ("/", "/health", "/v1/health", "/page.css", "/page.js", "/icon.svg")


@dataclass(frozen=True)
class Limits:
    """What a server asks of its clients."""

    api_key: str | None = None
    origins: Sequence[str] = ()  # beside those on this machine; "*": every one
    body_bytes: int = 64 << 20  # of a request, but for blobs
    body_seconds: float = 60.0  # without a byte of an unfinished body
    loopback: bool = True  # bound to this machine only


class Safety:
    """Refuses strangers, and bounds what the others send."""

    def __init__(self, app: ASGIApp, limits: Limits):
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path, origin = scope["path"], headers.get("origin")
        host = headers.get("host", "")
        if self.limits.loopback and not _is_local(host):
            await _plain(send, 403)
            return
        if origin and not self._allows(origin, host):
            await _plain(send, 403)
            return
        if origin:
            send = _with_origin(send, origin)
        if scope["method"] == "OPTIONS":
            await _preflight(send, headers)
            return
        dialect = dialect_of(path)
        try:
            self._require_key(path, headers)
            length = headers.get("content-length", "0")
            if self._bounded(path) and length.isdigit() and int(length) > self.limits.body_bytes:
                raise Refused(413, f"the request body is larger than {self.limits.body_bytes} bytes")
        except Refused as refused:
            await send_json(send, refused.status, dialect.refuse(refused, False))
            return
        await self.app(scope, self._guarded(receive, path), send)

    def _allows(self, origin: str, host: str) -> bool:
        own = origin.partition("://")[2] == host
        given = "*" in self.limits.origins or origin in self.limits.origins
        return own or given or bool(LOCAL_ORIGINS.fullmatch(origin)) or origin.startswith(APP_ORIGINS)

    def _require_key(self, path: str, headers: Headers) -> None:
        if self.limits.api_key is None or path in OPEN_PATHS:
            return
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.limits.api_key.encode()):
            raise Refused(401, "invalid API key")

    def _bounded(self, path: str) -> bool:
        return not path.startswith("/api/blobs/")

    def _guarded(self, receive: Receive, path: str) -> Receive:
        """The body, with an end to its size and to the time it may stall."""
        got, done = 0, False

        async def guarded() -> Message:
            nonlocal got, done
            if done:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self.limits.body_seconds)
            except TimeoutError:
                raise Refused(408, f"the request body stalled for {self.limits.body_seconds:g} seconds") from None
            got += len(message.get("body", b""))
            done = not message.get("more_body", False)
            if self._bounded(path) and got > self.limits.body_bytes:
                raise Refused(413, f"the request body is larger than {self.limits.body_bytes} bytes")
            return message

        return guarded


def dialect_of(path: str) -> Dialect:
    """The dialect in which a path's errors are said."""
    if path.startswith("/v1/messages"):
        return anthropic
    if path.startswith("/v1/"):
        return openai
    return ollama if path.startswith("/api/") or path == "/" else llama


def _is_local(host: str) -> bool:
    """Whether a Host header names this machine or its network: no name that a stranger may point here."""
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        name = name.lower().rstrip(".")
        return any(name == local or (local.startswith(".") and name.endswith(local)) for local in LOCAL_NAMES)
    return address.is_loopback or address.is_private or address.is_unspecified


def _with_origin(send: Send, origin: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            more = [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return sending


async def _preflight(send: Send, headers: Headers) -> None:
    asked = [name.strip().lower() for name in headers.get("access-control-request-headers", "").split(",")]
    allowed = [name for name in asked if name in ALLOWED_HEADERS or name.startswith(HEADER_PREFIXES)]
    more = {
        "access-control-allow-methods": "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS",
        "access-control-allow-headers": ", ".join(allowed or ALLOWED_HEADERS),
        "access-control-max-age": "43200",
    }
    await _plain(send, 204, more)


async def _plain(send: Send, status: int, headers: dict[str, str] | None = None) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    if status != 204:
        raw.append((b"content-length", b"0"))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b""})
