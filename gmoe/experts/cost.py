"""CostModel: seconds to read and to compute an expert here; measured once, kept for the next run, corrected by running.

The file, `costs.json` in the user's folder, holds a row for each machine, thread count and kind of expert.
"""

import json
import logging
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gmoe.experts.machine import Machine
from gmoe.gguf.layout import ExpertLayout
from gmoe.whole import whole

WEIGHT = 0.05  # of one pass in what is known


@dataclass(frozen=True)
class Costs:
    """What has been measured; `rate` are bytes/s at which weights are computed with, for one row."""

    bandwidth: float
    latency: float
    expert_seconds: float
    row_seconds: float
    rate: float
    layer_seconds: float = 0.0  # the rest of a decode pass, by layer; 0: no pass was seen yet
    passes: int = 0

    def machine(self, layers: int, fixed: int) -> Machine:
        """For replays of a model with so many routed layers and bytes of other weights."""
        rest = self.layer_seconds or fixed / self.rate / max(layers, 1)
        return Machine(
            bandwidth=self.bandwidth,
            latency=self.latency,
            expert_seconds=self.expert_seconds,
            row_seconds=self.row_seconds,
            layer_seconds=rest,
        )


@dataclass(frozen=True)
class Seen:
    """Sums of the counters of a store; differences of two are what happened between."""

    asked: int = 0
    bytes: int = 0
    compute: float = 0.0  # seconds in the experts' kernels
    reading: float = 0.0  # seconds in which a layer's own reads were under way
    stalled: float = 0.0


class CostModel:
    """The row of one kind of expert; `costs` is None until it is measured."""

    def __init__(self, folder: Path, key: str):
        self.path, self.key = folder / "costs.json", key
        self.costs: Costs | None = None
        try:
            row = self._read()[key]
            if all(isinstance(value, int | float) and value >= 0 for value in row.values()):
                self.costs = Costs(**row)  # type: ignore[arg-type]
        except (KeyError, TypeError, AttributeError):
            pass

    def learn(self, layers: int, seconds: float, before: Seen, after: Seen) -> None:
        """One decode pass of one row, of so many routed layers, took so long."""
        if self.costs is None:
            return
        asked, read = after.asked - before.asked, after.bytes - before.bytes
        compute, stalled = after.compute - before.compute, after.stalled - before.stalled
        seen: dict[str, float] = {}
        if asked and compute > 0:
            seen["expert_seconds"] = compute / asked
        if read and after.reading > before.reading:
            seen["bandwidth"] = read / (after.reading - before.reading)
        rest = (seconds - compute - stalled) / max(layers, 1)
        seen["layer_seconds"] = max(rest, 1e-7)
        weight = max(WEIGHT, 1 / (self.costs.passes + 1))
        moved = {name: (1 - weight) * getattr(self.costs, name) + weight * value for name, value in seen.items()}
        self.costs = replace(self.costs, passes=self.costs.passes + 1, **moved)

    def save(self) -> None:
        """Keep it; where that is impossible it is logged, and nothing else happens."""
        if self.costs is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole(self.path) as part:
                part.write_text(json.dumps(self._read() | {self.key: asdict(self.costs)}, indent=1))
        except OSError as error:
            text = "%s cannot be written (%s): costs are measured again next time"
            logging.getLogger("gmoe").warning(text, self.path, error.strerror)

    def _read(self) -> dict[str, dict[str, float]]:
        try:
            rows = json.loads(self.path.read_text())
            return rows if isinstance(rows, dict) else {}
        except (OSError, ValueError):
            return {}


def key(layout: ExpertLayout, threads: int, activations: str) -> str:
    """What tells rows apart."""
    kinds = {
        f"{'+'.join(s.format.name for s in stacks if s is not None)}:{layout.expert_bytes(layer)}"
        for layer, stacks in layout.layers.items()
    }
    return "|".join([platform.node(), f"{threads} threads", activations, *sorted(kinds)])
