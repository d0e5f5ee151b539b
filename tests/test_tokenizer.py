"""Tokenizers against llama.cpp's own ids, and against tokenizers made here."""

import json
from pathlib import Path

import numpy as np
import pytest

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
