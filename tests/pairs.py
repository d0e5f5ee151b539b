"""Few rows of a product of choices in which every pair of values meets."""

import random
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations, product
from typing import Any


def pairwise(
    choices: Mapping[str, Sequence[Any]],
    seed: int = 0,
    *,
    apart: Mapping[tuple[str, str], Collection[Any]] | None = None,
) -> list[dict[str, Any]]:
    """Rows, each with one value of every name; any two values of two names stand together in one of them.

    `apart` has, for two names in the order of the choices, values of the second which need not meet the first's.
    """
    apart = apart or {}
    rng = random.Random(seed)
    values = [value for name in choices for value in choices[name]]
    ids: dict[str, range] = {}  # of values
    for name in choices:
        first = sum(map(len, ids.values()))
        ids[name] = range(first, first + len(choices[name]))
    due: list[set[int]] = [set() for _ in values]  # whom it has not met
    pairs = []
    for a, b in combinations(choices, 2):
        meeting = [y for y in ids[b] if values[y] not in apart.get((a, b), ())]
        pairs += [(a, x, b, y) for x, y in product(ids[a], meeting)]
    for _, x, _, y in pairs:
        due[x].add(y)
        due[y].add(x)
    rng.shuffle(pairs)
    rows = []
    while pairs := [pair for pair in pairs if pair[3] in due[pair[1]]]:
        best: tuple[int, dict[str, int]] = (-1, {})
        for _ in range(20):
            a, x, b, y = rng.choice(pairs[:50])
            row = {a: x, b: y}
            for name in rng.sample([n for n in choices if n not in row], len(choices) - 2):
                met = set(row.values())
                row[name] = max(rng.sample(ids[name], len(ids[name])), key=lambda value: len(due[value] & met))
            met = set(row.values())
            best = max(best, (sum(len(due[value] & met) for value in met), row), key=lambda found: found[0])
        met = set(best[1].values())
        for value in met:
            due[value] -= met
        rows.append({name: values[best[1][name]] for name in choices})
    return rows
