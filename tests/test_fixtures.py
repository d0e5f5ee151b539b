"""The shared conformance fixtures, file by file; the same figures as `python -m tests.fixture_table` prints."""

from pathlib import Path

import pytest

from tests.fixture_table import files, measure, tokenizer_failures

FILES = files()
needs_fixtures = pytest.mark.skipif(not FILES, reason="no shared fixtures beside the checkout")
MODELS = pytest.mark.parametrize("path", FILES or [Path("absent")], ids=lambda path: path.stem)


@needs_fixtures
@MODELS
def test_logits_routes_and_greedy_tokens(path: Path) -> None:
    row = measure(path)
    assert row.max_abs <= row.tolerance
    assert row.max_abs_hf is None or row.max_abs_hf <= row.tolerance
    assert row.routes[0] == row.routes[1]
    assert row.greedy[0] == row.greedy[1]
    assert row.rms <= 0.05
    assert row.argmax >= 0.85


@needs_fixtures
@MODELS
def test_tokenizer_and_chat_template(path: Path) -> None:
    assert tokenizer_failures(path) == []
