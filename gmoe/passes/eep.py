"""eep: a search without gradients for the experts to keep (EEP, 2407.00945), its first phase: rows are kept or not.

The paper's second phase merges experts by continuous matrices, which no stock file can say.
"""

from collections.abc import Callable, Iterable

import numpy as np

from gmoe.passes.prune import Kept

POPULATION, MUTATION, CROSSOVER = 30, 0.15, 0.3  # the authors' configuration
Loss = Callable[[Kept], float]
Told = Callable[[int, float], None]  # candidates tried, the least loss so far


def search(
    starts: Iterable[Kept],
    loss: Loss,
    n_expert: int,
    groups: int,
    iterations: int,
    seed: int,
    told: Told = lambda tried, least: None,
) -> tuple[Kept, float]:
    """The choice with the least loss that was found, and its loss, after `iterations` candidates besides `starts`.

    It is no worse than any start. Of two of the best `POPULATION` the better one is changed, up to `MUTATION` of its
    experts for others of their group, or, in `CROSSOVER` of all cases, crossed with another layer by layer.
    """
    rng, known, pool = np.random.default_rng(seed), set[tuple[tuple[int, ...], ...]](), list[tuple[float, Kept]]()

    def meet(kept: Kept) -> None:
        if (key := tuple(kept.values())) not in known:
            known.add(key)
            pool.append((loss(kept), kept))
            pool.sort(key=lambda each: each[0])
            del pool[POPULATION:]

    def parent() -> Kept:
        return pool[int(rng.integers(len(pool), size=2).min())][1]

    for kept in starts:
        meet(kept)
    for tried in range(iterations):
        if len(pool) > 1 and rng.random() < CROSSOVER:
            one, two = parent(), parent()
            meet({layer: (one if rng.random() < 0.5 else two)[layer] for layer in one})
        else:
            share = MUTATION ** rng.uniform(1, 3)  # beside a good start that many changes at once never were better
            meet(mutated(parent(), share, n_expert // groups, rng))
        told(tried + 1, pool[0][0])
    return pool[0][1], pool[0][0]


def mutated(kept: Kept, share: float, size: int, rng: np.random.Generator) -> Kept:
    """A `share` of the experts, one at least, exchanged for others of their group of `size` that were not kept."""
    now = {layer: list(stays) for layer, stays in kept.items()}
    places = [(layer, n) for layer, stays in kept.items() for n in range(len(stays))]
    for place in rng.choice(len(places), max(1, round(share * len(places))), replace=False).tolist():
        layer, n = places[place]
        first = now[layer][n] // size * size
        others = sorted(set(range(first, first + size)).difference(now[layer]))
        if others:
            now[layer][n] = int(rng.choice(others))
    return {layer: tuple(sorted(stays)) for layer, stays in now.items()}
