"""Incremental detokenizing: ids in one by one, whole UTF-8 text out."""

import codecs

from gmoe.tokenizer.tokenizer import Tokenizer


class Detokenizer:
    """What `push` and the last `flush` return, joined, is `tokenizer.decode` of the ids pushed.

    `continues`: the ids go on from a text that is already there, so a first space is the text's own and is kept.
    """

    def __init__(self, tokenizer: Tokenizer, continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._strips_space = tokenizer.space_prefix and not continues
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The text that `id` completes; a character still in parts is held back."""
        piece = self._tokenizer.token_bytes(id)
        if self._strips_space:
            piece = piece.removeprefix(b" ")
            self._strips_space = False
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What is held back: U+FFFD for a character that never was completed, else nothing."""
        return self._decoder.decode(b"", final=True)
