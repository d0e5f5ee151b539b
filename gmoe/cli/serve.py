"""`gmoe serve`: answer requests over HTTP."""

import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

import click

from gmoe.cli.errors import usage
from gmoe.cli.options import runtime_flags, take
from gmoe.options import RuntimeOptions, memory_bytes

PORT = 11435
# A connection without requests is closed after so long. Where the server is first, a client may be writing already and
# sees "Server disconnected": httpx closes after 5 seconds, aiohttp after 15, Go after 90.
IDLE_SECONDS = 120


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
@click.option(
    "--max-loaded", type=click.IntRange(min=1), default=3, show_default=True, help="Models in memory together."
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Requests that may wait; further ones get 503.",
)
@click.option("--default-model", help="The model for requests that name one which is not here.")
@click.option("--api-key", help="What clients must send as Authorization: Bearer KEY.")
@click.option("--origin", "origins", multiple=True, help="Web pages that may ask; may be given again; *: all.")
@click.option("--max-body", default="64MiB", show_default=True, help="Largest request, but for blobs.")
@click.option("--max-seconds", type=click.FloatRange(min=0, min_open=True), help="Longest time for an answer.")
@runtime_flags
def serve(
    files: tuple[Path, ...], host: str | None, port: int | None, keep_alive: str, max_loaded: int, max_queue: int,
    default_model: str | None, api_key: str | None, origins: tuple[str, ...], max_body: str,
    max_seconds: float | None, **flags: Any,
) -> None:  # fmt: skip
    """Serve the models of the library, and each GGUF FILE under its name without ending."""
    options = take(RuntimeOptions, flags)
    for given in filter(None, (options.trace, options.twin)):
        if not given.is_file():
            raise ValueError(f"{given}: there is no such file")
    where = address(host, port)
    with usage():
        body_bytes = memory_bytes(max_body, 64 << 20, "--max-body")
    import uvicorn

    from gmoe.experts.device import open_device
    from gmoe.library.manifest import Library
    from gmoe.server.app import application
    from gmoe.server.ask import Refused
    from gmoe.server.catalog import Catalog
    from gmoe.server.ollama import keep_alive_of
    from gmoe.server.safety import Limits
    from gmoe.server.service import Service

    try:
        patience = keep_alive_of(keep_alive) or 0.0
    except Refused as refused:
        raise click.UsageError(f"--keep-alive: {refused.text}") from None
    open_device(options.device)  # one that is named must be there
    catalog = Catalog.of(Library.default(), [path.absolute() for path in files], default_model)
    service = Service(catalog, options, max_seconds, keep_alive=patience, max_loaded=max_loaded, max_queue=max_queue)
    limits = Limits(api_key, origins, body_bytes, loopback=is_loopback(where[0]))
    config = uvicorn.Config(
        application(service, limits),
        *where,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=3,
    )
    uvicorn.Server(config).run(sockets=[listening(*where)])


def listening(host: str, port: int) -> socket.socket:
    """A bound socket, said on standard error; one sentence where the address is taken or is none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listener = socket.create_server(found[0][4][:2], family=found[0][0], backlog=2048)
    except OSError as error:
        known = (error.errno or 0) > 0  # negative: of the look-up, with a text of its own
        reason = os.strerror(error.errno or 0) if known else error.strerror
        raise ValueError(f"cannot listen on {host}:{port}: {reason}") from None
    name, number = listener.getsockname()[:2]
    click.echo(f"gmoe is listening on http://{f'[{name}]' if ':' in name else name}:{number}", err=True)
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
