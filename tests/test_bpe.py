"""Byte pairs in C++ against the `tokenizers` library, on vocabularies and pieces drawn at random."""

import random
import re
import time

import numpy as np
import pytest
from gmoe.kernels.bpe import Bpe, packed, places
from tokenizers.models import BPE

ALPHABET = "abcé日🙂"


def drawn(choose: random.Random, most: int) -> str:
    return "".join(choose.choice(ALPHABET) for _ in range(choose.randint(1, most)))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("spelled", [False, True])
def test_ids_are_those_of_the_library(whole: bool, spelled: bool) -> None:
    choose = random.Random(7 + whole + 2 * spelled)
    for _ in range(40):
        bytes_ = [f"<0x{n:02X}>" for n in range(256)] if spelled else []
        letters = [c for c in ALPHABET if choose.random() < 0.9]
        tokens = list(dict.fromkeys([*bytes_, *letters, *(drawn(choose, 5) for _ in range(60))]))
        choose.shuffle(tokens)
        cuts = [(t[:n], t[n:]) for t in tokens for n in range(1, len(t)) if not t.startswith("<")]
        cuts = [pair for pair in cuts if choose.random() < 0.8 and set(pair) <= set(tokens)]
        choose.shuffle(cuts)
        vocabulary = {token: id for id, token in enumerate(tokens)}
        library = BPE(vocabulary, cuts, byte_fallback=spelled)
        unknown = re.compile("([" + "".join({*ALPHABET} - {*tokens}) + "0])")
        strange = ["a", "a ", " b", "aa zz", "é  é"]  # no merges of tokens
        ours = Bpe(packed(tokens), packed([*strange, *(" ".join(pair) for pair in cuts)]), whole, spelled)
        pieces = [drawn(choose, 24) for _ in range(60)] + ["a" * 300, choose.choice(tokens)]
        for piece in pieces:
            parts = [piece] if whole and piece in vocabulary else unknown.split(piece)
            ids = [token.id for part in parts for token in library.tokenize(part)]
            assert ours.encode([piece]) == ([vocabulary[piece]] if whole and piece in vocabulary else ids), piece
        assert ours.encode(pieces) == [id for piece in pieces for id in ours.encode([piece])]
        assert [ours.find(token) for token in tokens] == list(range(len(tokens)))
        assert ours.find("no token") == ours.find("") == -1


def seconds(tokens: list[str]) -> float:
    """The best of three times that a vocabulary takes to load."""
    data, taken = packed(tokens), []
    for _ in range(3):
        began = time.perf_counter()
        bpe = Bpe(data, packed([]), False, False)
        taken.append(time.perf_counter() - began)
        assert bpe.find(tokens[5]) == 5
    return min(taken)


def test_strings_that_are_made_to_collide_load_as_fast_as_others() -> None:
    """They collide in the hash as it was without a seed: FNV-1a, mixed; in a table of 8192 places, within 128."""
    letters = np.frombuffer(b"0123456789abcdef", np.uint8)
    names = letters[np.arange(1 << 19)[:, None] >> np.arange(0, 32, 4) & 15]  # [names, 8]
    h = np.full(len(names), 0xCBF29CE484222325, np.uint64)
    for letter in names.T:
        h = (h ^ letter) * np.uint64(0x100000001B3)
    h = (h ^ (h >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    place = (h ^ (h >> np.uint64(29))) & np.uint64(8191)
    built, others = names[place < 128][:5000], names[:5000]
    assert len(built) == 5000
    assert seconds([bytes(name).decode() for name in built]) < 20 * seconds([bytes(name).decode() for name in others])


def test_the_last_of_equal_tokens_counts() -> None:
    bpe = Bpe(packed(["a", "b", "", "a", "ab"]), packed(["a b"]), False, False)
    assert bpe.find("a") == 3 and bpe.encode(["aab", "", "bxa"]) == [3, 4, 1, 3]


def test_strings_that_do_not_fit_are_refused() -> None:
    data, count = packed(["one", "", "three"])
    assert places(data, count).tolist() == [0, 11, 19, 32]
    assert places(data[:0], 0).tolist() == [0]
    for bad in (data[:-1], data[:5], np.full(16, 255, np.uint8)):
        with pytest.raises(ValueError, match="do not fit"):
            places(bad, count)
        with pytest.raises(ValueError, match="do not fit"):
            Bpe((bad, count), packed([]), False, False)
    with pytest.raises(ValueError, match="uint8"):
        Bpe((data.astype(np.int32), count), packed([]), False, False)
