"""A short sweep of kill -9; the long one is `python -m tests.sweep_kill 50`."""

import pytest

from gmoe.library import fetch
from tests.sweep_kill import OPERATIONS, sweep


@pytest.mark.parametrize("operation", OPERATIONS)
def test_killed_at_random_moments_nothing_named_is_missing(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SEGMENT", 256 << 10)
    seen = sweep(operation, 8)
    assert seen["old"] + seen["new"] == 8
