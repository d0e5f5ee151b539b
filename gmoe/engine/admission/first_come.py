"""First come, first served."""

from collections.abc import Sequence as Ids

from gmoe.engine.sequence import Sequence


class Policy:
    """The oldest."""

    def choose(self, waiting: Ids[Sequence], running: Ids[Sequence], now: float) -> Sequence | None:
        return waiting[0]

    def stepped(self, tokens: int, seconds: float) -> None:
        pass

    def ended(self, seq: Sequence) -> None:
        pass
