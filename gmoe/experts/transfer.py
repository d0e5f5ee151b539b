"""Transfer: reads experts past the page cache, several at a time; what is waited for goes before what is foretold."""

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Collection, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.slots import PAGE, Extent, Read

IN_FLIGHT = 4


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

    def submit(self, id: ExpertId, slot: int, extent: Extent, into: NDArray[np.uint8], urgent: bool) -> Ticket:
        """Begin reading; urgent ones go before all others."""

    def promote(self, ticket: Ticket) -> None:
        """Somebody waits for it now."""

    def cancel(self, ticket: Ticket) -> bool:
        """Take back what has not begun; False: too late, it will become final by itself."""

    def wait(self, tickets: Collection[Ticket]) -> list[Ticket]:
        """Those that are final, one at least, in order of arrival where that is known."""

    def close(self) -> None:
        """End; what was queued is cancelled."""


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
        except OSError:
            self.direct = -1

    def read(self, read: Read, into: NDArray[np.uint8]) -> None:
        """Fill `into`; raises `TransferError`."""
        got = 0
        while got < read.needed:
            direct = self.direct >= 0 and got % PAGE == 0
            try:
                n = os.preadv(self.direct if direct else self.plain, [into[got:].data], read.offset + got)
            except OSError as error:
                if direct and error.errno == errno.EINVAL:
                    self.direct = -1
                    continue
                raise TransferError(f"{self.path} cannot be read: {error.strerror}") from None
            if n == 0:
                raise TransferError(f"{self.path} ends at byte {read.offset + got}: it was cut off while in use")
            got += n
        if self.direct < 0:
            os.posix_fadvise(self.plain, read.offset, read.nbytes, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        for fd in {self.plain, self.direct} - {-1}:
            os.close(fd)


class ThreadTransfer:
    """A small pool of threads over two queues; the reads of one expert may run side by side."""

    def __init__(self, paths: Sequence[Path], in_flight: int = IN_FLIGHT):
        self.files = [_File(path) for path in paths]
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
        jobs = [(ticket, read, into[read.at : read.at + read.nbytes]) for read in extent.reads]
        with self._change:
            (self._urgent if urgent else self._later).extend(jobs)
            self._change.notify_all()
        return ticket

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
            with self._change:
                ticket.parts -= 1
                ticket.error = ticket.error or error
                if not ticket.parts:
                    ticket.at = time.perf_counter()
                    ticket.state = State.FAILED if ticket.error else State.DONE
                    self._change.notify_all()


def open_transfer(paths: Sequence[Path]) -> Transfer:
    """The reader for the parts of a model."""
    return ThreadTransfer(paths)
