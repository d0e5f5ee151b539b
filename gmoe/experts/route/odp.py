"""MC's online dynamic pruning (2410.06270): an expert far lighter than the token's first is not run."""

import numpy as np

from gmoe.experts.expert_id import Residency
from gmoe.experts.policy import Floats, Ids, RoutePolicy, Scores, within


class Policy(RoutePolicy):
    """Dropped is who weighs less than `beta` times the token's heaviest; 0: exact.

    The paper has it for two experts, with a beta of each layer (0.4 to 0.62) in the ten layers that mind least, and
    spares the tokens of a prompt that get most attention, which nobody knows here: it is one beta for all.
    """

    def __init__(self, beta: float = 0.4):
        self.beta = within("beta", beta, 0, 1)

    def route(self, layer: int, ids: Ids, weights: Floats, residency: Residency, scores: Scores) -> tuple[Ids, Floats]:
        light = weights < self.beta * weights.max(-1, keepdims=True)
        return scores.choose(np.where(light, -1, ids), ids, weights)
