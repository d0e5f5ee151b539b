"""Small tokenizers made on the spot, as the metadata of a GGUF file would describe them."""

import json
from functools import cache
from typing import Any

from tokenizers import Tokenizer as Pipeline
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. I'll say we've seen 1234567 of them, haven't we?",
    "def area(width: float) -> float:\n    return width * 3.14159  # approximately\n",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 你好，世界。 Привет, мир! 한국어 ไทย",
] * 3
SPECIALS = {"<|endoftext|>": 3, "<|im_start|>": 3, "<|im_end|>": 3, "<think>": 4, "<|im|>": 4}


@cache
def _trained() -> tuple[tuple[str, ...], tuple[str, ...]]:
    pipeline = Pipeline(BPE())
    pipeline.pre_tokenizer = ByteLevel(add_prefix_space=False)
    alphabet = ByteLevel.alphabet()
    pipeline.train_from_iterator(CORPUS, BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    vocabulary = pipeline.get_vocab()
    merges = json.loads(pipeline.to_str())["model"]["merges"]
    return tuple(sorted(vocabulary, key=vocabulary.__getitem__)), tuple(" ".join(pair) for pair in merges)


def byte_level(pre: str = "gpt-2", **more: Any) -> dict[str, Any]:
    """A byte-level BPE of about 400 tokens."""
    tokens, merges = _trained()
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, *SPECIALS],
        "tokenizer.ggml.token_type": [1] * len(tokens) + list(SPECIALS.values()),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 2,
    }
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


def sentence_pieces(model: str = "llama", **more: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary with byte fallback; the longer a piece, the likelier."""
    words = ["▁", "▁t", "he", "▁the", "l", "o", "lo", "h", "e", "el", "hel", "▁hel", "▁hello", "w", "t", "▁w", "x", "a"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, "<tool>"]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [float(len(word) - 20) for word in words] + [0.0],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words) + [4],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return metadata | {f"tokenizer.ggml.{key}": value for key, value in more.items()}
