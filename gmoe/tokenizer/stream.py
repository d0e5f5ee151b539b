"""Detokenizer: ids in, one by one; whole UTF-8 text out."""

import codecs

from gmoe.tokenizer.tokenizer import Tokenizer


class Detokenizer:
    """Holds back the bytes of an unfinished character; `flush` gives U+FFFD for a broken tail."""

    def __init__(self, tokenizer: Tokenizer, after_prompt: bool = True):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.starts_with_space and not after_prompt

    def push(self, id: int) -> str:
        """The text that this token completes, maybe none."""
        text = self._decoder.decode(self._tokenizer.token_bytes(id))
        if self._strip and text:
            text, self._strip = text.removeprefix(" "), False
        return text

    def flush(self) -> str:
        """What is left at the end."""
        return self._decoder.decode(b"", final=True)
