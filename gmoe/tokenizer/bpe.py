"""Byte-level BPE: `tokenizers` cuts the text, and the pieces are merged over the file's own tokens and merges."""

import re
from collections.abc import Callable, Sequence

import tokenizers
from tokenizers import pre_tokenizers

from gmoe.gguf.file import Strings
from gmoe.kernels import bpe
from gmoe.tokenizer.pretokenize import Pretokenizer

SPACE = "\u2581"


def byte_of_character() -> dict[str, int]:
    """The printable stand-in of each byte in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


class Bpe:
    """Text without special tokens <-> ids; `text` spells an id."""

    def __init__(self, tokens: Sequence[str], merges: Sequence[str], pre: Pretokenizer, text: Callable[[int], str]):
        self._model = bpe.Bpe(_packed(tokens), _packed(merges), whole=pre.ignore_merges, spelled=pre.raw)
        split = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in pre.patterns]
        level = [] if pre.raw else [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        self._cut = pre_tokenizers.Sequence([*split, *level])
        self._raw, self._whole_newlines = pre.raw, pre.whole_newlines
        self._bytes = byte_of_character()
        self._text = text

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        ids: list[int] = []
        for part in re.findall(r"[^\n]+|\n+", text.replace(" ", SPACE)) if self._raw else [text]:
            newlines = self._model.find(part) if self._whole_newlines and part[:1] == "\n" else -1
            pieces = [piece for piece, _ in self._cut.pre_tokenize_str(part)] if newlines < 0 else []
            ids += self._model.encode(pieces) if newlines < 0 else [newlines]
        return ids

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for; a token outside the byte alphabet stands for its own text."""
        token = self._text(id)
        if self._raw:
            return token.replace(SPACE, " ").encode()
        if all(c in self._bytes for c in token):
            return bytes(self._bytes[c] for c in token)
        return token.encode()


def _packed(strings: Sequence[str]) -> bpe.Packed:
    return strings.packed if isinstance(strings, Strings) else bpe.packed(list(strings))
