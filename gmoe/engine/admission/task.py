"""Requests of one task run together, so that their experts stay (after eMoE, arXiv 2503.06823)."""

from collections import Counter
from collections.abc import Sequence as Ids
from itertools import pairwise
from weakref import WeakKeyDictionary

from gmoe.engine.sequence import Sequence

PATIENCE = 8  # how many may be preferred to one that waits
ALIKE = 0.25  # shared pairs of neighbouring tokens, over all pairs, from which on two prompts are of one task
SEEN = 256  # tokens of a prompt's beginning that are compared
REMEMBERED = 64  # groups of prompts without a named task


class Policy:
    """Prefers the oldest whose task runs or ran last; a task is what the request names, else prompts that are alike."""

    def __init__(self) -> None:
        self._tasks: WeakKeyDictionary[Sequence, str] = WeakKeyDictionary()
        self._overtaken: WeakKeyDictionary[Sequence, int] = WeakKeyDictionary()
        self._groups: dict[str, frozenset[tuple[int, int]]] = {}
        self._n_groups = 0
        self._last = ""

    def choose(self, waiting: Ids[Sequence], running: Ids[Sequence], now: float) -> Sequence | None:
        oldest = waiting[0]
        if self._overtaken.get(oldest, 0) >= PATIENCE:
            self._last = self._task(oldest)
            return oldest
        tasks = Counter([self._last, *(task for seq in running for task in [self._task(seq)] * 2)])
        chosen = max(waiting, key=lambda seq: tasks[self._task(seq)])  # of equals the oldest
        self._last = self._task(chosen)
        for seq in waiting[: waiting.index(chosen)]:
            self._overtaken[seq] = self._overtaken.get(seq, 0) + 1
        return chosen

    def stepped(self, tokens: int, seconds: float) -> None:
        pass

    def ended(self, seq: Sequence) -> None:
        pass

    def _task(self, seq: Sequence) -> str:
        if seq not in self._tasks:
            self._tasks[seq] = f"named {seq.task}" if seq.task is not None else self._alike(seq)
        return self._tasks[seq]

    def _alike(self, seq: Sequence) -> str:
        pairs = frozenset(pairwise(seq.ids[: min(seq.n_prompt, SEEN)]))
        for name, known in self._groups.items():
            if len(pairs & known) >= ALIKE * max(1, len(pairs | known)):
                return name
        self._n_groups += 1
        name = f"group {self._n_groups}"
        self._groups[name] = pairs
        if len(self._groups) > REMEMBERED:
            del self._groups[next(iter(self._groups))]
        return name
