"""Routing traces for tests: one made up with locality, and those of the shared folder."""

from pathlib import Path

import numpy as np

from gmoe.experts.recorder import Recorder
from gmoe.experts.trace import Header, Trace

SHARED = Path(__file__).parents[2] / "shared" / "traces"


def synthetic(
    n_layer: int = 4, n_expert: int = 16, k: int = 2, steps: int = 60, requests: int = 3, tastes: int = 3
) -> Trace:
    """Requests with one of `tastes` each, in turn, a prefill of five tokens each; the same on every call."""
    random = np.random.default_rng(7)
    recorder = Recorder(Header("made up", "f00d", n_layer, n_expert, (1000,) * n_layer))
    chances = random.dirichlet(np.full(n_expert, 0.3), size=(tastes, n_layer)) + 1e-6
    for request in range(requests):
        taste = chances[request % tastes]
        for step in range(steps):
            rows = 5 if step == 0 else 1
            position = np.arange(rows) if step == 0 else np.array([4 + step])
            recorder.begin_step(np.full(rows, request), np.full(rows, int(step > 0)), position)
            for layer in range(n_layer):
                p = taste[layer] / taste[layer].sum()
                ids = np.stack([random.choice(n_expert, k, replace=False, p=p) for _ in range(rows)])
                recorder.record(layer, ids, np.full(ids.shape, 1 / k, np.float32))
    return recorder.trace()
