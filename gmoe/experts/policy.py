"""The interfaces of the policies that decide on integers alone, and how one is found by its file's name.

Arrays that a policy is given are for reading: what it changed there would be computed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmoe.experts.expert_id import Action, ExpertId, Miss, Residency

Ids = NDArray[np.integer]  # [T, k]
Floats = NDArray[np.floating]
Shape = tuple[int, int]  # layers, experts a layer
Probabilities = Callable[[], Floats] | None  # of all experts [T, E], reckoned when asked for; None: nobody knows
MOST = 10**9  # of any knob


class PolicyError(ValueError):
    """A policy or a knob that does not exist, or a policy that lacks what it needs here."""


class EvictionPolicy(ABC):
    """Which expert leaves a full tier. One object a tier; called from one thread."""

    def begin(self) -> None:  # noqa: B027
        """A new request starts."""

    def observe(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:  # noqa: B027
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
    """The resident expert with the lowest score leaves, of equals the one unused for longest.

    The next few victims are lined up together, until an observation or a hit changes the scores.
    """

    def __init__(self, shape: Shape):
        self.used = np.zeros(shape, dtype=np.int64)  # the clock at the last use
        self.clock = 0
        self._n_expert = shape[1]
        self._place: dict[ExpertId, int] = {}  # of the residents, in what follows
        self._residents: list[ExpertId] = []
        self._flat = np.zeros(shape[0] * shape[1], dtype=np.intp)  # where they are in `used` and the scores
        self._line: list[ExpertId] = []  # the next to leave is the last
        self._newcomers: list[ExpertId] = []  # since it was made; they are not in it

    @abstractmethod
    def score(self) -> Floats:
        """[layers, experts]; the lowest leaves first. It changes with an observation or a touch only."""

    def learn(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:
        """What `observe` tells."""

    def touch(self, id: ExpertId) -> None:
        """Called for every hit and insert; extend it to count."""
        self.clock += 1
        self.used[id] = self.clock

    def observe(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:
        self._line.clear()
        self.learn(layer, ids, weights, probabilities)

    def hit(self, id: ExpertId) -> None:
        self._line.clear()
        self.touch(id)

    def insert(self, id: ExpertId) -> None:
        self._newcomers.append(id)
        at = self._place[id] = len(self._residents)
        self._residents.append(id)
        self._flat[at] = id[0] * self._n_expert + id[1]
        self.touch(id)

    def remove(self, id: ExpertId) -> None:
        at, last = self._place.pop(id), self._residents.pop()
        if last is not id and last != id:
            self._residents[at], self._place[last] = last, at
            self._flat[at] = self._flat[len(self._residents)]

    def victim(self, pinned: Container[ExpertId]) -> ExpertId:
        line = self._line
        if line and all(id in pinned for id in self._newcomers):
            while line:
                if (id := line[-1]) in self._place and id not in pinned:
                    return id
                line.pop()
        self._newcomers.clear()
        where = self._flat[: len(self._residents)]
        score, used = self.score().take(where), self.used.take(where)
        n = len(pinned) + 8 if isinstance(pinned, Sized) else len(where)
        while True:
            if n >= len(where):
                order = np.lexsort((used, score))
            else:
                low = np.flatnonzero(score <= np.partition(score, n)[n])
                order = low[np.lexsort((used[low], score[low]))[: max(n, 1)]]
            residents = self._residents
            self._line = [id for at in order.tolist() if (id := residents[at]) not in pinned][::-1]
            if self._line:
                return self._line[-1]
            if n >= len(where):
                raise ValueError("every resident expert is pinned")
            n = len(where)


class Prefetcher(ABC):
    """Which experts will be wanted soon. Called once a layer, after its kernels are launched."""

    def begin(self) -> None:  # noqa: B027
        """A new request starts."""

    @abstractmethod
    def predict(
        self, layer: int, hidden: Any, ids: Ids, weights: Floats, probabilities: Probabilities
    ) -> Iterable[ExpertId]:
        """Experts of later layers, most urgent first; `hidden` [T, D] is what the router saw, None in a replay.

        Layers without experts, or behind the last, are passed over; a number that no expert has is a `PolicyError`.
        """


class WorkingSet(ABC):
    """What to keep for a while: a slow clock above eviction."""

    def begin(self, task: str = "") -> None:  # noqa: B027
        """A new request starts."""

    def observe(self, layer: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> None:  # noqa: B027
        """A layer's routing, ids and weights [T, k]."""

    @abstractmethod
    def plan(self, slots: int) -> Sequence[ExpertId]:
        """At most `slots` experts worth keeping now, most wanted first; none: no opinion. Checked as by `predict`."""


@dataclass(frozen=True)
class Scores:
    """What a router thought of every expert; experts outside a chosen group have a selection of -inf."""

    selection: Floats  # [T, E], by which experts are chosen
    probabilities: Floats  # [T, E], from which weights come
    weigh: Callable[[Ids], Floats]  # ids [T, k], -1: nobody -> the weights that the architecture gives them

    def choose(self, fresh: Ids, ids: Ids, weights: Floats) -> tuple[Ids, Floats]:
        """The choice `fresh` [T, k]; a row with the same experts as `ids` stays as it is, bit for bit."""
        same = (np.sort(fresh, -1) == np.sort(ids, -1)).all(-1)
        if same.all():
            return ids, weights
        fresh = np.where(same[:, None], ids, fresh).astype(ids.dtype)
        return fresh, np.where(same[:, None], weights, self.weigh(fresh)).astype(weights.dtype)


class RoutePolicy(ABC):
    """Which experts to ask for: the router's own choice, or bent towards what is here. Changes no residency."""

    def begin(self) -> None:  # noqa: B027
        """A new request starts."""

    @abstractmethod
    def route(self, layer: int, ids: Ids, weights: Floats, residency: Residency, scores: Scores) -> tuple[Ids, Floats]:
        """The router's choice, ids and weights [T, k] -> the choice to serve, of the same shape; ids of -1: nobody.

        What is to stay is returned as it was given; another shape, or a number that no expert has, is a `PolicyError`.
        """


class MissPolicy(ABC):
    """What to do about a wanted expert that is not resident. It decides, dispatch acts; it must not block."""

    def meet(self, misses: Sequence[Miss]) -> None:  # noqa: B027
        """All misses of a layer and pass, before each of them is resolved."""

    @abstractmethod
    def resolve(self, miss: Miss, residency: Residency) -> Action:
        """One of the five actions; "substitute" names a resident expert of the same layer, "twin" needs one.

        Anything else is a `PolicyError`.
        """


def within(name: str, value: float, low: float, high: float) -> float:
    """A knob's value; `PolicyError` outside low..high."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise PolicyError(f"the knob {name} is {value!r}; it must be a number from {low:g} to {high:g}")
    return value


def reading(array: NDArray[Any]) -> NDArray[Any]:
    """The same memory, not to be written to."""
    view = array.view()
    view.flags.writeable = False
    return view


def real(ids: Iterable[ExpertId], layers: Container[int], n_expert: int) -> Iterator[ExpertId]:
    """Of the experts that a policy foretold those in `layers`; a number that no expert has is a `PolicyError`."""
    for id in ids:
        if id.layer in layers:
            if not 0 <= id.expert < n_expert:
                raise PolicyError(f"{id!r} is foretold, and a layer has {n_expert} experts")
            yield id


def names(kind: str) -> list[str]:
    """The policies of a kind: the files of its folder."""
    folder = Path(__file__).parent / kind
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def load(kind: str, name: str, knobs: Mapping[str, Any] | None = None, **given: Any) -> Any:
    """The class `Policy` of gmoe/experts/<kind>/<name>.py, built with all `knobs` and with what it names of `given`.

    `knobs` come from the user and must exist; `given` is what the caller has to offer. Raises `PolicyError`.
    """
    policy = _policy(kind, name)
    takes = _takes(policy)
    offered = {key: value for key, value in given.items() if key in takes}
    known = knobs_of(kind, name)
    for knob, value in (knobs or {}).items():
        if knob not in known:
            raise PolicyError(f"{kind}.{name}: no knob is called {knob!r}; there are {', '.join(known) or 'none'}")
        offered[knob] = _check(knob, value, takes[knob])
    lacking = [key for key, p in takes.items() if p.default is Parameter.empty and key not in offered]
    if lacking:
        raise PolicyError(f"{kind}.{name}: needs {', '.join(lacking)}, which are not known here")
    return policy(**offered)


@cache
def _policy(kind: str, name: str) -> Any:
    if name not in names(kind):
        raise PolicyError(f"{kind}: no policy is called {name!r}; there are {', '.join(names(kind))}")
    module = import_module(f"gmoe.experts.{kind}.{name}")
    policy = getattr(module, "Policy", None)
    if policy is None:
        raise PolicyError(f"{module.__file__}: there is no class Policy")
    if lacking := ", ".join(sorted(getattr(policy, "__abstractmethods__", ()))):
        raise PolicyError(f"{module.__file__}: Policy lacks {lacking}")
    return policy


@cache
def _takes(policy: Any) -> Mapping[str, Parameter]:
    return signature(policy).parameters


def _check(knob: str, value: Any, takes: Parameter) -> Any:
    """A knob's value, which is of the kind of its default: text or a number, a whole one where it says `int`."""
    if isinstance(takes.default, str) and not isinstance(value, str):
        raise PolicyError(f"the knob {knob} is {value!r}; it must be a text")
    if isinstance(takes.default, int | float):
        whole = takes.annotation in (int, "int")
        if not isinstance(value, int | float) or not abs(value) <= MOST or (whole and value != int(value)):
            raise PolicyError(f"the knob {knob} is {value!r}; it must be a {'whole ' * whole}number, {MOST:g} at most")
        return int(value) if whole else value
    return value


def share_out(chosen: Mapping[str, str], knobs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The knobs of each of the `chosen` policies, by kind; one that none of them has is a `PolicyError`."""
    takes = {kind: set(knobs_of(kind, name)) for kind, name in chosen.items()}
    for knob in knobs:
        if not any(knob in names for names in takes.values()):
            known = ", ".join(sorted(set().union(*takes.values()))) or "none"
            raise PolicyError(f"policy: no knob is called {knob!r}; the chosen policies have {known}")
    return {kind: {knob: value for knob, value in knobs.items() if knob in names} for kind, names in takes.items()}


def knobs_of(kind: str, name: str) -> list[str]:
    """What a user may set: the parameters with a plain number or text as default."""
    takes = _takes(_policy(kind, name))
    return [key for key, p in takes.items() if isinstance(p.default, int | float | str)]


def needs(kind: str, name: str) -> list[str]:
    """What a policy cannot do without, by the names under which `load` is given it."""
    takes = _takes(_policy(kind, name))
    return [key for key, p in takes.items() if p.default is Parameter.empty]


def likelihood(n_expert: int, ids: Ids, weights: Floats, probabilities: Probabilities) -> Floats:
    """How likely the router found each expert [E], a mean over tokens; if nobody knows, the chosen ones' weights."""
    if probabilities is None:
        return np.bincount(ids.ravel(), weights.ravel() / len(ids), n_expert).astype(np.float64)
    return np.asarray(probabilities().mean(axis=0))


def evenly(chances: Floats, n: int) -> list[ExpertId]:
    """The `n` experts with the highest positive chances [L, E], every layer's first before any layer's second."""
    order = np.argsort(-chances, axis=1, kind="stable")
    ranked = np.take_along_axis(chances, order, axis=1)
    layers = np.argsort(-ranked, axis=0, kind="stable")  # of each rank, the likeliest first
    ranks = np.broadcast_to(np.arange(chances.shape[1]), chances.shape)
    flat = layers.ravel("F"), ranks.ravel("F")
    some = np.flatnonzero(ranked[flat] > 0)[:n]
    layer, rank = flat[0][some], flat[1][some]
    return [ExpertId(*id) for id in zip(layer.tolist(), order[layer, rank].tolist(), strict=True)]


def top(scores: Floats, layer: int, n: int) -> list[ExpertId]:
    """The `n` experts of a layer with the highest positive scores [E], highest first."""
    best = np.argsort(-scores, kind="stable")[:n]
    return [ExpertId(layer, int(e)) for e in best if scores[e] > 0]
