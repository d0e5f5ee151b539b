"""Nobody is admitted who would make a running request newly miss its latency target (eMoE, arXiv 2503.06823)."""

from collections.abc import Sequence as Ids

from gmoe.engine.sequence import Sequence

FORGET = 0.98  # how much of the past counts at the next step
EXPECTED = 128.0  # tokens of an answer before any has ended


class Policy:
    """The tightest target first; requests without one after those, in the order in which they came.

    A step is taken to cost `a + b * tokens` seconds, fitted to the steps that were; loads of experts are in `a`.
    """

    def __init__(self) -> None:
        self._sums = [0.0] * 5  # weight, tokens, seconds, tokens squared, tokens times seconds
        self._expected = EXPECTED

    def choose(self, waiting: Ids[Sequence], running: Ids[Sequence], now: float) -> Sequence | None:
        ordered = sorted(waiting, key=lambda seq: self._slack(seq, len(running), now))
        if not running:
            return ordered[0]
        return next((seq for seq in ordered if not self._harms(seq, running, now)), None)

    def stepped(self, tokens: int, seconds: float) -> None:
        new = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        self._sums = [FORGET * old + term for old, term in zip(self._sums, new, strict=True)]

    def ended(self, seq: Sequence) -> None:
        if seq.finish_reason != "abort":
            self._expected = 0.9 * self._expected + 0.1 * len(seq.generated)

    def cost(self) -> tuple[float, float]:
        """(a, b): seconds a step, and a token more in it; nothing is known before the first step."""
        weight, tokens, seconds, squares, products = self._sums
        if not weight:
            return 0.0, 0.0
        spread = weight * squares - tokens * tokens
        b = max(0.0, (weight * products - tokens * seconds) / spread) if spread > 1e-6 * squares else 0.0
        return max(0.0, (seconds - b * tokens) / weight), b

    def _left(self, seq: Sequence) -> float:
        """Tokens that its answer still needs, as far as can be told."""
        most = seq.params.max_tokens or float("inf")
        return max(1.0, min(most, self._expected) - len(seq.generated))

    def _slack(self, seq: Sequence, n_running: int, now: float) -> float:
        if seq.target_seconds is None:
            return float("inf")
        a, b = self.cost()
        own = b * seq.pending + self._left(seq) * (a + b * (n_running + 1))
        return seq.arrived + seq.target_seconds - now - own

    def _harms(self, new: Sequence, running: Ids[Sequence], now: float) -> bool:
        a, b = self.cost()
        prompts = sum(seq.pending for seq in running if seq.pending > 1)
        for seq in running:
            if seq.target_seconds is None:
                continue
            left = self._left(seq)
            without = now + b * prompts + left * (a + b * len(running))
            with_it = without + b * (new.pending + min(left, self._left(new)))
            if without <= seq.arrived + seq.target_seconds < with_it:
                return True
        return False
