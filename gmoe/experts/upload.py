"""Upload: a Transfer into slots on a device, out of host memory through a small ring of pinned buffers.

What the tier below has is staged and copied beside the device's work; what it has not is fetched there first.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from gmoe.experts.device import Copy, Device
from gmoe.experts.device_slots import DeviceSlot
from gmoe.experts.expert_id import ExpertId
from gmoe.experts.slots import Extent
from gmoe.experts.store import ExpertStore
from gmoe.experts.transfer import State, Ticket, TransferError
from gmoe.kernels.reference import as_tensor

BUFFERS = 4


class _Job:
    """An expert on its way; `event` once its copy has begun, `below` while the tier below reads it."""

    def __init__(self, ticket: Ticket, extent: Extent, into: DeviceSlot):
        self.ticket, self.extent, self.into = ticket, extent, into
        self.event: Copy | None = None
        self.below: Ticket | None = None


class _Buffer:
    """Pinned memory, the copy that reads it, and what was in it: bytes and the seconds to put them there."""

    def __init__(self, bytes: Tensor):
        self.bytes = bytes
        self.event: Copy | None = None
        self.nbytes, self.staged = 0, 0.0


class Upload:
    """Used by one thread. The host waits here only for a buffer or for the tier below, never for the device's work.

    `copied` hears of a copy that is through: its bytes, and the seconds of the link or, if more, of the host.
    """

    notice = ""
    clock = staticmethod(time.perf_counter)

    def __init__(
        self,
        device: Device,
        below: ExpertStore,
        slot_bytes: int,
        copied: Callable[[int, float], None] = lambda nbytes, seconds: None,
        buffers: int = BUFFERS,
    ):
        self.device, self.below, self.copied = device, below, copied
        self.staging_seconds = 0.0
        self._ring = [_Buffer(device.pinned(slot_bytes)) for _ in range(buffers)]
        self._jobs: dict[Ticket, _Job] = {}  # those that are not final
        self._queue: deque[_Job] = deque()  # of them, whose copy has not begun

    def submit(self, id: ExpertId, slot: int, extent: Extent, into: DeviceSlot, urgent: bool) -> Ticket:
        ticket = Ticket(id, slot, 1, urgent)
        job = self._jobs[ticket] = _Job(ticket, extent, into)
        self._insert(job)
        try:
            if not self.below.whole:
                self.below.lookup(id.layer, [id.expert])  # counts it there, and tells the eviction policy
            self._pump()
        except BaseException:
            self._drop(job)
            raise
        return ticket

    def elsewhere(self, extent: Extent) -> Sequence[int] | None:
        return None

    def check(self) -> None:
        self.below.check()

    def promote(self, ticket: Ticket) -> None:
        job = self._jobs.get(ticket)
        if job is None or ticket.urgent:
            return
        ticket.urgent = True
        if job in self._queue:
            self._queue.remove(job)
            self._insert(job)

    def cancel(self, ticket: Ticket) -> bool:
        job = self._jobs.get(ticket)
        if job is None or job.event is not None or job.below is not None:
            return False
        self._queue.remove(job)
        self._end(job, State.CANCELLED)
        return True

    def poll(self) -> None:
        """Copies that have come to their end become DONE, those that wait for a buffer begin."""
        for job in list(self._jobs.values()):
            if job.event is not None and job.event.query():
                self._done(job)
        for buffer in self._ring:
            self._idle(buffer)
        self._pump()

    def wait(self, tickets: Collection[Ticket]) -> list[Ticket]:
        """A copy under way counts as arrived: what is launched afterwards comes after it."""
        while True:
            self._pump()
            final = [ticket for ticket in tickets if ticket.final]
            if final:
                return final
            mine = [self._jobs[ticket] for ticket in tickets]
            copying = [job for job in mine if job.event is not None]
            if copying:
                ended = [job for job in copying if job.event is not None and job.event.query()]
                for job in ended or copying[:1]:
                    self._done(job)
            elif self._reading() and self._free_buffer() is not None:
                self._read()
            elif busy := [buffer.event for buffer in self._ring if buffer.event is not None]:
                busy[0].synchronize()

    def close(self) -> None:
        for job in list(self._jobs.values()):
            self._drop(job)

    def _insert(self, job: _Job) -> None:
        """Behind those as urgent as it is."""
        urgent = sum(other.ticket.urgent for other in self._queue)
        self._queue.insert(urgent if job.ticket.urgent else len(self._queue), job)

    def _reading(self) -> list[_Job]:
        """Those that the tier below reads."""
        return [job for job in self._queue if job.below is not None]

    def _free_buffer(self) -> _Buffer | None:
        """A buffer that no copy reads any more."""
        return next((buffer for buffer in self._ring if self._idle(buffer)), None)

    def _idle(self, buffer: _Buffer) -> bool:
        event = buffer.event
        if event is not None and event.query():
            buffer.event = None
            if (seconds := event.seconds) > 0:
                self.copied(buffer.nbytes, max(seconds, buffer.staged))
        return buffer.event is None

    def _pump(self) -> None:
        """Stage what is at hand while there are buffers; ask the tier below for as many more."""
        for job in list(self._queue):
            buffer = self._free_buffer()
            if buffer is None:
                return
            if self.below.resident(job.ticket.id):
                self._stage(job, buffer)
        if not self.below.whole:
            self._ask()

    def _ask(self) -> None:
        """Let the tier below read what it has not, as much at a time as has slots there."""
        for job in list(self._queue)[: len(self._ring)]:
            layer = job.ticket.id.layer
            if job.below is None and len(self._reading()) < self.below.room(layer):
                if not self.below.resident(job.ticket.id):
                    job.below = self.below.fetch(job.ticket.id, ())

    def _read(self) -> None:
        """Wait for the tier below."""
        jobs = self._reading()
        try:
            self.below.wait([job.below for job in jobs if job.below is not None])
        except TransferError:
            pass  # the job whose read failed says so
        for job in jobs:
            if job.below is not None and job.below.final:
                error, job.below = job.below.error, None
                if error is not None:
                    self._queue.remove(job)
                    job.ticket.error = error
                    self._end(job, State.FAILED)

    def _stage(self, job: _Job, buffer: _Buffer) -> None:
        """Copy an expert that is in host memory into a buffer, and on from there."""
        began = self.clock()
        self._queue.remove(job)
        job.ticket.state, job.below = State.READING, None
        pinned = buffer.bytes
        table, id = self.below.table(job.ticket.id.layer), job.ticket.id
        present = [matrix for matrix in (table.gate, table.up, table.down) if matrix is not None]
        for matrix, read in zip(present, job.extent.reads, strict=True):
            data: Tensor = as_tensor(matrix.data(id.expert)).reshape(-1)
            pinned[read.at : read.at + read.nbytes].copy_(data)
        size = job.extent.nbytes
        try:
            job.event = self.device.upload(job.into.bytes[:size], pinned[:size], job.into.used)
            buffer.event, buffer.nbytes, buffer.staged = job.event, size, self.clock() - began
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            job.ticket.error = TransferError(f"an expert could not be copied to {self.device.torch}: {reason}")
            self._end(job, State.FAILED)
        self.staging_seconds += self.clock() - began

    def _done(self, job: _Job) -> None:
        assert job.event is not None
        self.device.wait(job.event)
        self._end(job, State.DONE)

    def _drop(self, job: _Job) -> None:
        """Take it back, however far it is: nobody writes into its slot any more."""
        if job.event is not None:
            job.event.synchronize()
        if job in self._queue:
            self._queue.remove(job)
        if job.ticket in self._jobs:
            self._end(job, State.CANCELLED)

    def _end(self, job: _Job, state: State) -> None:
        del self._jobs[job.ticket]
        job.ticket.at = time.perf_counter()
        job.ticket.state = state
