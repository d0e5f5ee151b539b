"""Detokenizer: ids in, one by one; whole UTF-8 text out."""

import codecs
from collections.abc import Collection

from gmoe.tokenizer.tokenizer import Tokenizer


class Detokenizer:
    """Holds back the bytes of an unfinished character; `flush` gives U+FFFD for a broken tail.

    Control tokens add no text, but for those whose text is in `spelled`.
    """

    def __init__(self, tokenizer: Tokenizer, after_prompt: bool = True, spelled: Collection[str] = ()):
        self._spelled = frozenset(spelled)
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.starts_with_space and not after_prompt

    def push(self, id: int) -> str:
        """The text that this token completes, maybe none."""
        piece = self._tokenizer.token_bytes(id)
        if not piece and self._tokenizer.text(id) in self._spelled:
            piece = self._tokenizer.text(id).encode()
        text = self._decoder.decode(piece)
        if self._strip and text:
            text, self._strip = text.removeprefix(" "), False
        return text

    def flush(self) -> str:
        """What is left at the end."""
        return self._decoder.decode(b"", final=True)
