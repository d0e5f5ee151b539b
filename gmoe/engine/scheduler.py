"""Scheduler: continuous batching; who computes how many tokens in the next step."""

from collections import deque
from typing import NamedTuple

from gmoe.engine.block_manager import BlockManager
from gmoe.engine.sequence import Sequence


class Turn(NamedTuple):
    """So many `tokens` of `seq` from `seq.n_cached` on."""

    seq: Sequence
    tokens: int


class Scheduler:
    """Decodes come first, then prompts in chunks out of what is left of `chunk` tokens a step."""

    def __init__(self, blocks: BlockManager, max_sequences: int, chunk: int):
        self.blocks = blocks
        self.max_sequences = max_sequences
        self.chunk = chunk
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, seq: Sequence) -> None:
        """Queue a sequence, first come first served."""
        self.waiting.append(seq)

    def remove(self, seq: Sequence) -> None:
        """Forget a sequence and free its blocks."""
        if seq in self.running:
            self.running.remove(seq)
        if seq in self.waiting:
            self.waiting.remove(seq)
        self.blocks.release(seq)

    def schedule(self) -> list[Turn]:
        """The next step's turns; empty only where there is nothing to do."""
        while self.waiting and len(self.running) < self.max_sequences:
            self.running.append(self.waiting.popleft())
        left = self.chunk
        turns: list[Turn] = []
        for seq in sorted(self.running, key=lambda seq: len(seq.ids) - seq.n_cached > 1):  # stable: decodes first
            count = min(len(seq.ids) - seq.n_cached, max(left, 0))
            if seq not in self.running or not count:
                continue
            if not self._room(seq, seq.n_cached + count, [turn.seq for turn in turns]):
                continue
            turns.append(Turn(seq, count))
            left -= count
        return turns

    def _room(self, seq: Sequence, length: int, taken: list[Sequence]) -> bool:
        """Grow `seq`, if need be by sending the youngest other sequence back to the queue."""
        while not self.blocks.grow(seq, length):
            victim = next((other for other in reversed(self.running) if other is not seq and other not in taken), None)
            if victim is None:
                return False
            self.running.remove(victim)
            self.blocks.release(victim)
            self.waiting.appendleft(victim)
        return True
