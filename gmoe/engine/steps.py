"""Steps: numbers the requests and says, before each pass, whose rows it has; for traces and the policies' clocks."""

from collections.abc import Callable
from collections.abc import Sequence as Ids
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from gmoe.engine.scheduler import Turn
from gmoe.engine.sequence import Sequence


class Rows(NamedTuple):
    """One pass, row by row; `begins` says that a request is seen for the first time."""

    request: NDArray[np.int32]  # [T]
    phase: NDArray[np.uint8]  # [T], 0 prefill, 1 decode
    position: NDArray[np.int32]  # [T]
    begins: bool
    ways: Ids[bytes]  # of each turn: in which it is computed, as its sequence was told when it was admitted
    counts: Ids[int]  # of each turn: its rows


class Steps:
    """An observer of `Runner`; tells each of `listeners` of every pass before it runs."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[Rows], None]] = []
        self._numbers: WeakKeyDictionary[Sequence, int] = WeakKeyDictionary()
        self._next = 0

    def __call__(self, turns: Ids[Turn]) -> None:
        if not self.listeners:
            return
        begins = False
        for seq, *_ in turns:
            if seq not in self._numbers:
                self._numbers[seq] = self._next
                self._next += 1
                begins = True
        counts = [turn.n_new for turn in turns]
        request = np.repeat(np.array([self._numbers[turn.seq] for turn in turns], np.int32), counts)
        position = np.concatenate([np.arange(seq.n_cached, seq.n_cached + n, dtype=np.int32) for seq, n, _ in turns])
        ends = np.repeat(np.array([turn.seq.n_prompt for turn in turns], np.int32), counts)
        ways = [turn.seq.way for turn in turns]
        rows = Rows(request, (position >= ends).astype(np.uint8), position, begins, ways, counts)
        for tell in self.listeners:
            tell(rows)
