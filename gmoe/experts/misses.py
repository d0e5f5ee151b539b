"""What a miss policy's answers make of a layer's routing: pure bookkeeping over ids and weights."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.expert_id import MERGED, ExpertId, Miss, Residency, Tier
from gmoe.experts.policy import Floats, Ids, MissPolicy, PolicyError, Scores

LACKS = "a substitute is resident, a twin needs a model of twins, the CPU a second tier"


@dataclass
class Served:
    """Who serves each place [T, k] of a routing; -1: not this one."""

    ids: Ids  # experts at full precision
    weights: Floats
    twins: Ids
    merged: NDArray[np.bool_]  # the layer's mean expert
    load: list[ExpertId] = field(default_factory=list)  # of `ids`, those to be read
    behind: list[ExpertId] = field(default_factory=list)  # served by others now, worth reading for the next time
    cpu: list[ExpertId] = field(default_factory=list)  # of `ids`, those to be computed in host memory
    tally: list[tuple[str, float]] = field(default_factory=list)  # each action and the routed weight it was about

    @property
    def places(self) -> Ids:
        """The number of the expert that serves, 0 for the layer's mean, -1 where nobody does."""
        return np.where(self.merged, 0, np.maximum(self.ids, self.twins)).astype(np.int32)


def resolve(
    policy: MissPolicy,
    absent: Iterable[ExpertId],
    ids: Ids,
    weights: Floats,
    residency: Residency,
    scores: Callable[[], Scores] | None,
) -> Served:
    """Ask the policy about each absent expert and do as it says.

    A token that loses an expert gets the weights that the router would have given the others; where the router tells
    no scores, they keep theirs. Raises `PolicyError` where it cannot be done as it says.
    """
    out = Served(ids.copy(), weights, np.full_like(ids, -1), np.zeros(ids.shape, bool))
    skipped = np.zeros(ids.shape, bool)
    misses = list(describe(list(absent), ids, weights, residency))
    policy.meet(misses)
    for miss in misses:
        where = ids == miss.id.expert
        action = policy.resolve(miss, residency)
        out.tally.append((action.how, float(weights[where].sum())))
        if action.how == "load":
            out.load.append(miss.id)
        elif action.how == "cpu" and miss.tier is Tier.HOST:
            out.cpu.append(miss.id)
        elif action.how == "skip":
            skipped |= where
            out.ids[where] = -1
        elif action.how == "twin" and residency.has_twin(miss.id):
            out.twins[where] = miss.id.expert
            out.ids[where] = -1
            out.behind += [miss.id] if action.behind else []
        elif action.how == "substitute" and action.expert == MERGED:
            out.merged |= where
            out.ids[where] = -1
        elif action.how == "substitute" and _is_here(action.expert, residency.here(miss.id.layer)):
            out.ids[where] = action.expert
        else:
            raise PolicyError(f"{type(policy).__module__}: {action} is no answer to the absence of {miss.id}: {LACKS}")
    rows = skipped.any(-1)
    if rows.any():
        weights = np.where(skipped, 0, weights).astype(weights.dtype)
        if scores is not None:
            weights[rows] = scores().weigh(np.where(skipped, -1, ids))[rows]
        out.weights = weights
    return out


def _is_here(expert: int, here: NDArray[np.bool_]) -> bool:
    return isinstance(expert, int | np.integer) and 0 <= expert < len(here) and bool(here[expert])


def describe(absent: list[ExpertId], ids: Ids, weights: Floats, residency: Residency) -> Iterable[Miss]:
    """What a policy may know of each miss."""
    share = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30)  # [T, k]
    order = np.argsort(-share, -1, kind="stable")
    ranked = np.take_along_axis(share, order, -1)
    above = np.empty_like(share)
    np.put_along_axis(above, order, np.cumsum(ranked, -1) - ranked, -1)
    k = ids.shape[1]
    spread = -(share * np.log(np.maximum(share, 1e-30))).sum(-1) / np.log(k) if k > 1 else np.zeros(len(ids))
    wanted = frozenset(e for e in ids.ravel().tolist() if e >= 0)
    for id in absent:
        where = ids == id.expert
        tokens = where.any(-1)
        yield Miss(
            id,
            weight=float(weights[where].max()),
            tokens=int(tokens.sum()),
            tier=residency.tier(id),
            arriving=residency.arriving(id),
            share=float(share[where].max()),
            above=float(above[where].min()),
            k=k,
            entropy=float(spread[tokens].min()),
            missing=len(absent) / len(wanted),
            wanted=wanted,
        )
