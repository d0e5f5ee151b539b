"""A trace as CSV and back: a line `# gmoe trace` with its header as JSON, then one line an expert asked for."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gmoe.experts.route_csv import from_route_csv
from gmoe.experts.trace import ROWS, Header, Trace, TraceError

FIRST = "# gmoe trace "
COLUMNS = ("request", "phase", "step", "layer", "position", "slot", "expert", "weight")


def to_csv(trace: Trace) -> Iterator[str]:
    """The lines, each with its end; `scores` and `matrices` are left out."""
    yield f"{FIRST}{json.dumps(asdict(trace.header))}\n"
    yield ",".join(COLUMNS) + "\n"
    columns = [trace.rows[name].tolist() for name in COLUMNS if name in ROWS]
    for row, ids, weights in zip(zip(*columns, strict=True), trace.ids, trace.weights, strict=True):
        start = ",".join(map(str, row))
        yield from (f"{start},{slot},{e},{w:.6g}\n" for slot, (e, w) in enumerate(zip(ids, weights, strict=True)))


def from_csv(path: Path) -> Trace:
    """What `to_csv` writes, or a route_trace v1; raises OSError, or TraceError where it is neither."""
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline(1 << 20)
        if first.startswith("# route_trace v1"):
            return from_route_csv(path)
        if not first.startswith(FIRST):
            told = "its first line begins neither with '# gmoe trace', as `gmoe trace export` writes it, nor with"
            raise TraceError(f"{path}: {told} '# route_trace v1'")
        try:
            header = Header.read(json.loads(first.removeprefix(FIRST)))
            if file.readline(1 << 20).strip() != ",".join(COLUMNS):
                raise ValueError(f"its second line is not {','.join(COLUMNS)}")
            lines = file.read().splitlines()
            table = np.loadtxt(lines, delimiter=",", ndmin=2) if lines else np.empty((0, len(COLUMNS)))
            trace = _trace(header, table)
            trace.check()
        except (ValueError, ArithmeticError, KeyError, TypeError, RecursionError) as error:
            raise TraceError(f"{path}: not a whole trace of `gmoe trace export` ({error})") from None
    return trace


def _trace(header: Header, table: np.ndarray) -> Trace:
    """`table` [lines, columns] float64, in which whole numbers are exact."""
    slot = table[:, COLUMNS.index("slot")]
    k = int(slot.max(initial=0)) + 1
    if len(table) % k or (slot.reshape(-1, k) != np.arange(k)).any():
        raise ValueError("a token lacks some of its experts")
    given = {name: table[:, n].reshape(-1, k) for n, name in enumerate(COLUMNS)}
    for name, column in given.items():
        kind: Any = ROWS.get(name, np.int16)
        limits = np.iinfo(kind)
        whole = column == np.floor(column)
        if name != "weight" and not (whole & (limits.min <= column) & (column <= limits.max)).all():
            raise ValueError(f"{name} is not a whole number everywhere, or too large")
    rows = {name: given[name][:, 0].astype(dtype) for name, dtype in ROWS.items()}
    return Trace(header, rows, given["expert"].astype(np.int16), given["weight"].astype(np.float32))
