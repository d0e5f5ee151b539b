"""pull: a model from a registry into the library, resumable and verified."""

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import NamedTuple

import httpx

from gmoe.library.manifest import CHUNK, MANIFEST_TYPE, Layer, Library, LibraryError, Manifest, blob_name
from gmoe.library.name import ModelName

MAX_MANIFEST = 4 << 20
FRUITLESS_TRIES = 3
_RANGE = re.compile(r"bytes (\d+)-")


class PullError(LibraryError):
    """The registry did not give the model; its text is one sentence."""


class Progress(NamedTuple):
    """One step of a pull; `total` and `completed` count bytes of the blob `digest`."""

    status: str
    digest: str = ""
    total: int = 0
    completed: int = 0


Report = Callable[[Progress], None]


def pull(library: Library, name: ModelName, report: Report = lambda step: None, *, insecure: bool = False) -> Manifest:
    """Fetch a model and name it; what arrived before a cut is kept and not fetched again.

    `insecure` speaks plain HTTP. Raises `PullError`; then the name still stands for what it stood for before.
    """
    base = f"{'http' if insecure else 'https'}://{name.host}/v2/{name.namespace}/{name.model}"
    with httpx.Client(follow_redirects=True, timeout=30) as client, library.adding():
        report(Progress("pulling manifest"))
        manifest = _manifest(client, f"{base}/manifests/{name.tag}", name)
        for layer in sorted({*manifest.layers, manifest.config}, key=lambda layer: -layer.size):
            if not library.has_blob(layer.digest):
                _fetch(client, f"{base}/blobs/{layer.digest}", library, layer, report)
            report(Progress(f"pulling {layer.digest[7:19]}", layer.digest, layer.size, layer.size))
        report(Progress("writing manifest"))
        library.write(name, manifest)
    report(Progress("removing any unused layers"))
    library.prune()
    report(Progress("success"))
    return library.resolve(name)


def _manifest(client: httpx.Client, url: str, name: ModelName) -> Manifest:
    try:
        with client.stream("GET", url, headers={"Accept": MANIFEST_TYPE}) as response:
            if response.status_code == 404:
                raise PullError(f"pull model manifest: file does not exist: {name}")
            _require_status(response, 200)
            data = b""
            for chunk in response.iter_bytes(CHUNK):
                data += chunk
                if len(data) > MAX_MANIFEST:
                    raise PullError(f"the manifest of {name} is larger than {MAX_MANIFEST} bytes")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PullError(f"pull model manifest: {name.host}: {error}") from None
    return Manifest.from_bytes(data, url)


def _fetch(client: httpx.Client, url: str, library: Library, layer: Layer, report: Report) -> None:
    """Bring one blob whole and verified into the library, going on where an earlier attempt ended."""
    target = library.root / "blobs" / blob_name(layer.digest)
    with _claimed(target.with_name(target.name + "-partial")) as (file, partial):
        if library.has_blob(layer.digest):  # another process brought it meanwhile
            partial.unlink(missing_ok=True)
            return
        fruitless = 0
        while (have := file.seek(0, os.SEEK_END)) < layer.size:
            try:
                _continue(client, url, file, have, layer, report)
            except httpx.HTTPError as error:
                fruitless = fruitless + 1 if file.seek(0, os.SEEK_END) <= have else 0
                if fruitless == FRUITLESS_TRIES:
                    raise PullError(f"{layer.digest}: {error}; pull again to go on from here") from None
        report(Progress("verifying sha256 digest", layer.digest, layer.size, layer.size))
        file.seek(0)
        got = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if got != layer.digest:
            partial.unlink()
            raise PullError(f"digest mismatch, file must be downloaded again: want {layer.digest}, got {got}")
        os.fsync(file.fileno())
        os.replace(partial, target)


def _continue(client: httpx.Client, url: str, file: BufferedRandom, have: int, layer: Layer, report: Report) -> None:
    """Append to `file` what the registry sends from byte `have` on, or all of it where it knows no ranges."""
    headers = {"Range": f"bytes={have}-"} if have else {}
    with client.stream("GET", url, headers={**headers, "Accept-Encoding": "identity"}) as response:
        ranged = response.status_code == 206
        if not ranged:
            _require_status(response, 200)
            have = 0
            file.truncate(0)
        start = _RANGE.match(response.headers.get("Content-Range", ""))
        if ranged and (start is None or int(start[1]) != have):
            raise PullError(f"{url} sent another range than the one asked for")
        for chunk in response.iter_raw():  # of no fixed size: that would hold back what came before a cut
            have += len(chunk)
            if have > layer.size:
                file.truncate(0)
                raise PullError(f"{layer.digest} is longer than the {layer.size} bytes its manifest says")
            file.write(chunk)
            file.flush()
            report(Progress(f"pulling {layer.digest[7:19]}", layer.digest, layer.size, have))
        if have < layer.size:
            raise httpx.ReadError("the registry sent less than the manifest says")


def _require_status(response: httpx.Response, status: int) -> None:
    if response.status_code != status:
        raise PullError(f"{response.url} answered {response.status_code} {response.reason_phrase}")


@contextmanager
def _claimed(path: Path) -> Iterator[tuple[BufferedRandom, Path]]:
    """A partial file open for appending, which no other process has; waits for the one that has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                yield file, path
                return
