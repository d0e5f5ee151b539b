"""What a trace says about the observations on which the papers' caches rest; all take requests of known tasks."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.analysis import counts
from gmoe.experts.trace import Trace

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Requests:
    """A trace, request by request."""

    tasks: list[str]  # [requests]
    matrices: NDArray[np.int64]  # [requests, layers, experts] how many tokens each expert served
    ids: list[NDArray[np.int16]]  # of each request [tokens, layers, k]

    @classmethod
    def of(cls, trace: Trace) -> "Requests":
        """Every token must have passed every layer."""
        request, layer = trace.rows["request"], trace.rows["layer"]
        matrices, ids = [], []
        for number in range(len(trace.header.tasks)):
            mine = request == number
            matrices.append(counts(trace, mine))
            by_layer = []
            for n in range(trace.header.n_layer):
                rows = np.flatnonzero(mine & (layer == n))
                by_layer.append(trace.ids[rows[np.argsort(trace.rows["position"][rows], kind="stable")]])
            ids.append(np.stack(by_layer, 1))
        return cls(list(trace.header.tasks), np.stack(matrices), ids)

    def by_task(self) -> dict[str, NDArray[np.int64]]:
        """[layers, experts] of each task."""
        names = np.array(self.tasks)
        return {task: self.matrices[names == task].sum(0) for task in dict.fromkeys(self.tasks)}


def entropy(weights: NDArray[np.number]) -> Floats:
    """Bits, over the last axis."""
    total = weights.sum(-1, keepdims=True)
    share = np.divide(weights, total, out=np.zeros(weights.shape), where=total > 0)
    logs = np.log2(share, out=np.zeros(weights.shape), where=share > 0)
    return -(share * logs).sum(-1)


def evenness(weights: NDArray[np.number]) -> Floats:
    """Entropy over the last axis, 1 where all are used alike."""
    return entropy(weights) / np.log2(weights.shape[-1])


def domain_information(requests: Requests, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Bits a choice tells of its task, by layer; and what shuffled tasks seem to tell, which is the error."""

    def bits(tasks: list[str]) -> Floats:
        table = np.stack(list(Requests(tasks, requests.matrices, []).by_task().values()), 1)  # [layers, tasks, experts]
        shares = table.sum(-1) / table.sum((-2, -1))[:, None]
        return entropy(table.sum(1)) - (shares * entropy(table)).sum(-1)

    return bits(requests.tasks), bits([str(task) for task in rng.permutation(requests.tasks)])


def kept(requests: Requests) -> Floats:
    """Share of a token's experts that served the token before it too, by layer."""
    shares = []
    for ids in requests.ids:
        same = (ids[1:, :, :, None] == ids[:-1, :, None, :]).any(-1)  # [tokens - 1, layers, k]
        shares.append(same.mean((0, 2)))
    return np.mean(shares, 0)


def reuse_distances(requests: Requests) -> NDArray[np.int64]:
    """Tokens since an expert last served, over all choices that were not the request's first of it."""
    gaps = []
    for ids in requests.ids:
        for layer in range(ids.shape[1]):
            last: dict[int, int] = {}
            for at, chosen in enumerate(ids[:, layer].tolist()):
                for expert in chosen:
                    if expert in last:
                        gaps.append(at - last[expert])
                    last[expert] = at
    return np.array(gaps, np.int64)


def next_layer(requests: Requests, n_expert: int) -> dict[str, float]:
    """Share of the experts of layers 1.. that k guesses name.

    Learned on the first half of the requests, tried on the rest.
    `popular` guesses the layer's favourites, `task` those of the request's task, `before` the experts of the token
    before, `transition` those that most often follow the chosen ones of the layer below.
    """
    middle = len(requests.ids) // 2
    learn, test = range(middle), range(middle, len(requests.ids))
    k = requests.ids[0].shape[2]
    n_layer = requests.ids[0].shape[1]
    popular = requests.matrices[learn].sum(0)
    tasks = {t: requests.matrices[[n for n in learn if requests.tasks[n] == t]].sum(0) for t in set(requests.tasks)}
    follow = np.zeros((n_layer, n_expert, n_expert))  # of the layer below, of this one
    for n in learn:
        ids = requests.ids[n]
        for layer in range(1, n_layer):
            pairs = ids[:, layer - 1, :, None].astype(np.int64) * n_expert + ids[:, layer, None, :]
            follow[layer] += np.bincount(pairs.ravel(), minlength=n_expert**2).reshape(n_expert, n_expert)
    chance = follow / np.maximum(follow.sum(-1, keepdims=True), 1)
    hits: dict[str, list[float]] = {"popular": [], "task": [], "before": [], "transition": []}
    for n in test:
        ids = requests.ids[n]
        for layer in range(1, n_layer):
            actual = ids[1:, layer]
            fixed = {"popular": popular[layer], "task": tasks[requests.tasks[n]][layer]}
            guesses = {
                name: np.broadcast_to(np.argsort(-count, kind="stable")[:k], actual.shape)
                for name, count in fixed.items()
            }
            guesses["before"] = ids[:-1, layer]
            guesses["transition"] = np.argsort(-chance[layer][ids[1:, layer - 1]].sum(1), kind="stable")[:, :k]
            for name, guess in guesses.items():
                hits[name].append(float((actual[:, :, None] == guess[:, None, :]).any(-1).mean()))
    return {name: float(np.mean(some)) for name, some in hits.items()}


def similarities(requests: Requests) -> tuple[Floats, Floats]:
    """Cosines of the requests' activation matrices: [requests, requests] raw, and after taking away the mean matrix."""
    flat = (requests.matrices / requests.matrices.sum((1, 2), keepdims=True)).reshape(len(requests.tasks), -1)

    def cosines(rows: Floats) -> Floats:
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit @ unit.T

    return cosines(flat), cosines(flat - flat.mean(0))


def within_between(cosines: Floats, tasks: list[str]) -> tuple[float, float]:
    """The mean over pairs of requests of one task, and of two."""
    names = np.array(tasks)
    same = names[:, None] == names[None, :]
    other = ~np.eye(len(names), dtype=bool)
    return float(cosines[same & other].mean()), float(cosines[~same].mean())


def layer_correlation(requests: Requests) -> float:
    """Mean correlation of an expert's load in a request with the same number's load in the layer above it."""
    found = [
        np.corrcoef(matrix[layer], matrix[layer + 1])[0, 1]
        for matrix in requests.matrices
        for layer in range(matrix.shape[0] - 1)
    ]
    return float(np.nanmean(found))


def buddies(requests: Requests, n_expert: int) -> tuple[float, float]:
    """Share of an expert's company that its nearest three take: measured, and were company as popularity has it."""
    n_layer = requests.ids[0].shape[1]
    measured, expected = [], []
    for layer in range(n_layer):
        together = np.zeros((n_expert, n_expert))
        for ids in requests.ids:
            pairs = ids[:, layer, :, None].astype(np.int64) * n_expert + ids[:, layer, None, :]
            together += np.bincount(pairs.ravel(), minlength=n_expert**2).reshape(n_expert, n_expert)
        np.fill_diagonal(together, 0)
        popularity = together.sum(0)
        for expert in np.flatnonzero(together.sum(1)):
            alone = np.delete(popularity, expert)
            measured.append(np.sort(together[expert])[-3:].sum() / together[expert].sum())
            expected.append(np.sort(alone)[-3:].sum() / alone.sum())
    return float(np.mean(measured)), float(np.mean(expected))
