"""Lookup: what may come next in a text because it came before behind the same tokens (prompt lookup; 2304.04487)."""

from collections.abc import Sequence as Ids
from typing import NamedTuple

import numpy as np

SHORTEST = 3  # tokens that must be the same
LONGEST = 32  # of which more are not counted
_BITS = 21  # of a token's id in a key


class Guess(NamedTuple):
    """`ids` may follow, because they followed the last `same` tokens before."""

    ids: tuple[int, ...] = ()
    same: int = 0


class Lookup:
    """The places of one growing text, by the tokens before them."""

    def __init__(self) -> None:
        self._behind: dict[int, int] = {}  # the last place behind SHORTEST tokens
        self._end = SHORTEST - 1  # the last place that was looked at

    def guess(self, ids: Ids[int], most: int) -> Guess:
        """What followed the end of `ids`, of which nothing but the end is new, where it last stood: up to `most`.

        A text that repeats itself is taken to go on doing so: the guess may be longer than what is there.
        """
        place = self._find(ids)
        if place is None:
            return Guess()
        same, n = SHORTEST, len(ids)
        while same < min(LONGEST, place) and ids[place - 1 - same] == ids[n - 1 - same]:
            same += 1
        period = n - place
        return Guess(tuple(ids[place + i % period] for i in range(most)), same)

    def _find(self, ids: Ids[int]) -> int | None:
        """Where the last tokens stood before; learns the places that are new."""
        n = len(ids)
        if n < SHORTEST:
            return None
        new = np.array(ids[self._end + 1 - SHORTEST :], dtype=np.int64)
        *before, last = (new[:-2] << 2 * _BITS | new[1:-1] << _BITS | new[2:]).tolist()
        self._behind.update(zip(before, range(self._end + 1, n), strict=True))
        self._end = n - 1
        return self._behind.get(last)
