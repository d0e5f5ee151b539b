"""Speculation: how many guessed tokens to compute with the next one, by what steps take and guesses come to here.

Speculative decoding (2211.17192) with guesses that cost nothing. A row's bits do not depend on those beside it, and
each token is drawn from its own row in turn, so that answers are the same; what changes is when they come.
"""

from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from gmoe.engine.lookup import Guess, Lookup
from gmoe.engine.sequence import Sequence

ROWS = (4, 8, 16, 32)  # of a step with guesses: the next token's, and theirs
MARGIN = 1.2  # by how much faster a step must promise to be
FADE = 0.97  # of what was seen of guesses, a token later
LATEST = 0.25  # share of the last step's time in what a step is taken to last
FORGET = 0.999  # of what a step is taken to last, each time that it would not have paid: it is tried again some day
SAME = (3, 6, 12)  # guesses are as good as these many tokens before them are the same ...
FIRST = (0.4, 0.6, 0.8)  # ... and, as long as nothing is known, as likely right


@dataclass
class _Chance:
    """How likely a guessed token is right behind right ones: those that were, of those that could be seen."""

    right: float
    seen: float = 1.0

    def learn(self, right: int, wrong: int) -> None:
        """The latest counts most."""
        faded = FADE ** (right + wrong)
        self.right = faded * self.right + right
        self.seen = faded * self.seen + right + wrong

    def tokens(self, rows: int) -> float:
        """How many tokens a step of so many rows may bring."""
        return (1 - self.all_right(rows + 1)) / (1 - self.all_right(2))

    def all_right(self, rows: int) -> float:
        """How likely all guesses of so many rows are right."""
        return float((self.right / (self.seen + 1)) ** (rows - 1))


@dataclass
class _Text:
    """What is known of a sequence's guesses."""

    lookup: Lookup = field(default_factory=Lookup)
    chances: list[_Chance] = field(default_factory=lambda: [_Chance(first) for first in FIRST])
    guess: Guess = Guess()  # of what follows now


class Speculation:
    """Guesses for a sequence that runs alone, where `may` says that it may be done.

    A guess is looked at whether it is computed or not, so that it is known how good they are before any costs time.
    `only_forward`: behind a wrong one the right ones are computed once more, from a state before them.
    """

    def __init__(self, may: Callable[[], bool] = lambda: True, only_forward: bool = False):
        self.drafted = self.accepted = 0  # tokens
        self._may, self._only_forward = may, only_forward
        self._texts: WeakKeyDictionary[Sequence, _Text] = WeakKeyDictionary()
        self._seconds: dict[int, float] = {}  # of a step, by its rows
        self._tried: set[int] = set()

    def draft(self, seq: Sequence, most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may follow; none where to compute them with the next one does not pay."""
        if not self._may():
            return ()
        text = self._texts.get(seq) or self._texts.setdefault(seq, _Text())
        text.guess = guess = text.lookup.guess(seq.ids, ROWS[-1])
        one = self._seconds.get(1)
        if not guess.ids or one is None:
            return ()
        known = sum(rows in self._seconds for rows in ROWS)
        fits = [rows for rows in ROWS[: known + 1] if rows <= most + 1]
        gains = {rows: self._gain(text.chances[_kind(guess)], rows) for rows in fits}
        rows = max(fits, key=gains.__getitem__, default=1)
        if rows == 1 or gains[rows] < MARGIN / one:
            self._seconds.update({n: seconds * FORGET for n, seconds in self._seconds.items() if n > 1})
            return ()
        return guess.ids[: rows - 1]

    def computed(self, rows: int, seconds: float) -> None:
        """A step with so many rows of one sequence was done; the first one builds what others find."""
        if rows in self._tried:
            before = self._seconds.get(rows, seconds)
            self._seconds[rows] = before + LATEST * (seconds - before)
        self._tried.add(rows)

    def heard(self, seq: Sequence, new: Ids[int], draft: Ids[int]) -> None:
        """Tokens have followed in a step in which `draft` was computed on trust."""
        accepted = _same(new, draft)
        self.drafted, self.accepted = self.drafted + len(draft), self.accepted + accepted
        seq.n_drafted, seq.n_accepted = seq.n_drafted + len(draft), seq.n_accepted + accepted
        text = self._texts.get(seq)
        if text is None or not text.guess.ids:
            return
        right = _same(new, text.guess.ids)
        text.chances[_kind(text.guess)].learn(right, int(right < min(len(new), len(text.guess.ids))))
        text.guess = Guess()

    def _gain(self, chance: _Chance, rows: int) -> float:
        """Tokens a second that a step of so many rows promises."""
        tokens, seconds = chance.tokens(rows), self._lasts(rows)
        if self._only_forward:
            again = next(n for n in ROWS if n >= min(tokens + 1, rows))
            seconds += (1 - chance.all_right(rows)) * (self._lasts(again) - self._lasts(1))
        return tokens / seconds

    def _lasts(self, rows: int) -> float:
        """What a step is taken to last; of a number of rows that has not been, what would be good."""
        known = max(n for n in (1, *ROWS) if n <= rows and n in self._seconds)
        return self._seconds[known] * (rows / known) ** 0.5


def _kind(guess: Guess) -> int:
    return sum(guess.same >= same for same in SAME) - 1


def _same(new: Ids[int], guessed: Ids[int]) -> int:
    """How many tokens both begin with."""
    n = min(len(new), len(guessed))
    return next((i for i in range(n) if new[i] != guessed[i]), n)
