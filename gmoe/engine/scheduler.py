"""Scheduler: continuous batching; who computes how many tokens in the next step."""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from gmoe.engine.block_manager import BlockManager
from gmoe.engine.sequence import Sequence, Status
from gmoe.engine.waiting import Admission, load


class Turn(NamedTuple):
    """`n_new` tokens of `seq` from `seq.n_cached` on, the last of which are a `draft`: it may not have them."""

    seq: Sequence
    n_new: int
    draft: tuple[int, ...] = ()

    @property
    def is_last(self) -> bool:
        """Whether nothing of the sequence is left to compute behind it."""
        return self.n_new - len(self.draft) == self.seq.pending


class Scheduler:
    """Every decode has its token in every step; prompts share what these leave of `chunk` tokens, at least one.

    `admission` says who of those that wait runs next. A prompt whose beginning a running one is just computing waits
    until it can be taken from there. `clock` gives seconds.
    """

    def __init__(
        self,
        blocks: BlockManager,
        max_sequences: int,
        chunk: int,
        admission: Admission | None = None,
        clock: Callable[[], float] = time.monotonic,
        way: Callable[[], bytes] = lambda: b"",
    ):
        self.way = way  # of computing, which those begin with that are admitted now
        self.admission = admission or load("first_come")
        self.clock = clock
        self.blocks = blocks
        self.max_sequences = max_sequences
        self.chunk = chunk
        self.preemptions = 0
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # the oldest first

    def add(self, seq: Sequence) -> None:
        """Queue a sequence."""
        seq.arrived = self.clock()
        self.waiting.append(seq)

    def remove(self, seq: Sequence) -> None:
        """Forget a sequence and free its blocks."""
        if seq in self.running:
            self.running.remove(seq)
        if seq in self.waiting:
            self.waiting.remove(seq)
        if seq.status is not Status.FINISHED:
            self.admission.ended(seq)
        seq.status = Status.FINISHED
        self.blocks.release(seq)

    def schedule(self) -> list[Turn]:
        """The next step's turns; empty only where there is nothing to do, if one sequence alone always has room."""
        self._admit()
        turns: list[Turn] = []
        for seq in [seq for seq in self.running if seq.pending == 1]:
            self._plan(seq, 1, turns)
        left = max(1, self.chunk - len(turns))
        for seq in [seq for seq in self.running if seq.pending > 1]:
            if left:
                left -= self._plan(seq, min(seq.pending, left), turns)
        return turns

    def make_room(self, seq: Sequence, length: int, keep: list[Sequence]) -> bool:
        """Grow `seq`, if need be by sending the youngest others back to the queue, but none of `keep`."""
        while not self.blocks.grow(seq, length):
            victim = next((other for other in reversed(self.running) if other is not seq and other not in keep), None)
            if victim is None:
                return False
            self._preempt(victim)
        return True

    def _admit(self) -> None:
        """Let those that wait run, as long as they find room for all they have to compute."""
        while len(self.running) < self.max_sequences:
            seq = self._next()
            if seq is None:
                return
            if not seq.admitted:
                seq.way = self.way()
            if seq.reuse_prefix:
                self.blocks.reuse(seq)
            promised = sum(self.blocks.missing(other, len(other.ids)) for other in self.running)
            if self.running and self.blocks.missing(seq, len(seq.ids)) + promised > self.blocks.n_free:
                self.blocks.release(seq)
                return
            self.waiting.remove(seq)
            self.running.append(seq)
            seq.status, seq.admitted = Status.RUNNING, True

    def _next(self) -> Sequence | None:
        """Who should run next; None: nobody now."""
        if self.waiting and self.waiting[0].admitted:
            return self.waiting[0]
        ready = [seq for seq in self.waiting if not self._is_being_computed(seq)]
        if not ready:
            return None
        chosen = self.admission.choose(ready, self.running, self.clock())
        return chosen if chosen or self.running else ready[0]

    def _is_being_computed(self, seq: Sequence) -> bool:
        """Whether a running prompt has whole blocks of this one's beginning still to compute."""
        size = self.blocks.block_size
        if not seq.reuse_prefix or len(seq.ids) <= size:
            return False
        for other in self.running:
            end = (other.n_cached // size + 1) * size  # of the block that it computes now
            if other.pending > 1 and end <= min(len(other.ids), len(seq.ids) - 1) and other.ids[:end] == seq.ids[:end]:
                return True
        return False

    def _plan(self, seq: Sequence, count: int, turns: list[Turn]) -> int:
        """Add the turn if `seq` still runs and has room; the tokens it takes."""
        if seq.status is not Status.RUNNING:  # an earlier turn of this step has sent it back
            return 0
        keep = self.running[: self.running.index(seq)] + [turn.seq for turn in turns]
        if not self.make_room(seq, seq.n_cached + count, keep):
            return 0
        turns.append(Turn(seq, count))
        return count

    def _preempt(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self.blocks.release(seq)
        self.waiting.appendleft(seq)
        seq.status = Status.WAITING
        self.preemptions += 1
