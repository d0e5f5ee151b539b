"""What a trace tells at a glance: who is hot, how soon experts are asked for again, how tasks differ."""

from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.trace import Trace

GAPS = (1, 2, 3, 5, 9, 17, 33, 65)  # a bin begins at each


def counts(trace: Trace, rows: NDArray[Any] | None = None) -> NDArray[np.int64]:
    """How often every expert was chosen, [layers, experts]; of these rows only, where a mask is given."""
    h = trace.header
    layer, ids = trace.rows["layer"].astype(np.int64), trace.ids.astype(np.int64)
    if rows is not None:
        layer, ids = layer[rows], ids[rows]
    flat = (layer[:, None] * h.n_expert + ids).ravel()
    return np.bincount(flat, minlength=h.n_layer * h.n_expert).reshape(h.n_layer, h.n_expert)


def reuse(trace: Trace) -> NDArray[np.int64]:
    """Of the decode asks: how many passes since the expert was last asked for, by the bins of `GAPS`; last: never."""
    h = trace.header
    decode = trace.rows["phase"] == 1
    _, step = np.unique(trace.rows["step"][decode], return_inverse=True)
    layer, ids = trace.rows["layer"][decode].astype(np.int64), trace.ids[decode].astype(np.int64)
    who = (layer[:, None] * h.n_expert + ids).ravel()
    when = np.repeat(step, ids.shape[1])
    order = np.lexsort((when, who))
    who, when = who[order], when[order]
    same = who[1:] == who[:-1]
    gap = (when[1:] - when[:-1])[same]
    bins = np.searchsorted(GAPS, gap[gap > 0], side="right") - 1
    found = np.bincount(bins, minlength=len(GAPS))
    return np.append(found, len(who) - int(same.sum()) if len(who) else 0)


def by_task(trace: Trace, most: int) -> dict[str, NDArray[np.int64]]:
    """The counts of the first `most` tasks; each request is one where nobody said."""
    request = trace.rows["request"]
    requests: dict[str, list[int]] = {}
    for n in np.unique(request).tolist():
        requests.setdefault(trace.header.task(n) or f"request {n}", []).append(n)
    return {task: counts(trace, np.isin(request, its)) for task, its in islice(requests.items(), most)}


def difference(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Of two tasks' counts: the share of choices that fall on other experts, 0 alike to 1 apart, mean over layers."""
    routed = (a.sum(axis=1) > 0) & (b.sum(axis=1) > 0)
    if not routed.any():
        return 0.0
    p, q = (c[routed] / c[routed].sum(axis=1, keepdims=True) for c in (a, b))
    return float(np.abs(p - q).sum(axis=1).mean() / 2)
