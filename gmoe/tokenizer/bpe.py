"""Byte-level BPE: `tokenizers` cuts the text, and the pieces are merged over the file's own tokens and merges."""

import re
from collections.abc import Callable, Sequence

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from gmoe.gguf.file import Strings
from gmoe.kernels import bpe
from gmoe.tokenizer.pretokenize import LINES, Pretokenizer

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
        # A tokenizer and not its pre-tokenizer alone, which would stop all other threads while it cuts.
        self._cutter = tokenizers.Tokenizer(models.WordLevel({"": 0}, unk_token=""))
        split = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in pre.patterns]
        self._cutter.pre_tokenizer = pre_tokenizers.Sequence(split)
        self._raw, self._whole_newlines = pre.raw, pre.whole_newlines
        self._bytes = byte_of_character()
        self._characters = {byte: character for character, byte in self._bytes.items()}
        self._text = text

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        return self._of_lines(text.replace(" ", SPACE)) if self._raw else self._model.encode(self._pieces(text))

    def _of_lines(self, text: str) -> list[int]:
        ids: list[int] = []
        for line in re.findall(LINES, text):
            newlines = self._model.find(line) if self._whole_newlines and line[0] == "\n" else -1
            ids += self._model.encode([line]) if newlines < 0 else [newlines]
        return ids

    def _pieces(self, text: str) -> list[str]:
        """The text as the patterns cut it, each byte spelled as its stand-in."""
        spans = self._cutter.encode_batch([text], add_special_tokens=False)[0].offsets  # in characters
        data = text.encode()
        spelled = data.decode("latin-1").translate(self._characters)
        if len(spelled) == len(text):
            return [spelled[begin:end] for begin, end in spans]
        begins = np.flatnonzero(np.frombuffer(data, np.uint8) & 0xC0 != 0x80).tolist()
        begins.append(len(data))
        return [spelled[begins[begin] : begins[end]] for begin, end in spans]

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
