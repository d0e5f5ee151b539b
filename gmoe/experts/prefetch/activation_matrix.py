"""MoE-Infinity (arXiv 2401.14361): the recorded requests whose activation matrices are nearest foretell this one.

The matches are summed by likeness and each layer is normed; the next layers are the most urgent (their shares times
1 - distance / layers). The paper foretells all layers; here `ahead` of them are, and as many experts as a token has,
since more would be read in vain. The collection grows with every request; a run keeps it in MODEL.trace.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.matrices import Collection
from gmoe.experts.policy import Floats, Ids, Prefetcher, Probabilities, Shape


class Policy(Prefetcher):
    """`matrices` [n, L, E] is what earlier runs left; matched is this "iteration" (pass), or all of the "request"."""

    def __init__(
        self, shape: Shape, matrices: Floats | None = None, capacity: int = 120, ahead: int = 2,
        scope: str = "iteration",
    ):  # fmt: skip
        self.n_layers = shape[0]
        self.ahead = ahead
        self.collection = Collection(shape, matrices, capacity, scope)

    def begin(self) -> None:
        self.collection.begin()

    def predict(
        self, layer: int, hidden: Any, ids: Ids, weights: Floats, probabilities: Probabilities
    ) -> Iterable[ExpertId]:
        self.collection.observe(layer, ids)
        found: list[tuple[float, ExpertId]] = []
        for later in range(layer + 1, min(layer + 1 + self.ahead, self.n_layers)):
            share = self.collection.foretell(later)
            decay = 1 - (later - layer) / self.n_layers
            best = np.argsort(-share, kind="stable")[: ids.shape[1]]
            found += [(share[e] * decay, ExpertId(later, int(e))) for e in best if share[e] > 0]
        found.sort(key=lambda chance: -chance[0])
        return [id for _, id in found]
