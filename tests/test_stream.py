"""Streaming: whole characters only, and together the same text as at once."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_tokenizers import byte_level, sentence_pieces

from gmoe.tokenizer.stream import Detokenizer
from gmoe.tokenizer.tokenizer import Tokenizer

KINDS = {
    "bytes": byte_level("qwen2"),
    "pieces": sentence_pieces(),
    "pieces without prefix": sentence_pieces(add_space_prefix=False),
}


def streamed(tokenizer: Tokenizer, ids: list[int], **options: Any) -> list[str]:
    stream = Detokenizer(tokenizer, **options)
    return [*(stream.push(id) for id in ids), stream.flush()]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_joined_are_the_decoded_text(kind: str) -> None:
    tokenizer = Tokenizer.from_gguf(KINDS[kind], "toy")
    shown = [id for id in range(tokenizer.n_vocab) if tokenizer.token_bytes(id)]

    @settings(max_examples=80, deadline=None, derandomize=True)
    @given(st.lists(st.sampled_from(shown), max_size=30))
    def holds(ids: list[int]) -> None:
        assert "".join(streamed(tokenizer, ids, after_prompt=False)) == tokenizer.decode(ids)

    holds()


def test_a_character_comes_whole_or_not_at_all() -> None:
    tokenizer = Tokenizer.from_gguf(sentence_pieces(), "toy")
    ids = tokenizer.encode("a🦙", add_special=False)
    assert streamed(tokenizer, ids, after_prompt=False) == ["", "a", "", "", "", "🦙", ""]
    assert streamed(tokenizer, ids[:-1], after_prompt=False)[-1] == "\ufffd"


def test_the_first_space_is_kept_after_a_prompt_and_dropped_at_the_start_of_a_text() -> None:
    tokenizer = Tokenizer.from_gguf(sentence_pieces(), "toy")
    ids = tokenizer.encode("the hello", add_special=False)
    assert "".join(streamed(tokenizer, ids)) == " the hello"
    assert "".join(streamed(tokenizer, ids, after_prompt=False)) == "the hello"


def test_control_tokens_are_silent() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level("qwen2"), "toy")
    ids = tokenizer.encode("a<|im_end|>b", add_special=False, parse_special=True)
    assert "".join(streamed(tokenizer, ids)) == "ab"


def test_control_tokens_are_spelled_where_asked_for() -> None:
    tokenizer = Tokenizer.from_gguf(KINDS["bytes"], "toy")
    ids = tokenizer.encode("a<|im_start|>b<|im_end|>", add_special=False, parse_special=True)
    assert "".join(streamed(tokenizer, ids)) == "ab"
    assert "".join(streamed(tokenizer, ids, spelled=["<|im_start|>"])) == "a<|im_start|>b"
