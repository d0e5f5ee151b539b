"""push: a model of the library into a registry."""

import re
from collections.abc import Callable
from typing import BinaryIO
from urllib.parse import urlencode, urljoin

import httpx

from gmoe.library.manifest import MANIFEST_TYPE, Layer, Library
from gmoe.library.name import ModelName
from gmoe.library.pull import connect
from gmoe.library.registry import Progress, Registry, RegistryError, Report, reason, require

PIECE = 16 << 20  # bytes sent in one request
FRUITLESS_TRIES = 3
_SPAN = re.compile(r"(?:bytes=)?0-(\d+)")


def push(library: Library, name: ModelName, report: Report = lambda step: None, *, insecure: bool = False) -> None:
    """Send a model; what the registry has is not sent again. Raises `LibraryError`."""
    report(Progress("retrieving manifest"))
    manifest = library.resolve(name)
    with connect(library, name, insecure) as registry, library.reading():
        try:
            for layer in sorted({*manifest.layers, manifest.config}, key=lambda layer: -layer.size):
                _give(library, registry, name, layer, report)
            report(Progress("pushing manifest"))
            headers = {"Content-Type": MANIFEST_TYPE}
            with registry.ask("PUT", f"manifests/{name.tag}", headers, manifest.to_bytes()) as response:
                require(response, 200, 201, 202)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RegistryError(f"push model: {name.host}: {reason(error)}") from None
    report(Progress("success"))


def _give(library: Library, registry: Registry, name: ModelName, layer: Layer, report: Report) -> None:
    def count(completed: int) -> None:
        report(Progress(f"pushing {layer.digest[7:19]}", layer.digest, layer.size, completed))

    count(0)
    with registry.ask("HEAD", f"blobs/{layer.digest}") as response:
        there = response.status_code == 200
        if not there:
            require(response, 404)
    if not there:
        place = _begin(registry, layer, _source(library, name, layer))
        if place:
            with library.open(layer.digest) as blob:
                _send(registry, place, blob, layer, count)
    count(layer.size)


def _source(library: Library, name: ModelName, layer: Layer) -> str:
    """Another repository of the same registry that may have this blob: one that has been pulled from it."""
    for other, manifest in library.models():
        if other.host == name.host and other[1:3] != name[1:3] and layer.digest in manifest.digests:
            return f"{other.namespace}/{other.model}"
    return ""


def _begin(registry: Registry, layer: Layer, source: str) -> str:
    """Where to send the blob; "" where the registry took it from `source`."""
    query = "?" + urlencode({"mount": layer.digest, "from": source}) if source else ""
    with registry.ask("POST", f"blobs/uploads/{query}", {"Content-Length": "0"}) as response:
        require(response, 201, 202)
        return "" if response.status_code == 201 else _location(registry, response)


def _send(registry: Registry, place: str, blob: BinaryIO, layer: Layer, count: Callable[[int], None]) -> None:
    at, fruitless = 0, 0
    while at < layer.size:
        blob.seek(at)
        piece = blob.read(PIECE)
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{at}-{at + len(piece) - 1}"}
        try:
            with registry.ask("PATCH", place, headers, piece) as response:
                if response.status_code == 416:  # it has more or less than we believe
                    raise httpx.ReadError("the registry is elsewhere in the file")
                require(response, 200, 202, 204)
                place = _location(registry, response)
            at, fruitless = at + len(piece), 0
            count(at)
        except httpx.TransportError:
            fruitless += 1
            if fruitless == FRUITLESS_TRIES:
                raise
            place, at = _resume(registry, place, at)
    glue = "&" if "?" in place else "?"
    url = f"{place}{glue}{urlencode({'digest': layer.digest})}"
    with registry.ask("PUT", url, {"Content-Length": "0"}) as response:
        require(response, 200, 201, 204)


def _resume(registry: Registry, place: str, at: int) -> tuple[str, int]:
    """Where an upload stands after a cut."""
    with registry.ask("GET", place) as response:
        require(response, 200, 202, 204)
        span = _SPAN.fullmatch(response.headers.get("Range", ""))
        return _location(registry, response, place), int(span[1]) + 1 if span else at


def _location(registry: Registry, response: httpx.Response, default: str | None = None) -> str:
    place = response.headers.get("Location", default)
    if place is None:
        raise RegistryError(f"{registry.base} did not say where to send a blob")
    return urljoin(str(response.request.url), place)
