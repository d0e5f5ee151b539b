"""Drafts by somebody who knows the answers, with a mistake here and there."""

import random
from collections.abc import Sequence as Ids

from gmoe.engine.sequence import Sequence
from gmoe.engine.speculation import Speculation


class Foreseen(Speculation):
    """Of the first of `answers` that begins as a sequence does; whether it pays is not asked."""

    def __init__(self, answers: Ids[Ids[int]], seed: int = 0):
        super().__init__()
        self.answers, self.random = answers, random.Random(seed)

    def draft(self, seq: Sequence, most: int) -> tuple[int, ...]:
        answer = next((list(ids) for ids in self.answers if list(ids[: len(seq.ids)]) == seq.ids), [])
        draft = answer[len(seq.ids) :][: min(most, self.random.choice([0, 1, 3, 12, 20]))]
        if draft and self.random.random() < 0.6:
            draft[self.random.randrange(len(draft))] ^= 1
        return tuple(draft)
