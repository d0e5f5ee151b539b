"""fetch: one file from the net, in ranges side by side, resumable and verified."""

import fcntl
import hashlib
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

import httpx

from gmoe.library.manifest import Layer, Library, blob_name
from gmoe.library.registry import Progress, Registry, RegistryError, Report, reason, require

FRUITLESS_TRIES = 3
SEGMENT = 16 << 20  # bytes asked for at once; less than this is fetched in one
SIDE_BY_SIDE = 4
_RANGE = re.compile(r"bytes (\d+)-")
Count = Callable[[int], None]  # told how many bytes of the file have come


class _NoRanges(Exception):
    """The registry sends whole files only."""


def fetch(
    registry: Registry, url: str, target: Path, digest: str, size: int, count: Count, done: Callable[[], bool]
) -> None:
    """Bring one file whole to `target`, going on where an earlier attempt ended.

    Its beginning is kept in `TARGET-partial`. `digest` is "sha256:" and 64 hex digits; `done` says whether another
    process has brought it meanwhile. Raises `RegistryError`; bytes that have another digest are thrown away.
    """
    with _claimed(target.with_name(target.name + "-partial")) as (file, partial):
        if done():
            partial.unlink(missing_ok=True)
            return
        if file.seek(0, os.SEEK_END) > size:
            file.truncate(0)
        try:
            if size - file.seek(0, os.SEEK_END) > SEGMENT:
                _side_by_side(registry, url, file, size, count)
            else:
                _in_one(registry, url, file, digest, size, count)
        except _NoRanges:
            _in_one(registry, url, file, digest, size, count)
        file.flush()
        file.seek(0)
        got = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if got != digest:
            partial.unlink()
            raise RegistryError(f"digest mismatch, file must be downloaded again: want {digest}, got {got}")
        os.fsync(file.fileno())
        os.replace(partial, target)


def bring(registry: Registry, url: str, library: Library, layer: Layer, report: Report) -> None:
    """One blob into the library, unless it is there."""
    status = f"pulling {layer.digest[7:19]}"

    def count(completed: int) -> None:
        report(Progress(status, layer.digest, layer.size, completed))

    if not library.has_blob(layer.digest):
        target = library.root / "blobs" / blob_name(layer.digest)
        fetch(registry, url, target, layer.digest, layer.size, count, lambda: library.has_blob(layer.digest))
    count(layer.size)


def _in_one(registry: Registry, url: str, file: BufferedRandom, digest: str, size: int, count: Count) -> None:
    fruitless = 0
    while (have := file.seek(0, os.SEEK_END)) < size:
        try:
            _append(registry, url, file, have, size, digest, count)
        except httpx.HTTPError as error:
            fruitless = fruitless + 1 if file.seek(0, os.SEEK_END) <= have else 0
            if fruitless == FRUITLESS_TRIES:
                raise RegistryError(f"{digest}: {reason(error)}; pull again to go on from here") from None


def _append(
    registry: Registry, url: str, file: BufferedRandom, have: int, size: int, digest: str, count: Count
) -> None:
    """Append what the registry sends from byte `have` on, or all of it where it knows no ranges."""
    with registry.ask("GET", url, _range(have, None) if have else {"Accept-Encoding": "identity"}) as response:
        if not _is_range(response, url, have):
            have = 0
            file.truncate(0)
        for chunk in response.iter_raw():  # of no fixed size: that would hold back what came before a cut
            have += len(chunk)
            if have > size:
                file.truncate(0)
                raise RegistryError(f"{digest} is longer than the {size} bytes its manifest says")
            file.write(chunk)
            file.flush()
            count(have)
        if have < size:
            raise httpx.ReadError("the registry sent less than the manifest says")


def _side_by_side(registry: Registry, url: str, file: BufferedRandom, size: int, count: Count) -> None:
    """Fetch segments at once and append them in order, so that the file is always a beginning of the whole."""
    have = file.seek(0, os.SEEK_END)
    came, stop = _Counter(have), threading.Event()
    starts = deque(range(have, size, SEGMENT))
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(SIDE_BY_SIDE, thread_name_prefix="gmoe-fetch") as pool:
        try:
            while starts or waiting:
                while starts and len(waiting) < SIDE_BY_SIDE:
                    start = starts.popleft()
                    end = min(start + SEGMENT, size)
                    waiting.append(pool.submit(_segment, registry, url, start, end, came, stop))
                try:
                    file.write(waiting[0].result(timeout=0.2))
                except NotYet:
                    count(came.value)
                    continue
                waiting.popleft()
                file.flush()
                count(came.value)
        finally:
            stop.set()


def _segment(registry: Registry, url: str, start: int, end: int, came: "_Counter", stop: threading.Event) -> bytes:
    """The bytes from `start` to before `end`, however often the connection ends."""
    data, fruitless = bytearray(), 0
    while len(data) < end - start:
        at = start + len(data)
        try:
            with registry.ask("GET", url, _range(at, end - 1)) as response:
                if not _is_range(response, url, at):
                    raise _NoRanges
                for chunk in response.iter_raw():
                    data += chunk
                    came.add(len(chunk))
                    if stop.is_set():
                        raise RegistryError("the download was stopped")
        except httpx.HTTPError as error:
            fruitless = fruitless + 1 if start + len(data) <= at else 0
            if fruitless == FRUITLESS_TRIES:
                raise RegistryError(f"{url}: {reason(error)}; pull again to go on from here") from None
            time.sleep(0.05 * fruitless)
    if len(data) > end - start:
        raise RegistryError(f"{url} sent more than the range asked for")
    return bytes(data)


class _Counter:
    """A sum that several threads add to."""

    def __init__(self, value: int):
        self.value = value
        self._door = threading.Lock()

    def add(self, number: int) -> None:
        with self._door:
            self.value += number


def _range(start: int, last: int | None) -> dict[str, str]:
    return {"Range": f"bytes={start}-{'' if last is None else last}", "Accept-Encoding": "identity"}


def _is_range(response: httpx.Response, url: str, start: int) -> bool:
    """Whether it is the part from `start` on; False: it is the whole file."""
    require(response, 200, 206)
    begins = _RANGE.match(response.headers.get("Content-Range", ""))
    if response.status_code == 206 and (begins is None or int(begins[1]) != start):
        raise RegistryError(f"{url} sent another range than the one asked for")
    return response.status_code == 206


@contextmanager
def _claimed(path: Path) -> Iterator[tuple[BufferedRandom, Path]]:
    """A partial file open for appending, which no other process has; waits for the one that has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _lies_at(path, file):
                yield file, path
                return


def _lies_at(path: Path, file: BufferedRandom) -> bool:
    """Whether this open file has that name: who held it may have given it another or removed it, at any moment."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
