"""A trace as plain CSV and back: one line an expert asked for; the column `header` says once, as JSON, whose it is."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gmoe.experts.route_csv import from_route_csv
from gmoe.experts.trace import ROWS, Header, Trace, TraceError

COLUMNS = ("request", "phase", "step", "layer", "position", "slot", "expert", "weight")
LAST = "header"
FIRST_LINES = (",".join(COLUMNS), ",".join((*COLUMNS, LAST)))
ROUTE_TRACE = "# route_trace v1"


def to_csv(trace: Trace) -> Iterator[str]:
    """The lines, each with its end; `scores` and `matrices` are left out, and the header where there are no rows."""
    yield FIRST_LINES[-1] + "\n"
    said = '"' + json.dumps(asdict(trace.header)).replace('"', '""') + '"'
    columns = [trace.rows[name].tolist() for name in COLUMNS if name in ROWS]
    for row, ids, weights in zip(zip(*columns, strict=True), trace.ids, trace.weights, strict=True):
        start = ",".join(map(str, row))
        for slot, (e, w) in enumerate(zip(ids, weights, strict=True)):
            yield f"{start},{slot},{e},{w:.6g},{said}\n"
            said = ""


def any_trace(path: Path, mine: Header | None = None) -> Trace:
    """A trace as `.npz` or as CSV, whatever the file is called; raises OSError, or TraceError as these do."""
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline(1 << 20)
    if path.suffix == ".csv" or first.strip() in FIRST_LINES or first.startswith(ROUTE_TRACE):
        return from_csv(path, mine)
    return Trace.load(path, None if mine is None else mine.fingerprint)


def from_csv(path: Path, mine: Header | None = None) -> Trace:
    """What `to_csv` writes, or a route_trace v1; raises OSError, or TraceError where it is neither.

    `mine` is the model that the trace should be of; a file that does not say whose it is, is taken for its trace.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        first = file.readline(1 << 20)
        if first.startswith(ROUTE_TRACE):
            return from_route_csv(path)
        if first.strip() not in FIRST_LINES:
            told = f"its first line is neither that of `gmoe trace export` nor '{ROUTE_TRACE}'"
            raise TraceError(f"{path}: {told}")
        try:
            lines = file.read().splitlines()
            said = next((line.split(",", len(COLUMNS))[len(COLUMNS)] for line in lines if "{" in line), None)
            header = mine if said is None else Header.read(json.loads(said.strip()[1:-1].replace('""', '"')))
            if header is None:
                raise ValueError("no line says in the column `header` whose trace it is")
            trace = _trace(header, _table(lines))
            trace.check()
        except (ValueError, ArithmeticError, LookupError, TypeError, RecursionError) as error:
            raise TraceError(f"{path}: not a whole trace of `gmoe trace export` ({error})") from None
    if mine is not None and header.fingerprint != mine.fingerprint:
        raise TraceError(f"{path}: a trace of another model ({header.model})")
    return trace


def _table(lines: list[str]) -> np.ndarray:
    """The columns but the last, [lines, columns] float64."""
    if not lines:
        return np.empty((0, len(COLUMNS)))
    return np.loadtxt(lines, delimiter=",", comments=None, quotechar='"', usecols=range(len(COLUMNS)), ndmin=2)


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
