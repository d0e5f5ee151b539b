"""`gmoe serve`: answer requests over HTTP."""

import os
from pathlib import Path
from typing import Any

import click

from gmoe.cli.options import runtime_flags, take
from gmoe.options import RuntimeOptions

PORT = 11435


def address(host: str | None, port: int | None) -> tuple[str, int]:
    """Where to listen: the flags, else GMOE_HOST (`host`, `host:port` or `:port`), else 127.0.0.1:11435."""
    text = os.environ.get("GMOE_HOST", "").removeprefix("http://").rstrip("/")
    if text.startswith("["):
        name, _, tail = text[1:].partition("]")
        number = tail.removeprefix(":")
    elif text.count(":") == 1:
        name, _, number = text.partition(":")
    else:
        name, number = text, ""
    if number and not (number.isdigit() and int(number) < 1 << 16):
        raise ValueError(f"GMOE_HOST is {os.environ['GMOE_HOST']!r}; its port must be a number below 65536")
    return host or name or "127.0.0.1", port if port is not None else int(number or PORT)


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE]...", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--host", help="Address to listen on; GMOE_HOST, or 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; GMOE_HOST, or 11435.")
@click.option("--keep-alive", default="5m", show_default=True, help="How long a model stays loaded; negative: forever.")
@click.option("--max-loaded", default=3, show_default=True, help="Models in memory together.")
@click.option("--max-queue", default=512, show_default=True, help="Requests that may wait; further ones get 503.")
@runtime_flags
def serve(
    files: tuple[Path, ...], host: str | None, port: int | None, keep_alive: str, max_loaded: int, max_queue: int,
    **flags: Any,
) -> None:  # fmt: skip
    """Serve the models of the library, and each GGUF FILE under its name without ending."""
    options = take(RuntimeOptions, flags)
    where = address(host, port)
    import uvicorn

    from gmoe.library.manifest import Library
    from gmoe.server.app import Server
    from gmoe.server.ollama import duration

    server = Server(
        Library.default(),
        [path.absolute() for path in files],
        options,
        keep_alive=duration(keep_alive),
        max_loaded=max_loaded,
        max_queue=max_queue,
    )
    uvicorn.run(server.app(), host=where[0], port=where[1], log_level="warning", server_header=False)
