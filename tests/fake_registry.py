"""A registry and a hub on loopback: they want tokens, cut connections, and count what they are asked."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class FakeRegistry:
    """What it holds by repository, and how it behaves; `asked` are method, path and headers of all requests."""

    port: int = 0
    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)  # by repository and digest
    manifests: dict[tuple[str, str], bytes] = field(default_factory=dict)  # by repository and tag
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)  # of the hub: files by path
    token: str = ""  # without it nothing is given
    login: str = ""  # what the one who gives tokens wants to see
    cuts: int = 0  # connections that end in the middle of a body
    cut_uploads: int = 0
    short_upload: int = 0  # of such an upload, how many bytes have arrived
    ranges: bool = True
    lies: bool = False  # about the digest of what was sent
    uploads: dict[str, bytearray] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    door: threading.Lock = field(default_factory=threading.Lock)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def count(self, method: str, part: str = "") -> int:
        return sum(asked[0] == method and part in asked[1] for asked in self.asked)

    def take(self, name: str) -> bool:
        """Use up one of the troubles that it is to make."""
        with self.door:
            left = getattr(self, name)
            setattr(self, name, max(0, left - 1))
            return bool(left)


class _Handler(BaseHTTPRequestHandler):
    registry: FakeRegistry
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle_all(self) -> None:
        self.registry.asked.append((self.command, self.path, dict(self.headers)))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0))) if self.command == "PUT" else b""
        path = urlsplit(self.path).path
        if path == "/token":
            self.give_token()
        elif path.startswith("/v2/") and self.registry.token and not self.known():
            realm = f'Bearer realm="http://{self.registry.host}/token",service="fake",scope="repository:x:pull,push"'
            self.answer(401, b"", {"WWW-Authenticate": realm})
        elif path.startswith("/v2/"):
            self.give(path.removeprefix("/v2/"))
        else:
            self.give_file(path)

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = handle_all

    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.registry.token}"

    def give_token(self) -> None:
        if self.registry.login and self.headers.get("Authorization") != self.registry.login:
            self.answer(401, b"{}")
        else:
            self.answer(200, json.dumps({"token": self.registry.token}).encode())

    def give(self, path: str) -> None:
        registry = self.registry
        repository, kind, rest = re.fullmatch(r"(.+?)/(manifests|blobs)/(.+)", path).groups()  # type: ignore[union-attr]
        if kind == "manifests" and self.command == "PUT":
            registry.manifests[repository, rest] = self.body
            self.answer(201, b"")
        elif kind == "manifests":
            self.answer_if(registry.manifests.get((repository, rest)))
        elif rest.startswith("uploads/"):
            self.upload(repository, rest.removeprefix("uploads/"))
        else:
            self.answer_if(registry.blobs.get((repository, rest)))

    def upload(self, repository: str, name: str) -> None:
        registry, query = self.registry, parse_qs(urlsplit(self.path).query)
        place = {"Location": f"/v2/{repository}/blobs/uploads/{name}?state=1"}
        if self.command == "POST" and "mount" in query:
            content = registry.blobs.get((query["from"][0], query["mount"][0]))
            if content is not None:
                registry.blobs[repository, query["mount"][0]] = content
                self.answer(201, b"")
                return
        if self.command == "POST":
            name = f"u{len(registry.uploads)}"
            registry.uploads[name] = bytearray()
            self.answer(202, b"", {"Location": f"/v2/{repository}/blobs/uploads/{name}?state=1"})
        elif self.command == "PATCH":
            data = registry.uploads[name]
            size = int(self.headers["Content-Length"])
            if registry.take("cut_uploads"):
                data += self.rfile.read(min(size, registry.short_upload))
                self.close_connection = True
                self.connection.close()
                return
            body = self.rfile.read(size)
            start = int(self.headers["Content-Range"].partition("-")[0])
            if start != len(data):
                self.answer(416, b"", place)
                return
            data += body
            self.answer(202, b"", {**place, "Range": f"0-{len(data) - 1}"})
        elif self.command == "GET":
            data = registry.uploads[name]
            self.answer(204, b"", {**place, **({"Range": f"0-{len(data) - 1}"} if data else {})})
        else:
            content = bytes(registry.uploads[name])
            if registry.lies or digest_of(content) != query["digest"][0]:
                self.answer(400, b'{"errors":[{"message":"provided digest did not match\\nuploaded content"}]}')
                return
            registry.blobs[repository, query["digest"][0]] = content
            self.answer(201, b"")

    def give_file(self, path: str) -> None:
        model = re.fullmatch(r"/api/models/([^/]+/[^/]+)", path)
        if model:
            files = self.registry.repositories.get(model[1])
            if files is None:
                self.answer(404, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})
                return
            self.answer(
                200, json.dumps({"id": model[1], "siblings": [_sibling(*file) for file in files.items()]}).encode()
            )
            return
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/main/(.+)", path)
        self.answer_if(self.registry.repositories.get(file[1], {}).get(file[2]) if file else None)

    def answer_if(self, content: bytes | None) -> None:
        if content is None:
            self.answer(404, b'{"errors":[{"message":"not here"}]}')
            return
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not span or not self.registry.ranges:
            self.answer(200, content)
            return
        start, end = int(span[1]), int(span[2]) + 1 if span[2] else len(content)
        self.answer(206, content[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if len(body) > 1000 and self.registry.take("cuts"):
            self.wfile.write(body[: len(body) // 3])
            self.close_connection = True
        else:
            self.wfile.write(body)


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    sha = hashlib.sha256(content).hexdigest()
    large = {"lfs": {"sha256": sha, "size": len(content), "pointerSize": 130}} if path.endswith(".gguf") else {}
    return {"rfilename": path, "size": len(content), "blobId": sha[:40], **large}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up."""


@contextmanager
def serving() -> Iterator[FakeRegistry]:
    """A registry that answers as long as the block runs."""
    registry = FakeRegistry()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"registry": registry}))
    registry.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
