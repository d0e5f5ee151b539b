"""AdapMoE's slots by layer (arXiv 2408.10284): the split of the budget with the fewest misses, by measured curves.

The curve of a layer says how many asks its n most used experts would have served; the paper has a formula, for eight
experts of which two are used. Counting most used first makes it concave, so that giving each slot to the layer that
gains most is the dynamic programme's own answer. These experts fill a layer's slots; in the paper it is by LRU.
"""

from collections.abc import Sequence

import numpy as np

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import Floats, Ids, Probabilities, Shape, WorkingSet, within


class Policy(WorkingSet):
    def __init__(self, shape: Shape, memory: float = 0.99):
        self.memory = within("memory", memory, 0, 1)
        self.count = np.zeros(shape)

    def observe(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:
        self.count[layer] *= self.memory
        self.count[layer][np.unique(ids)] += 1

    def quotas(self, slots: int) -> list[int]:
        """Slots of each layer; they sum to `slots` or to what was ever used."""
        gains = np.sort(self.count, axis=1)[:, ::-1]  # [L, E], of the n-th slot
        best = np.argsort(-gains, axis=None, kind="stable")[:slots]
        best = best[gains.flat[best] > 0]
        return [int(n) for n in np.bincount(best // self.count.shape[1], minlength=len(self.count))]

    def plan(self, slots: int) -> Sequence[ExpertId]:
        return [
            ExpertId(layer, int(expert))
            for layer, quota in enumerate(self.quotas(slots))
            for expert in np.argsort(-self.count[layer], kind="stable")[:quota]
        ]
