"""StopMatcher: finds stop texts across the borders of tokens, and holds back what may become one."""

from collections.abc import Sequence


class StopMatcher:
    """`push` text as it comes; once `stopped`, nothing after the stop text is given out.

    `found` is that stop text: the one that begins first, of those that begin there the longest.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop text was there."""
        return self.found is not None

    def push(self, text: str) -> str:
        """What may be shown now."""
        self._held += text
        found = [(at, -len(stop), stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, _, self.found = min(found)
            shown, self._held = self._held[:at], ""
            return shown
        keep = max((n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """What was held back and became no stop text."""
        shown, self._held = self._held, ""
        return shown
