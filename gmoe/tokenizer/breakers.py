"""Breakers: the tokens at which the repetitions that DRY looks for end."""

from collections.abc import Container, Sequence

from gmoe.tokenizer.tokenizer import Tokenizer


class Breakers(Container[int]):
    """Token ids whose text has one of `marks` in it, as in llama.cpp; of a mark in several tokens the last is one too.

    A control token is such a text as the file spells it. A token is looked at when it is asked for.
    """

    def __init__(self, tokenizer: Tokenizer, marks: Sequence[str]):
        self._tokenizer, self._marks = tokenizer, [mark.encode() for mark in marks]
        ends = [tokenizer.encode(f"a{mark}", add_special=False, parse_special=True)[-1] for mark in marks]
        self._known = dict.fromkeys(ends, True)  # behind "a": no mark begins a word

    def __contains__(self, id: object) -> bool:
        if not isinstance(id, int) or not 0 <= id < self._tokenizer.n_vocab:
            return False
        if id not in self._known:
            text = self._tokenizer.token_bytes(id) or self._tokenizer.text(id).encode()
            self._known[id] = any(mark in text for mark in self._marks)
        return self._known[id]
