"""Turns: who is at work on the cards, threads of several models together; who records a graph there is alone."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Condition, get_ident

PATIENCE = 0.25  # seconds to wait for the others' passes


class Turns:
    """While a graph is recorded no other thread may launch, allocate or wait on a card."""

    def __init__(self, patience: float = PATIENCE):
        self.patience = patience
        self._changed = Condition()
        self._at_work: defaultdict[int, int] = defaultdict(int)  # by thread: how often it has entered
        self._loading: defaultdict[int, int] = defaultdict(int)  # likewise, of those that stay for long
        self._alone: int | None = None  # who records, or waits for the others to leave

    @contextmanager
    def at_work(self, loading: bool = False) -> Iterator[None]:
        """For a pass, or for loading a model; may be entered again inside. Waits while another thread records."""
        me = get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._alone in (None, me) or self._at_work[me] > 0)
            self._at_work[me] += 1
            self._loading[me] += loading
        try:
            yield
        finally:
            with self._changed:
                self._at_work[me] -= 1
                self._loading[me] -= loading
                if not self._at_work[me]:
                    del self._at_work[me], self._loading[me]
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody else is at work, and begins to be before the end; False where they would not leave soon."""
        me = get_ident()
        with self._changed:
            got = self._alone is None and self._left(me)
        try:
            yield got
        finally:
            if got:
                with self._changed:
                    self._alone = None
                    self._changed.notify_all()

    def _left(self, me: int) -> bool:
        """Wait for the others to leave, unless that takes long."""
        self._alone = me
        busy = any(times for thread, times in self._loading.items() if thread != me)

        def nobody() -> bool:
            return all(thread == me for thread, times in self._at_work.items() if times)

        if nobody() or (not busy and self._changed.wait_for(nobody, self.patience)):
            return True
        self._alone = None
        self._changed.notify_all()
        return False


@cache
def turns_of(kind: str) -> Turns:
    """Those of all cards of a kind, which a process shares: torch records one graph at a time, on whatever card."""
    return Turns()
