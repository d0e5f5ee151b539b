"""Byte-level BPE: a `tokenizers` model built from a GGUF file's tokens and merges."""

from collections.abc import Sequence

import tokenizers
from tokenizers import models, pre_tokenizers

from gmoe.gguf.file import UnsupportedModel
from gmoe.tokenizer.pretokenize import Pretokenizer


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
            self._model = tokenizers.Tokenizer(models.BPE(vocab, pairs, ignore_merges=pre.ignore_merges))
        except Exception as error:
            raise UnsupportedModel(
                file, "tokenizer.ggml.merges", f"no BPE tokenizer can be made of them ({error})"
            ) from None
        split = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in pre.patterns]
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._model.pre_tokenizer = pre_tokenizers.Sequence([*split, level])
        self._bytes = byte_of_character()
        self._tokens = tokens

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for; a token outside the byte alphabet stands for its own text."""
        token = self._tokens[id]
        if all(c in self._bytes for c in token):
            return bytes(self._bytes[c] for c in token)
        return token.encode()
