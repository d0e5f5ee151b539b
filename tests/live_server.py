"""A gmoe server on loopback, in a thread of the tests."""

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from gmoe.library.demo import bundle
from gmoe.library.manifest import Library
from gmoe.options import RuntimeOptions
from gmoe.server.app import application
from gmoe.server.catalog import Catalog
from gmoe.server.safety import Limits
from gmoe.server.service import Service


@dataclass
class Live:
    """A running server; `http` speaks to it."""

    url: str
    service: Service
    http: httpx.Client

    def lines(self, path: str, body: Any) -> list[dict[str, Any]]:
        """The objects of an NDJSON stream."""
        response = self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        return [json.loads(line) for line in response.text.splitlines()]

    def never_end(self, model: str) -> None:
        """Load a model and let no token end its answers."""
        self.lines("/api/generate", {"model": model, "keep_alive": -1})
        self.service.host.running[f"{model}:latest"].llm.tokenizer.end_ids = frozenset()


@contextmanager
def live_server(
    home: Path,
    files: Sequence[Path] = (),
    options: RuntimeOptions | None = None,
    limits: Limits | None = None,
    default: str | None = None,
    **more: Any,
) -> Iterator[Live]:
    """Serve until the block ends."""
    catalog = Catalog.of(Library(home / "models", bundled=bundle()), files, default)
    service = Service(catalog, options or RuntimeOptions(context=256), **more)
    app = application(service, limits)
    patient = {"timeout_graceful_shutdown": 5, "timeout_keep_alive": 600}  # a test may be stopped for a while
    config = uvicorn.Config(app, log_level="error", lifespan="on", **patient)
    listener = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=60) as http:
            yield Live(url, service, http)
    finally:
        running.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()
