"""Transfer: reads experts, several at a time; what is waited for goes before what is foretold.

Two readers: one past the page cache into slots, and one that announces the slices to the system and uses them where
the page cache has them. `open_transfer` measures both and takes the faster.
"""

import errno
import fcntl
import mmap
import os
import random
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.slots import PAGE, Extent, Read
from gmoe.kernels.cpu_ops import Guard

IN_FLIGHT = 4
WORTH_MEASURING = 256 << 20  # bytes of experts; of less, either reader will do
MEASURED = 0.2  # seconds of reading
CACHED = 0.95  # of a sample of the experts: where the page cache has so many already, nothing needs to be read
SAMPLE = 64  # experts that are asked about
BETTER = 1.5  # so many times faster must the page cache be: what it costs to make room in it is not measured
_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14


class TransferError(OSError):
    """An expert could not be read; the text is one sentence that names the file."""


class State(IntEnum):
    """Of a ticket; those from DONE on are final."""

    QUEUED = 0
    READING = 1
    DONE = 2
    FAILED = 3
    CANCELLED = 4


class Ticket:
    """One expert on its way into a slot; the slot must not be touched before the ticket is final."""

    def __init__(self, id: ExpertId, slot: int, parts: int, urgent: bool):
        self.id = id
        self.slot = slot
        self.urgent = urgent
        self.state = State.QUEUED
        self.error: TransferError | None = None
        self.parts = parts  # reads that are not through
        self.at = 0.0  # by time.perf_counter, when it became DONE or FAILED

    @property
    def final(self) -> bool:
        """Nobody writes into the slot any more."""
        return self.state >= State.DONE


class Transfer(Protocol):
    """Brings experts into slots; every method is called from one thread."""

    def submit(self, id: ExpertId, slot: int, extent: Extent, into: Any, urgent: bool) -> Ticket:
        """Begin reading into a slot as its arena gives it; urgent ones go before all others."""

    def elsewhere(self, extent: Extent) -> Sequence[int] | None:
        """Where the matrices of an expert that has come lie, if it is not in its slot."""

    def promote(self, ticket: Ticket) -> None:
        """Somebody waits for it now."""

    def cancel(self, ticket: Ticket) -> bool:
        """Take back what has not begun; False: too late, it will become final by itself."""

    def wait(self, tickets: Collection[Ticket]) -> list[Ticket]:
        """Those that are final, one at least, in order of arrival where that is known."""

    def check(self) -> None:
        """Raises `TransferError` where experts that had come are gone, as what was computed with them then is."""

    def close(self) -> None:
        """End; what was queued is cancelled."""


def _forget(fd: int, read: Read) -> None:
    """Let the page cache drop what was read, where the system can be asked to."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, read.offset, read.nbytes, os.POSIX_FADV_DONTNEED)


class _File:
    """One part of a model, read directly where the file system lets us, else through the page cache and out again."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.plain = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise TransferError(f"{path} cannot be read: {error.strerror}") from None
        try:
            self.direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except (OSError, AttributeError):  # neither every file system nor every system has it
            self.direct = -1
        self.refused = self.direct < 0
        if hasattr(fcntl, "F_NOCACHE"):  # macOS
            fcntl.fcntl(self.plain, fcntl.F_NOCACHE, 1)

    def read(self, read: Read, into: NDArray[np.uint8]) -> None:
        """Fill `into`; raises `TransferError`."""
        got = 0
        while got < read.needed:
            direct = not self.refused and got % PAGE == 0
            try:
                n = os.preadv(self.direct if direct else self.plain, [into[got:].data], read.offset + got)
            except OSError as error:
                if direct and error.errno == errno.EINVAL:
                    self.refused = True  # other threads may be reading from it: it is closed with the file
                    continue
                raise TransferError(f"{self.path} cannot be read: {error.strerror}") from None
            if n == 0:
                raise TransferError(f"{self.path} ends at byte {read.offset + got}: it was cut off while in use")
            got += n
        if self.refused:
            _forget(self.plain, read)

    def close(self) -> None:
        for fd in {self.plain, self.direct} - {-1}:
            os.close(fd)
        self.plain = self.direct = -1  # the number may be somebody else's now


class _MappedFile:
    """One part of a model in the page cache: nothing is copied, a slice is announced and waited for."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self.fd = os.dup(file.fileno())
        except OSError as error:
            raise TransferError(f"{path} cannot be read: {error.strerror}") from None
        self.map.madvise(mmap.MADV_RANDOM)  # no reading around what is asked for
        self.bytes = np.frombuffer(self.map, dtype=np.uint8)
        self.base = int(self.bytes.ctypes.data)
        self.guard = Guard(self.bytes)

    def announce(self, read: Read) -> None:
        """Let the system begin to read; where it will not, `read` does."""
        with suppress(OSError):
            self.map.madvise(mmap.MADV_WILLNEED, read.offset, read.needed)

    def read(self, read: Read, into: NDArray[np.uint8]) -> None:
        """Wait until it is there; raises `TransferError`."""
        try:
            end = os.fstat(self.fd).st_size
            if read.offset + read.needed > end:
                raise TransferError(f"{self.path} ends at byte {end}: it was cut off while in use")
            self.map.madvise(_POPULATE_READ, read.offset, read.needed)
        except TransferError:
            raise
        except OSError as error:
            if error.errno != errno.EINVAL:  # an older kernel: every page is touched
                raise TransferError(f"{self.path} cannot be read: {error.strerror}") from None
            self.bytes[read.offset : read.offset + read.needed : PAGE].max()

    def close(self) -> None:
        self.guard.close()
        os.close(self.fd)  # the map goes with the last who uses its bytes
        self.fd = -1


class ThreadTransfer:
    """A small pool of threads over two queues; the reads of one expert may run side by side."""

    def __init__(self, paths: Sequence[Path], in_flight: int = IN_FLIGHT, mapped: bool = False):
        self.mapped = mapped
        self.files: Sequence[_File] | Sequence[_MappedFile]
        self.files = [_MappedFile(path) for path in paths] if mapped else [_File(path) for path in paths]
        self.notice = ""  # how the reader was chosen
        self._change = threading.Condition()
        self._urgent: deque[tuple[Ticket, Read, NDArray[np.uint8]]] = deque()
        self._later: deque[tuple[Ticket, Read, NDArray[np.uint8]]] = deque()
        self._arrived: list[Ticket] = []
        self._open = True
        self._threads = [
            threading.Thread(target=self._work, name=f"gmoe-read-{n}", daemon=True) for n in range(in_flight)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, id: ExpertId, slot: int, extent: Extent, into: NDArray[np.uint8], urgent: bool) -> Ticket:
        ticket = Ticket(id, slot, len(extent.reads), urgent)
        for read in extent.reads if self.mapped else ():
            self._announce(read)
        jobs = [(ticket, read, into[read.at : read.at + read.nbytes]) for read in extent.reads]
        with self._change:
            (self._urgent if urgent else self._later).extend(jobs)
            self._change.notify_all()
        return ticket

    def elsewhere(self, extent: Extent) -> Sequence[int] | None:
        return [self._address(extent, start) for start in extent.starts] if self.mapped else None

    def check(self) -> None:
        """Raises `TransferError` where what was used has been cut off under it."""
        for file in self.files:
            if isinstance(file, _MappedFile) and file.guard.lost:
                raise TransferError(f"{file.path} was cut off while in use")

    def drop(self, extent: Extent) -> None:
        """Let the page cache forget an expert that nobody uses."""
        for read in extent.reads:
            file = self.files[read.part]
            if isinstance(file, _MappedFile):
                file.map.madvise(mmap.MADV_DONTNEED, read.offset, read.needed)
            fd = file.fd if isinstance(file, _MappedFile) else file.plain
            _forget(fd, read)

    def _announce(self, read: Read) -> None:
        file = self.files[read.part]
        if isinstance(file, _MappedFile):
            file.announce(read)

    def _address(self, extent: Extent, start: int) -> int:
        read = next(read for read in extent.reads if read.at <= start < read.at + read.nbytes)
        file = self.files[read.part]
        assert isinstance(file, _MappedFile)
        return file.base + read.offset + start - read.at

    def promote(self, ticket: Ticket) -> None:
        with self._change:
            if not ticket.urgent:
                ticket.urgent = True
                mine = [job for job in self._later if job[0] is ticket]
                self._later = deque(job for job in self._later if job[0] is not ticket)
                self._urgent.extend(mine)

    def cancel(self, ticket: Ticket) -> bool:
        with self._change:
            if ticket.state is not State.QUEUED:
                return False
            ticket.state = State.CANCELLED
            self._later = deque(job for job in self._later if job[0] is not ticket)
            self._urgent = deque(job for job in self._urgent if job[0] is not ticket)
            return True

    def wait(self, tickets: Collection[Ticket]) -> list[Ticket]:
        with self._change:
            while not (final := [ticket for ticket in tickets if ticket.final]):
                self._change.wait()
            return final

    def close(self) -> None:
        with self._change:
            if not self._open:
                return
            self._open = False
            for ticket, _, _ in (*self._urgent, *self._later):
                ticket.state = State.CANCELLED
            self._urgent.clear()
            self._later.clear()
            self._change.notify_all()
        for thread in self._threads:
            thread.join()
        for file in self.files:
            file.close()

    def _work(self) -> None:
        while True:
            with self._change:
                while self._open and not (self._urgent or self._later):
                    self._change.wait()
                if not self._open:
                    return
                ticket, read, into = (self._urgent or self._later).popleft()
                ticket.state = State.READING
            error = None
            try:
                self.files[read.part].read(read, into)
            except TransferError as failure:
                error = failure
            except Exception as failure:  # without a reader everybody would wait for ever
                error = TransferError(f"{self.files[read.part].path} cannot be read: {failure}")
            with self._change:
                ticket.parts -= 1
                ticket.error = ticket.error or error
                if not ticket.parts:
                    ticket.at = time.perf_counter()
                    ticket.state = State.FAILED if ticket.error else State.DONE
                    self._change.notify_all()


def open_transfer(paths: Sequence[Path], extents: Collection[Extent] = (), reader: str = "auto") -> ThreadTransfer:
    """The reader for the parts of a model whose experts are `extents`: "direct", "mapped", or the faster of them."""
    if reader != "auto" or sum(extent.nbytes for extent in extents) < WORTH_MEASURING:
        return ThreadTransfer(paths, mapped=reader == "mapped")
    here = _cached(paths, extents)
    if here >= CACHED:
        transfer = ThreadTransfer(paths, mapped=True)
        transfer.notice = f"experts are used out of the page cache, which has {here:.0%} of them"
        return transfer
    direct, mapped = _bandwidths(paths, extents)
    transfer = ThreadTransfer(paths, mapped=mapped > BETTER * direct)
    chosen = "through the page cache" if transfer.mapped else "past the page cache"
    rates = f"measured {direct / 1e6:.0f} MB/s directly, {mapped / 1e6:.0f} MB/s through it"
    transfer.notice = f"experts are read {chosen}: {rates}"
    return transfer


def _cached(paths: Sequence[Path], extents: Collection[Extent]) -> float:
    """The part of a sample of the experts that the page cache has; 0 where the system does not say."""
    flag = getattr(os, "RWF_NOWAIT", None)  # read what is there, and nothing else
    some = random.Random(1).sample(list(extents), min(SAMPLE, len(extents)))
    if flag is None or not some:
        return 0.0
    found: list[bool] = []
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        for read in (read for extent in some for read in extent.reads):
            try:
                found.append(os.preadv(fds[read.part], [bytearray(1)], read.offset + read.needed // 2, flag) > 0)
            except OSError:
                found.append(False)
    finally:
        for fd in fds:
            os.close(fd)
    return sum(found) / len(found)


def _bandwidths(paths: Sequence[Path], extents: Collection[Extent]) -> tuple[float, float]:
    """Bytes a second of both readers, in turn, of experts taken at random that the page cache has not; medians."""
    readers = [ThreadTransfer(paths, mapped=mapped) for mapped in (False, True)]
    choose, every = random.Random(0), list(extents)
    slots = [np.frombuffer(mmap.mmap(-1, max(e.nbytes for e in every)), dtype=np.uint8) for _ in range(IN_FLIGHT)]
    rates: list[list[float]] = [[], []]
    try:
        end = time.perf_counter() + MEASURED
        while len(rates[1]) < 3 or time.perf_counter() < end:
            for reader, found in zip(readers, rates, strict=True):
                found.append(_burst(reader, choose.sample(every, min(len(every), len(slots))), slots))
    finally:
        for reader in readers:
            reader.close()
    return median(rates[0]), median(rates[1])


def _burst(transfer: ThreadTransfer, extents: Sequence[Extent], slots: Sequence[NDArray[np.uint8]]) -> float:
    """Bytes a second of these experts read together."""
    for extent in extents:
        transfer.drop(extent)
    began, nobody = time.perf_counter(), ExpertId(-1, -1)
    flying = [transfer.submit(nobody, 0, e, into, True) for e, into in zip(extents, slots, strict=False)]
    while waiting := [ticket for ticket in flying if not ticket.final]:
        transfer.wait(waiting)
    seconds = time.perf_counter() - began
    for extent in extents:
        transfer.drop(extent)
    return sum(read.needed for extent in extents for read in extent.reads) / seconds
