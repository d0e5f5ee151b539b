"""A transfer whose reads come when a random number says so: in any order, late, or not at all."""

import random
from collections.abc import Collection

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.slots import Extent
from gmoe.experts.transfer import State, Ticket, TransferError


class ScriptedTransfer:
    """Reads from `parts`, the bytes of the files. A slot holds garbage until its ticket is final."""

    def __init__(self, parts: list[np.ndarray], seed: int = 0, errors: float = 0.0):
        self.parts = parts
        self.random = random.Random(seed)
        self.errors = errors  # the chance that a read fails
        self.flying: dict[Ticket, tuple[Extent, np.ndarray]] = {}
        self.closed = False
        self.notice, self.mapped = "", False
        self.most = 0

    def submit(self, id: ExpertId, slot: int, extent: Extent, into: np.ndarray, urgent: bool) -> Ticket:
        assert not self.closed and into.ctypes.data % 4096 == 0
        into[:] = 0x7F
        ticket = Ticket(id, slot, 1, urgent)
        self.flying[ticket] = extent, into
        self.most = max(self.most, len(self.flying))
        return ticket

    def elsewhere(self, extent: Extent) -> None:
        return None

    def promote(self, ticket: Ticket) -> None:
        ticket.urgent = True

    def check(self) -> None:
        pass

    def cancel(self, ticket: Ticket) -> bool:
        if ticket.final or self.random.random() < 0.5:
            return False  # too late: it has begun
        ticket.state = State.CANCELLED
        del self.flying[ticket]
        return True

    def wait(self, tickets: Collection[Ticket]) -> list[Ticket]:
        assert tickets, "a wait that cannot end"
        while not (final := [ticket for ticket in tickets if ticket.final]):
            self.deliver(self.random.choice(list(self.flying)))
        if self.random.random() < 0.3:
            final = final[:1]
        return final

    def deliver(self, ticket: Ticket) -> None:
        extent, into = self.flying.pop(ticket)
        if self.random.random() < self.errors:
            ticket.error = TransferError("the disk is on fire")
            ticket.state = State.FAILED
            return
        for read in extent.reads:
            data = self.parts[read.part][read.offset : read.offset + read.nbytes]
            assert len(data) >= read.needed
            into[read.at : read.at + len(data)] = data
        ticket.state = State.DONE

    def close(self) -> None:
        self.closed = True
