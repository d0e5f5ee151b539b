"""Tokenizers against llama.cpp's own ids, and against tokenizers made here."""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers.pre_tokenizers import Sequence as Steps
from tokenizers.pre_tokenizers import Split
from toy_tokenizers import CORPUS, byte_level, sentence_pieces

from gmoe.gguf.file import GGUFError
from gmoe.tokenizer.breakers import Breakers
from gmoe.tokenizer.pretokenize import PRETOKENIZERS
from gmoe.tokenizer.tokenizer import Tokenizer

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
VOCABULARIES = sorted((FIXTURES / "vocab").glob("*.gguf"))
MODELS = sorted((FIXTURES / "open").glob("*.npz"))
needs_fixtures = pytest.mark.skipif(not VOCABULARIES or not MODELS, reason="the shared fixtures are not there")
if not VOCABULARIES:
    VOCABULARIES, MODELS = [Path("absent")], [Path("absent")]


@needs_fixtures
@pytest.mark.parametrize("path", VOCABULARIES, ids=lambda path: path.stem)
def test_vocabulary_goldens(path: Path) -> None:
    tokenizer = Tokenizer.from_file(path)
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = path.with_suffix(".gguf.out").read_text().split("\n")
    for text, line in zip(texts, lines, strict=False):
        assert tokenizer.encode(text, add_special=False) == [int(id) for id in line.split()], text


@needs_fixtures
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_model_goldens(path: Path) -> None:
    tokenizer = Tokenizer.from_file(path.with_suffix(".gguf"))
    with np.load(path) as arrays:
        cases = json.loads(str(arrays["tokenizer_json"]))
    assert cases
    for case in cases:
        ids = tokenizer.encode(case["text"], add_special=True, parse_special=True)
        assert ids == case["ids"], case["text"]
        plain = tokenizer.encode(case["text"], add_special=False, parse_special=False)
        assert plain == case["ids_nospecial"], case["text"]
        assert tokenizer.decode(ids) == case["detok"]


def words(pre: str, text: str) -> list[str]:
    """`text` as the pre-tokenizer alone cuts it: no merges, so that only the bytes are left to count."""
    steps = Steps([Split(Regex(pattern), "isolated") for pattern in PRETOKENIZERS[pre].patterns])
    return [word for word, _ in steps.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("llama-bpe", "I'LL pay 12345", ["I", "'LL", " pay", " ", "123", "45"]),
        ("qwen2", "x  12\n\n y", ["x", " ", " ", "1", "2", "\n\n", " y"]),
        ("qwen35", "e\u0301a 1", ["e\u0301a", " ", "1"]),
        ("gpt-2", " 12 don't  x", [" 12", " don", "'t", " ", " x"]),
        ("starcoder", "a 12", ["a", " ", "1", "2"]),
        ("deepseek-llm", "ab 12\n 你好!", ["ab", " ", "12", "\n", " ", "你好", "!"]),
        ("deepseek-v3", "ab1234你好.x", ["ab", "123", "4", "你好", ".x"]),
        ("gpt-4o", "MixedCASE andCamelCase isn't", ["Mixed", "CASE", " and", "Camel", "Case", " isn't"]),
        ("tekken", "CamelCase 12", ["Camel", "Case", " ", "1", "2"]),
        ("kimi-k2", "a你好b's", ["a", "你好", "b's"]),
        ("afmoe", "1234567 12", ["1", "234", "567", " ", "12"]),
        ("afmoe", "  7", [" ", " ", "7"]),
        ("afmoe", "a\ua000b", ["a", "\ua000", "b"]),
        ("tiny_aya", "HelloWorld's 1234", ["HelloWorld's", " ", "1", "234"]),
        ("deepseek-llm", "\u3000a", ["\u3000a"]),
        ("deepseek-coder", "\u2028\ufeff", ["\u2028\ufeff"]),
        ("superbpe", "8\u06f3711", ["8\u06f3", "711"]),
        ("youtu", "Hello你好、World 12", ["Hello", "你好", "、", "World", " ", "1", "2"]),
        ("jais-2", "x" + " " * 7 + "y", ["x", " " * 4, " " * 2, " y"]),
        ("ufakzeka", "Ali'de 12", ["Ali", "'de", " ", "1", "2"]),
        ("glm5", "I'LL 1234", ["I", "'LL", " ", "123", "4"]),
        ("bailingmoe", "\n\nit'S 12", ["\n\n", "it", "'S", " ", "1", "2"]),
        ("falcon", "a<=1234", ["a", "<=", "123", "4"]),
        ("gemma4", "a b\n\nc", ["a b", "\n\n", "c"]),
    ],
)
def test_words(pre: str, text: str, expected: list[str]) -> None:
    assert words(pre, text) == expected


@pytest.mark.parametrize("part", ["cut", "merge"])
def test_others_run_while_a_long_text_is_read(part: str) -> None:
    model = Tokenizer.from_gguf(byte_level(), "toy")._model
    pieces = model._pieces("Others want to run, don't they? " * 800)
    begun, ran = threading.Lock(), threading.Event()
    begun.acquire()
    other = threading.Thread(target=lambda: begun.acquire() and ran.set())
    other.start()
    usual = sys.getswitchinterval()
    sys.setswitchinterval(100)  # so that this thread goes on where nothing lets others run
    try:
        begun.release()
        _ = model._pieces("".join(pieces)) if part == "cut" else model._model.encode(pieces * 20)
        assert ran.is_set()
    finally:
        sys.setswitchinterval(usual)
        other.join()


@pytest.mark.parametrize("pre", sorted(name for name in PRETOKENIZERS if not PRETOKENIZERS[name].raw))
def test_every_byte_level_pre_tokenizer_gives_the_text_back(pre: str) -> None:
    tokenizer = Tokenizer.from_gguf(byte_level(pre), "toy")

    @settings(max_examples=12, deadline=None, derandomize=True)
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
    def holds(text: str) -> None:
        ids = tokenizer.encode(text, add_special=False)
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
        if not PRETOKENIZERS[pre].clean_spaces:
            assert tokenizer.decode(ids) == text

    holds()
    for text in CORPUS[:3]:
        assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text


def test_decode_drops_spaces_before_punctuation_where_the_kind_does() -> None:
    text = "Is it ? No , it 's not ."
    decoded = [
        tokenizer.decode(tokenizer.encode(text, add_special=False))
        for tokenizer in (Tokenizer.from_gguf(byte_level(pre), "toy") for pre in ("gpt-2", "qwen2"))
    ]
    assert decoded == ["Is it? No, it's not.", text]


def test_a_lone_surrogate_counts_as_the_replacement_character() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level("qwen2"), "toy")
    assert tokenizer.decode(tokenizer.encode("a\ud800b", add_special=False)) == "a\ufffdb"


def test_special_tokens_are_parsed_when_asked_and_user_defined_ones_always() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level(), "toy")
    start, end, think = (tokenizer.n_vocab - n for n in (4, 3, 2))
    ids = tokenizer.encode("<|im_start|>a<think><|im_end|>", add_special=False, parse_special=True)
    assert [id for id in ids if id >= start] == [start, think, end]
    plain = tokenizer.encode("<|im_start|>a<think>", add_special=False)
    assert start not in plain and plain[-1] == think
    assert tokenizer.decode(ids) == "<|im_start|>a<think><|im_end|>"
    assert tokenizer.is_end(end) and not tokenizer.is_end(start)
    assert tokenizer.token_bytes(start) == b"" and tokenizer.token_bytes(think) == b"<think>"


def test_beginning_and_end_are_added_as_the_file_or_its_kind_says() -> None:
    def ids(metadata: dict[str, Any]) -> list[int]:
        return Tokenizer.from_gguf(metadata, "toy").encode("x")

    plain = ids(byte_level())
    bos, eos = (byte_level()[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos"))
    assert bos not in plain
    assert ids(byte_level("llama-bpe")) == [bos, *plain]
    assert ids(byte_level(add_bos_token=True, add_eos_token=True)) == [bos, *plain, eos]
    assert ids(sentence_pieces())[0] == 1
    assert 1 not in ids(sentence_pieces(add_bos_token=False))


def test_sentence_pieces_prefix_fallback_and_round_trip() -> None:
    tokenizer = Tokenizer.from_gguf(sentence_pieces(), "toy")
    texts = [tokenizer.text(id) for id in tokenizer.encode("hello the ß")]
    assert texts == ["<s>", "▁hello", "▁the", "▁", "<0xC3>", "<0x9F>"]
    parsed = tokenizer.encode("<s>hello<tool>the</s>", add_special=False, parse_special=True)
    assert [tokenizer.text(id) for id in parsed] == ["<s>", "▁hello", "<tool>", "▁the", "</s>"]
    bare = Tokenizer.from_gguf(sentence_pieces(add_space_prefix=False), "toy")
    assert bare.text(bare.encode("the", add_special=False)[0]) == "t"

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁\0"), max_size=40))
    def holds(text: str) -> None:
        for each in (tokenizer, bare):
            assert each.decode(each.encode(text, add_special=False)) == text

    holds()


def test_unigram_takes_the_likeliest_pieces() -> None:
    tokenizer = Tokenizer.from_gguf(sentence_pieces("t5", add_space_prefix=True), "toy")
    assert [tokenizer.text(id) for id in tokenizer.encode("hello the")] == ["▁hello", "▁the", "</s>"]


def test_unigram_has_no_byte_fallback_and_puts_no_space_before_spaces() -> None:
    tokenizer = Tokenizer.from_gguf(sentence_pieces("t5", add_space_prefix=True), "toy")
    texts = [[tokenizer.text(id) for id in tokenizer.encode(text, add_special=False)] for text in ("ß", " ", " t")]
    assert texts == [["▁", "<unk>"], ["▁"], ["▁", "▁t"]]
    assert Tokenizer.from_gguf(sentence_pieces("t5"), "toy").decode([259]) == " "


def test_a_character_that_is_no_token_parts_its_neighbours() -> None:
    tokens = ["<bos>", "a", "b", "ab"]
    metadata = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
    }
    assert Tokenizer.from_gguf(metadata, "toy").encode("abaéb", add_special=False) == [3, 1, 2]


def test_a_fill_token_that_the_file_names_is_not_looked_for() -> None:
    def tokenizer(**more: Any) -> Tokenizer:
        metadata = byte_level(**more)
        metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<PAD>"]
        metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 4]
        return Tokenizer.from_gguf(metadata, "toy")

    assert tokenizer().is_end(N) and tokenizer().token_bytes(N) == b""
    named = tokenizer(fim_pad_token_id=3)
    assert named.is_end(3) and not named.is_end(N) and named.encode("<PAD>", add_special=False) == [N]


def test_gemma4_escapes_spaces_takes_newlines_whole_and_falls_back_to_bytes() -> None:
    tokens = ["<bos>", "▁", "a", "b", "▁a", "\n", "\n\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    metadata = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] + [1] * 6 + [6] * 256,
        "tokenizer.ggml.merges": ["▁ a"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    tokenizer = Tokenizer.from_gguf(metadata, "toy")
    ids = tokenizer.encode("b a\n\né")
    assert [tokens[id] for id in ids] == ["<bos>", "b", "▁a", "\n\n", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids[1:]) == "b a\n\né"


def test_only_gemma4_takes_newlines_whole() -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "sarvam-moe",
        "tokenizer.ggml.tokens": ["\n", "\n\n"],
        "tokenizer.ggml.merges": [],
    }
    assert Tokenizer.from_gguf(metadata, "toy").encode("\n\n") == [0, 0]


@pytest.mark.parametrize(("kind", "ends"), [(1, False), (3, True)])
def test_a_closing_tag_ends_the_answer_only_where_the_file_calls_it_a_control_token(kind: int, ends: bool) -> None:
    metadata = byte_level()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "</s>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], kind]
    tokenizer = Tokenizer.from_gguf(metadata, "toy")
    assert tokenizer.is_end(tokenizer.n_vocab - 1) == ends
    assert tokenizer.token_bytes(tokenizer.n_vocab - 1) == (b"" if ends else b"</s>")


def test_harmony_message_end_is_not_the_end_of_the_answer() -> None:
    harmony = ["<|start|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"]
    metadata = byte_level()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *harmony]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], *[3] * 5]
    tokenizer = Tokenizer.from_gguf(metadata, "toy")
    ends = [tokenizer.is_end(tokenizer.n_vocab - 5 + n) for n in range(5)]
    assert ends == [False, False, False, True, True]


def test_a_type_that_does_not_exist_is_undefined() -> None:
    known, strange = byte_level(), byte_level()
    for metadata, kinds in ((known, (0, 0, 0)), (strange, (7, -1, 2**31 - 1))):
        metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<a>", "<b>", "<c>"]
        types = [*metadata["tokenizer.ggml.token_type"], *kinds]
        metadata["tokenizer.ggml.token_type"] = np.array(types, np.int32)
    want, got = (Tokenizer.from_gguf(metadata, "toy") for metadata in (known, strange))
    text = "The quick <a><b> fox<c><|im_end|>"
    ids = got.encode(text, parse_special=True)
    assert ids == want.encode(text, parse_special=True)
    assert [got.token_bytes(got.n_vocab - n) for n in (1, 2, 3)] == [b""] * 3
    every = range(got.n_vocab)
    assert [got.decode([id]) for id in every] == [want.decode([id]) for id in every]


def test_repetitions_end_at_tokens_with_a_breaker_in_them() -> None:
    metadata = byte_level()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], ".ĊĊ", "<|turn|>"]
    metadata["tokenizer.ggml.token_type"] = np.array([*metadata["tokenizer.ggml.token_type"], 1, 3], np.int32)
    tokenizer = Tokenizer.from_gguf(metadata, "toy")
    texts = [tokenizer.decode([id]) for id in range(tokenizer.n_vocab)]
    breakers = Breakers(tokenizer, ("\n", "<|turn|>"))
    assert [id in breakers for id in range(len(texts))] == ["\n" in text or text == "<|turn|>" for text in texts]
    assert texts[-2] == ".\n\n" and N in breakers
    split = tokenizer.encode("a;;!", add_special=False)[1:]
    assert len(split) == 3 and [id in Breakers(tokenizer, [";;!"]) for id in split] == [False, False, True]
    assert len(texts) not in breakers and 3 not in Breakers(tokenizer, ())


@pytest.mark.parametrize("pre", [None, ""])
def test_text_that_is_cut_as_nobody_says_is_told(pre: str | None) -> None:
    tokenizer = Tokenizer.from_gguf(byte_level() | {"tokenizer.ggml.pre": pre}, "toy")
    assert tokenizer.notices == [
        "toy has no tokenizer.ggml.pre: text is cut as for 'default', and answers may be worse for it"
    ]
    default = Tokenizer.from_gguf(byte_level("default"), "toy")
    assert tokenizer.encode(CORPUS[0]) == default.encode(CORPUS[0]) and not default.notices


N = len(byte_level()["tokenizer.ggml.tokens"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer.ggml.pre": "qwen3"}, "toy.*'qwen3'.*nearest known is 'qwen"),
        ({"tokenizer.ggml.model": "bert"}, "toy: tokenizer.ggml.model: 'bert' is not supported"),
        ({"tokenizer.ggml.tokens": None}, "toy.*tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": None}, "toy.*tokenizer.ggml.merges"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "toy.*tokenizer.ggml.token_type"),
        ({"tokenizer.ggml.token_type": ["1", "2"]}, "toy: tokenizer.ggml.token_type: must be an array of numbers"),
        ({"tokenizer.ggml.token_type": np.ones(N)}, "toy: tokenizer.ggml.token_type: its entries must be whole"),
        ({"tokenizer.ggml.token_type": 1}, "toy: tokenizer.ggml.token_type: must be an array of numbers"),
        ({"tokenizer.ggml.scores": [float("nan")]}, "toy: tokenizer.ggml.scores: must be an array of numbers"),
        ({"tokenizer.ggml.tokens": 1}, "toy: tokenizer.ggml.tokens: must be an array of strings"),
        ({"tokenizer.ggml.merges": np.ones(3)}, "toy: tokenizer.ggml.merges: must be an array of strings"),
        ({"tokenizer.ggml.eos_token_id": np.array([1, 2])}, "toy: tokenizer.ggml.eos_token_id: must be the number of"),
        ({"tokenizer.ggml.model": np.ones(3)}, "toy: tokenizer.ggml.model: must be text"),
        ({"tokenizer.ggml.model": "x\x1b[2J\n" * 500}, r"toy: tokenizer.ggml.model: 'x\\x1b\[2J\\n.{400,700}\.\.\.$"),
        ({"tokenizer.ggml.pre": np.ones(3)}, "toy: tokenizer.ggml.pre: must be text"),
        ({"tokenizer.ggml.add_bos_token": "no"}, "toy: tokenizer.ggml.add_bos_token: must be true or false"),
        ({"tokenizer.ggml.add_eos_token": np.ones(3)}, "toy: tokenizer.ggml.add_eos_token: must be true or false"),
        ({"tokenizer.ggml.bos_token_id": 10**6}, "toy: tokenizer.ggml.bos_token_id: 1000000 is not one of"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(GGUFError, match=words):
        Tokenizer.from_gguf(byte_level() | change, "toy")
