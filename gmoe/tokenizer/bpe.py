"""Byte-pair encoding: a `tokenizers` model built from a file's tokens and merges."""

import re
from collections.abc import Sequence

from tokenizers import Regex
from tokenizers import Tokenizer as Pipeline
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import PreTokenizer as Step
from tokenizers.pre_tokenizers import Sequence as Steps

from gmoe.tokenizer.pretokenize import PreTokenizer

SPACE = "\u2581"


class BytePairs:
    """Text without special tokens to ids and a token's text to bytes, by merges in the order of the file."""

    def __init__(self, tokens: Sequence[str], merges: Sequence[str], pre: PreTokenizer) -> None:
        self._pre = pre
        self._ids = {token: id for id, token in enumerate(tokens)}
        model = BPE(
            vocab=self._ids,
            merges=list(self._known_merges(merges)),
            ignore_merges=pre.ignore_merges,
            byte_fallback=pre.spaces_escaped,
        )
        self._pipeline = Pipeline(model)
        steps: list[Step] = [Split(Regex(pattern), "isolated") for pattern in pre.patterns]
        if not pre.spaces_escaped:
            steps.append(ByteLevel(add_prefix_space=False, use_regex=False))
        self._pipeline.pre_tokenizer = Steps(steps)

    def encode(self, text: str, after_special: bool = True) -> list[int]:
        """The ids of `text`, in which no special token is looked for; what stands before makes no difference."""
        if not self._pre.spaces_escaped:
            return self._pipeline.encode(text, add_special_tokens=False).ids
        ids: list[int] = []
        for line in re.findall(r"[^\n]+|\n+", text.replace(" ", SPACE)):
            newlines = self._ids.get(line) if line[0] == "\n" else None
            ids += self._pipeline.encode(line, add_special_tokens=False).ids if newlines is None else [newlines]
        return ids

    def piece(self, token: str) -> bytes:
        """The bytes that the normal token `token` stands for."""
        if self._pre.spaces_escaped:
            return token.replace(SPACE, " ").encode()
        return b"".join(_BYTES.get(letter) or letter.encode() for letter in token)

    def _known_merges(self, merges: Sequence[str]) -> dict[tuple[str, str], None]:
        """The merges as pairs, each once; those that make no token of the vocabulary can never show and are left out."""
        pairs: dict[tuple[str, str], None] = {}
        for merge in merges:
            space = merge.find(" ", 1)
            left, right = merge[:space], merge[space + 1 :]
            if space > 0 and left in self._ids and right in self._ids and left + right in self._ids:
                pairs[left, right] = None
        return pairs


def _byte_alphabet() -> dict[str, bytes]:
    """GPT-2's alphabet: printable Latin-1 letters are themselves, the other bytes are U+0100 and up in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): bytes([byte]) for byte in printable}
    return alphabet | {chr(0x100 + n): bytes([byte]) for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()
