"""Few rows of a product of choices in which every pair of values meets."""

import random
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any


def pairwise(
    choices: Mapping[str, Sequence[Any]], seed: int = 0, *, apart: Collection[tuple[str, str]] = ()
) -> list[dict[str, Any]]:
    """Rows, each with one value of every name; any two values of two names stand together in one of them.

    Those of two names which are `apart`, in the order of the choices, need not.
    """
    rng = random.Random(seed)
    names = list(choices)
    meeting = [both for both in combinations(names, 2) if both not in apart]
    open_pairs = {((a, x), (b, y)) for a, b in meeting for x in choices[a] for y in choices[b]}
    rows = []
    while open_pairs:
        best: tuple[int, dict[str, Any]] = (-1, {})
        some = sorted(open_pairs, key=str)[:50]
        for _ in range(20):
            (a, x), (b, y) = rng.choice(some)
            row = {a: x, b: y}
            for name in rng.sample([n for n in names if n not in row], len(names) - 2):
                row[name] = max(
                    rng.sample(list(choices[name]), len(choices[name])),
                    key=lambda value: sum(_pair(names, name, value, *other) in open_pairs for other in row.items()),
                )
            best = max(best, (len(_pairs(names, row) & open_pairs), row), key=lambda found: found[0])
        rows.append(best[1])
        open_pairs -= _pairs(names, best[1])
    return rows


def _pair(names: list[str], a: str, x: Any, b: str, y: Any) -> tuple[tuple[str, Any], tuple[str, Any]]:
    return ((a, x), (b, y)) if names.index(a) < names.index(b) else ((b, y), (a, x))


def _pairs(names: list[str], row: Mapping[str, Any]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    return {_pair(names, a, row[a], b, row[b]) for a, b in combinations(row, 2)}
