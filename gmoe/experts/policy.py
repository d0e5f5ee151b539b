"""The interfaces of the policies that decide on integers alone, and how one is found by its file's name."""

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping, Sequence
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.expert_id import ExpertId

Ids = NDArray[np.integer]  # [T, k]
Floats = NDArray[np.floating]
Shape = tuple[int, int]  # layers, experts a layer


class PolicyError(ValueError):
    """A policy or a knob that does not exist, or a policy that lacks what it needs here."""


class EvictionPolicy(ABC):
    """Which expert leaves a full tier. One object a tier; called from one thread."""

    def begin(self) -> None:  # noqa: B027
        """A new request starts."""

    def observe(self, layer: int, ids: Ids, weights: Floats) -> None:  # noqa: B027
        """A layer's routing, ids and weights [T, k], before its experts are looked up."""

    @abstractmethod
    def hit(self, id: ExpertId) -> None:
        """A resident expert was asked for."""

    @abstractmethod
    def insert(self, id: ExpertId) -> None:
        """An absent expert became resident."""

    @abstractmethod
    def victim(self, pinned: Container[ExpertId]) -> ExpertId:
        """The resident expert that should leave, never a pinned one; changes no residency. One must be unpinned."""

    @abstractmethod
    def remove(self, id: ExpertId) -> None:
        """A resident expert has left."""


class ScoredEviction(EvictionPolicy):
    """The resident expert with the lowest score leaves, of equals the one unused for longest."""

    def __init__(self, shape: Shape):
        self.resident = np.zeros(shape, dtype=bool)
        self.used = np.zeros(shape, dtype=np.int64)  # the clock at the last use
        self.clock = 0

    @abstractmethod
    def score(self) -> Floats:
        """[layers, experts]; the lowest leaves first."""

    def touch(self, id: ExpertId) -> None:
        """Called for every hit and insert; extend it to count."""
        self.clock += 1
        self.used[id] = self.clock

    def hit(self, id: ExpertId) -> None:
        self.touch(id)

    def insert(self, id: ExpertId) -> None:
        self.resident[id] = True
        self.touch(id)

    def remove(self, id: ExpertId) -> None:
        self.resident[id] = False

    def victim(self, pinned: Container[ExpertId]) -> ExpertId:
        where = np.flatnonzero(self.resident)
        score = self.score().ravel()[where].astype(np.float64)
        while len(where):
            lowest = np.flatnonzero(score == score.min())
            n = lowest[self.used.ravel()[where[lowest]].argmin()]
            id = ExpertId(*divmod(int(where[n]), self.resident.shape[1]))
            if id not in pinned:
                return id
            where, score = np.delete(where, n), np.delete(score, n)
        raise ValueError("every resident expert is pinned")


class Prefetcher(ABC):
    """Which experts will be wanted soon. Called once a layer, after its kernels are launched."""

    def begin(self) -> None:  # noqa: B027
        """A new request starts."""

    @abstractmethod
    def predict(self, layer: int, hidden: Any, ids: Ids, weights: Floats) -> Iterable[ExpertId]:
        """Experts of later layers, most urgent first; `hidden` [T, D] is what the router saw, None in a replay."""


class WorkingSet(ABC):
    """What to keep for a while: a slow clock above eviction."""

    def begin(self, task: str = "") -> None:  # noqa: B027
        """A new request starts."""

    def observe(self, layer: int, ids: Ids, weights: Floats) -> None:  # noqa: B027
        """A layer's routing, ids and weights [T, k]."""

    @abstractmethod
    def plan(self, slots: int) -> Sequence[ExpertId]:
        """At most `slots` experts worth keeping now, most wanted first; none: no opinion."""


def names(kind: str) -> list[str]:
    """The policies of a kind: the files of its folder."""
    folder = Path(__file__).parent / kind
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def load(kind: str, name: str, knobs: Mapping[str, Any] | None = None, **given: Any) -> Any:
    """The class `Policy` of gmoe/experts/<kind>/<name>.py, built with all `knobs` and with what it names of `given`.

    `knobs` come from the user and must exist; `given` is what the caller has to offer. Raises `PolicyError`.
    """
    if name not in names(kind):
        raise PolicyError(f"{kind}: no policy is called {name!r}; there are {', '.join(names(kind))}")
    policy = import_module(f"gmoe.experts.{kind}.{name}").Policy
    takes = signature(policy).parameters
    knobs = knobs or {}
    for knob in knobs:
        if knob not in takes:
            raise PolicyError(f"{kind}.{name}: no knob is called {knob!r}; there are {', '.join(takes) or 'none'}")
    offered = {key: value for key, value in given.items() if key in takes} | dict(knobs)
    lacking = [key for key, p in takes.items() if p.default is Parameter.empty and key not in offered]
    if lacking:
        raise PolicyError(f"{kind}.{name}: needs {', '.join(lacking)}, which are not known here")
    return policy(**offered)


def top(scores: Floats, layer: int, n: int) -> list[ExpertId]:
    """The `n` experts of a layer with the highest positive scores [E], highest first."""
    best = np.argsort(-scores, kind="stable")[:n]
    return [ExpertId(layer, int(e)) for e in best if scores[e] > 0]
