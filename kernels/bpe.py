"""Byte pair encoding in C++, over the vocabulary where the file has it: Python holds none of its strings."""

import numpy as np
from gmoe.kernels.cpu import _cpu

Packed = tuple[np.ndarray, int]  # uint8 of strings one behind the other, each after its length in 8 bytes; how many


def packed(strings: list[str]) -> Packed:
    """Strings as a GGUF file lays them."""
    texts = [text.encode() for text in strings]
    data = b"".join(len(text).to_bytes(8, "little") + text for text in texts)
    return np.frombuffer(data, np.uint8), len(texts)


def places(data: np.ndarray, count: int) -> np.ndarray:
    """Where each of `count` packed strings at the beginning of uint8 `data` begins, and the end: int64 [count + 1]."""
    found = np.empty(count + 1, np.int64)
    if not _cpu.find_places(data.ctypes.data, data.nbytes, count, found.ctypes.data):
        raise ValueError(f"{count} strings do not fit into {data.nbytes} bytes")
    return found


class Bpe:
    """Ids of pieces of text: pairs are merged by the rank of their merge, the leftmost of equals first.

    A merge is two tokens with a space between; what is not made of tokens is left out. `whole`: a piece that is a token
    is not taken apart. `spelled`: a character that is no token becomes tokens like <0x0A>; else it is left out.
    """

    def __init__(self, tokens: Packed, merges: Packed, whole: bool, spelled: bool):
        self._kept = tokens[0], merges[0]
        given = [n for data, count in (tokens, merges) for n in (data.ctypes.data, data.nbytes, count)]
        if not all(data.dtype == np.uint8 and data.flags.c_contiguous for data in self._kept):
            raise ValueError("packed strings must be contiguous uint8")
        self._native = _cpu.Bpe(*given, whole, spelled)

    def find(self, token: str) -> int:
        """The id of a token, the last of equals; -1 where there is none."""
        return int(self._native.find(token))

    def encode(self, pieces: list[str]) -> list[int]:
        """The ids of pieces one after the other; nothing is merged across them."""
        ids: list[int] = self._native.encode(pieces)
        return ids
