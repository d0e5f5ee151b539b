"""Byte-level BPE: a `tokenizers` model built from a GGUF file's tokens and merges."""

import re
from collections.abc import Sequence

import tokenizers
from tokenizers import models, pre_tokenizers

from gmoe.gguf.file import UnsupportedModel
from gmoe.tokenizer.pretokenize import Pretokenizer

SPACE = "\u2581"


def byte_of_character() -> dict[str, int]:
    """The printable stand-in of each byte in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in set(plain)]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


class Bpe:
    """Text without special tokens <-> ids."""

    def __init__(self, tokens: Sequence[str], merges: Sequence[str], pre: Pretokenizer, file: str):
        vocab = {token: id for id, token in enumerate(tokens)}
        pairs = [(m[:at], m[at + 1 :]) for m in merges if (at := m.find(" ", 1)) > 0]
        pairs = [(a, b) for a, b in pairs if a in vocab and b in vocab and a + b in vocab]
        try:
            model = models.BPE(vocab, pairs, ignore_merges=pre.ignore_merges, byte_fallback=pre.raw)
            self._model = tokenizers.Tokenizer(model)
        except Exception as error:
            raise UnsupportedModel(
                file, "tokenizer.ggml.merges", f"no BPE tokenizer can be made of them ({error})"
            ) from None
        split = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in pre.patterns]
        level = [] if pre.raw else [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        self._model.pre_tokenizer = pre_tokenizers.Sequence([*split, *level])
        self._newlines = {t: id for t, id in vocab.items() if not t.strip("\n")} if pre.raw else {}
        self._raw = pre.raw
        self._bytes = byte_of_character()
        self._tokens = tokens

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        ids: list[int] = []
        for part in re.findall(r"[^\n]+|\n+", text.replace(" ", SPACE)) if self._raw else [text]:
            whole = self._newlines.get(part)
            ids += self._model.encode(part, add_special_tokens=False).ids if whole is None else [whole]
        return ids

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for; a token outside the byte alphabet stands for its own text."""
        token = self._tokens[id]
        if self._raw:
            is_byte = re.fullmatch("<0x[0-9A-F]{2}>", token) is not None
            return bytes([int(token[3:5], 16)]) if is_byte else token.replace(SPACE, " ").encode()
        if all(c in self._bytes for c in token):
            return bytes(self._bytes[c] for c in token)
        return token.encode()
