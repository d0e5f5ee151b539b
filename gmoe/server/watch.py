"""Watch: which experts a running model used lately, for the live view; it costs nothing while nobody looks."""

import time
from collections import deque
from typing import Any

import numpy as np

from gmoe.experts.expert import Routing
from gmoe.experts.expert_id import ExpertId
from gmoe.llm import LLM
from gmoe.server.ollama_models import experts

WINDOW = 30  # seconds that are shown
PATIENCE = 10.0  # seconds without a look after which nothing is counted any more
LOSSY = ("twin", "skip", "substitute")


class Watch:
    """Counts a model's routing in buckets of a second; `look` begins it, and is the only way to see it."""

    def __init__(self, llm: LLM):
        self._llm = llm
        self.layers = sorted(llm.layout.layers)
        self._row = {layer: n for n, layer in enumerate(self.layers)}
        self._shape = (len(self.layers), llm.hparams.n_expert)
        self._ring: deque[tuple[int, np.ndarray]] = deque(maxlen=WINDOW)
        self._looked = 0.0
        self._before: tuple[float, float] = (time.monotonic(), 0.0)
        self._rate = 0.0

    def look(self) -> dict[str, Any]:
        """What the page shows: counts [layers, experts] of the last seconds, what is resident, and the counters."""
        now = self.attend()
        stats = experts(self._llm)
        self._measure(now, stats["generated_tokens"])
        counts = np.zeros(self._shape, dtype=np.int64)
        for second, bucket in list(self._ring):
            if second > int(now) - WINDOW:
                counts += bucket
        return {
            "layers": self.layers,
            "n_expert": self._shape[1],
            "n_expert_used": self._llm.hparams.n_expert_used,
            "window_seconds": WINDOW,
            "counts": counts.tolist(),
            "resident": self._resident().astype(int).tolist(),
            "tiers": self._tiers(),
            "tokens_per_second": self._rate,
            "approximated": approximated(stats, stats["prompt_tokens"] + stats["generated_tokens"], len(self.layers)),
            "stats": stats,
        }

    def attend(self) -> float:
        """Begin to count, or go on; the time of now."""
        if self not in self._llm.dispatch.observers:
            self._llm.dispatch.observers = [*self._llm.dispatch.observers, self]
        self._looked = time.monotonic()
        return self._looked

    def __call__(self, layer: int, routing: Routing) -> None:
        """One routing, in the engine's thread."""
        now = time.monotonic()
        if now - self._looked > PATIENCE:
            self._llm.dispatch.observers = [one for one in self._llm.dispatch.observers if one is not self]
            return
        if layer not in self._row:
            return
        if not self._ring or self._ring[-1][0] != int(now):
            self._ring.append((int(now), np.zeros(self._shape, dtype=np.int64)))
        ids = np.asarray(routing.topk_ids).ravel()
        ids = ids[(ids >= 0) & (ids < self._shape[1])]
        self._ring[-1][1][self._row[layer]] += np.bincount(ids, minlength=self._shape[1])

    def _measure(self, now: float, tokens: float) -> None:
        then, before = self._before
        if now - then >= 0.5:
            self._rate = max(0.0, tokens - before) / (now - then) if before or tokens else 0.0
            self._before = (now, tokens)

    def _resident(self) -> np.ndarray:
        store = self._llm.store
        here = [[store.resident(ExpertId(layer, n)) for n in range(self._shape[1])] for layer in self.layers]
        return np.array(here, dtype=bool).reshape(self._shape)

    def _tiers(self) -> list[dict[str, Any]]:
        """Bytes of experts by where they are now."""
        layout = self._llm.layout
        sizes = np.array([layout.expert_bytes(layer) for layer in self.layers], dtype=np.int64)
        here = int((self._resident().sum(axis=1) * sizes).sum())
        all = int(sizes.sum()) * self._shape[1]
        return [{"name": "in memory", "bytes": here}, {"name": "on disk", "bytes": all - here}]


def approximated(stats: dict[str, Any], tokens: float, n_layers: int) -> float:
    """The share of the routed weight that lossy actions served, where a token's weights in a layer sum to one."""
    mass = sum(stats.get("actions", {}).get(name, {}).get("mass", 0.0) for name in LOSSY)
    return float(mass / (tokens * n_layers)) if tokens and n_layers else 0.0
