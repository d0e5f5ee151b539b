"""DRY: a token that would continue a repetition is the less likely, the longer that already is (p-e-w, 2024)."""

from collections.abc import Container, Sequence

import numpy as np

LONGEST = 50  # tokens of a repetition that are looked at


def repeated(context: Sequence[int], breakers: Container[int], least: int = 1) -> dict[int, int]:
    """Of each token that has followed what the context ends with: how many tokens of that stood before it.

    No repetition goes over one of the `breakers`, and none of them continues one. With `least` 0 every token that has
    followed any other is told.
    """
    x = np.array(context, np.int64)
    n = len(x)
    if n < 2:
        return {}
    reached = np.zeros(n - 1, np.int64)
    ended = int(x[-1]) in breakers
    at = np.flatnonzero(x[:-1] == x[-1])[: 0 if ended else n]  # where repetitions end that are long enough
    for length in range(1, min(n, LONGEST + 1)):
        reached[at] = length
        before = int(x[n - 1 - length])
        at = at[at >= length]
        at = at[x[at - length] == before]
        if before in breakers or not len(at):
            break
    found = np.flatnonzero(reached >= least)
    found = found[np.argsort(reached[found], kind="stable")]  # of a token that followed several the longest counts
    longest = dict(zip(x[found + 1].tolist(), reached[found].tolist(), strict=True))
    return {token: length for token, length in longest.items() if token not in breakers}
