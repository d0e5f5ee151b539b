"""Reads a `route_trace v1` of BigMoeOnEdge (github.com/Helldez/BigMoeOnEdge), one line an expert asked for."""

import csv
from pathlib import Path

import numpy as np

from gmoe.experts.trace import MOST_EXPERTS, MOST_LAYERS, ROWS, Header, Trace, TraceError

COLUMNS = ("turn", "phase", "step", "layer", "slot", "expert")


def from_route_csv(path: Path) -> Trace:
    """A `route_trace v1` of BigMoeOnEdge; raises TraceError. Prefill is one pass, each decode step one."""
    try:
        with path.open(newline="") as file:
            lines = file.read().splitlines()
        if lines[0] != "# route_trace v1":
            raise ValueError("its first line is not '# route_trace v1'")
        said = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines if line[0] == "#"]
        model = next(words for words in said if "model" in words)
        sizes = {int(words["layer"]): int(words["expert_bytes"]) for words in said if "layer" in words}
        k, n_layer = int(model["n_expert_used"]), int(model["n_layer"])
        if not 0 < k <= MOST_EXPERTS or not 0 < n_layer <= MOST_LAYERS:
            raise ValueError(f"{n_layer} layers with {k} experts a token are more or fewer than there can be")
        table = list(csv.DictReader(line for line in lines if line[0] != "#"))
        columns = {name: np.array([int(row[name]) for row in table]).reshape(-1, k) for name in COLUMNS}
        if (columns["slot"] != np.arange(k)).any():
            raise ValueError("a token lacks some of its experts")
        weights = np.array([float(row["weight"]) for row in table], dtype=np.float32).reshape(-1, k)
        first = {name: columns[name][:, 0] for name in ("turn", "phase", "step", "layer")}
        step, behind = first["step"].copy(), 0
        for turn in np.unique(first["turn"]):  # each counts its steps from 0
            mine = first["turn"] == turn
            prompt = mine & (first["phase"] != 1)
            step[prompt] = step[prompt].max(initial=0)
            step[mine] += behind
            behind = step[mine].max() + 1
        rows = {"step": step, "request": first["turn"]}
        rows |= {"phase": first["phase"], "layer": first["layer"], "position": first["step"]}
        expert_bytes = tuple(sizes.get(layer, 0) for layer in range(n_layer))
        name = Path(model["model"]).name
        header = Header(name, f"csv:{name}", n_layer, int(model["n_expert"]), expert_bytes)
        typed = {key: column.astype(ROWS[key]) for key, column in rows.items()}
        trace = Trace(header, typed, columns["expert"].astype(np.int16), weights)
        trace.check()
    except (ValueError, ArithmeticError, LookupError, StopIteration, TypeError) as error:
        raise TraceError(f"{path}: not a whole route_trace v1 ({error})") from None
    return trace
