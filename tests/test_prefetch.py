"""Every prefetcher and working set keeps the contract; the predictors find what there is to find."""

import numpy as np
import pytest
from traces import synthetic

from gmoe.experts.expert_id import ExpertId, Tier
from gmoe.experts.policy import load, names

TRACE = synthetic()
SHAPE = TRACE.header.n_layer, TRACE.header.n_expert


def routers(layer, hidden):
    return np.full((1, SHAPE[1]), 1 / SHAPE[1]) if layer % 2 else None


class Nobody:
    """Of whom nothing is here, nor comes."""

    def resident(self, id):
        return False

    arriving = has_twin = resident

    def here(self, layer):
        return np.zeros(SHAPE[1], bool)

    def tier(self, id):
        return Tier.DISK


def replay(policy, trace=TRACE):
    """All predictions over the trace, by event."""
    told, request = [], -1
    for event in trace.events():
        if event.request != request:
            policy.begin()
        request = event.request
        told.append((event, list(policy.predict(event.layer, None, event.ids, event.weights, None))))
    return told


@pytest.mark.parametrize("name", names("prefetch"))
def test_prefetch_contract(name):
    """Only experts that exist, of later layers, none twice; same trace, same answer."""
    given = {"shape": SHAPE, "routers": routers, "residency": Nobody(), "matrices": None}
    first, again = (replay(load("prefetch", name, **given)) for _ in range(2))
    assert [told for _, told in first] == [told for _, told in again]
    for event, told in first:
        assert len(set(told)) == len(told)
        assert all(event.layer < id.layer < SHAPE[0] and 0 <= id.expert < SHAPE[1] for id in told)
    assert any(told for _, told in first) == (name != "none")


@pytest.mark.parametrize("name", ["transition", "activation_matrix", "expert_map"])
def test_predictions_beat_chance(name):
    trace = synthetic(requests=4, tastes=2)
    told = replay(load("prefetch", name, shape=SHAPE), trace)
    wanted = {(event.step, ExpertId(event.layer, e)) for event, _ in told for e in event.ids.ravel().tolist()}
    guessed = [(event.step, id) for event, ids in told for id in ids]
    right = len(wanted & set(guessed))
    wrong = len(set(guessed)) - right
    assert right / (right + wrong) > 1.5 * TRACE.ids.shape[1] / SHAPE[1]


def test_next_gate_asks_the_routers():
    seen = []

    def gate(layer, hidden):
        seen.append((layer, hidden))
        return np.array([[0.1, 0.6, 0.0, 0.3], [0.1, 0.2, 0.0, 0.7]])

    policy = load("prefetch", "next_gate", {"ahead": 2}, shape=(3, 4), routers=gate)
    ids = np.array([[0, 1], [2, 3]])
    assert list(policy.predict(1, "hidden", ids, ids, None)) == [ExpertId(2, 3), ExpertId(2, 1)]
    assert seen == [(2, "hidden")]
    assert {id.layer for id in policy.predict(0, "hidden", ids, ids, None)} == {1, 2}


def test_next_gate_looks_past_a_layer_only_where_that_lacks_none():
    class Here:
        def __init__(self, layers):
            self.layers = layers

        def resident(self, id):
            return id.layer in self.layers

        def arriving(self, id):
            return False

    def told(layers):
        given = {"shape": (4, 2), "residency": Here(layers), "routers": lambda layer, hidden: np.array([[0.7, 0.3]])}
        policy = load("prefetch", "next_gate", {"ahead": 3}, **given)
        return [id.layer for id in policy.predict(0, "hidden", np.array([[0]]), np.ones((1, 1)), None)]

    assert (told({1, 2}), told({1}), told({2, 3})) == ([1, 2, 3], [1, 2], [1])


def maps(*passes, distance=1, **knobs):
    """What an expert_map of two layers and four experts foretells after each layer, told of all probabilities [E]."""
    policy = load("prefetch", "expert_map", {"distance": distance, **knobs}, shape=(len(passes[0][1]), 4))
    told = []
    for hidden, layers in passes:
        for layer, probabilities in enumerate(layers):
            every = np.array([probabilities])
            ids = np.argsort(-every, axis=1)[:, :1]
            weights = np.ones((1, 1))
            foretold = policy.predict(layer, np.array([hidden]), ids, weights, lambda every=every: every)
            told.append([tuple(id) for id in foretold])
    return told


def test_expert_maps_hold_all_probabilities():
    """What was never chosen can be foretold; the less alike the map, the more, up to 1 - likeness of its mass."""
    first = [0.0, 1.0], [[0.4, 0.3, 0.2, 0.1]] * 2
    assert maps(first, first)[2] == [(1, 0)]  # the same input: one expert, as many as a token has
    told = maps(first, ([1.0, 0.0], [[0.4, 0.3, 0.2, 0.1]] * 2))
    assert told[2] == [(1, 0), (1, 1), (1, 2), (1, 3)]  # the likeness is 0
    told = maps(first, ([1.0, 1.0], [[0.4, 0.3, 0.2, 0.1]] * 2), distance=2)
    assert told[2] == [(1, 0)]  # 0.29 of the mass is less than the first expert has


def test_expert_maps_go_by_the_layers_seen_after_the_first():
    a, b, c = [1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]
    one, two = ([1.0, 0.0], [a, a, a]), ([0.0, 1.0], [b, b, c])
    told = maps(one, two, ([1.0, 0.0], [b, b, c]))
    assert told[6:] == [[(1, 0)], [(2, 2)], []]  # by the input it is `one`, by the layers `two`


def test_expert_maps_are_most_urgent_by_probability_and_nearness():
    one = [1.0, 0.0], [[1.0, 0, 0, 0], [0.4, 0.3, 0.3, 0], [0, 0, 0.7, 0.3], [0.8, 0.2, 0, 0]]
    assert maps(one, one, distance=3)[4] == [(2, 2), (1, 0), (3, 0)]  # 0.7 * 2 / 4, 0.4 * 3 / 4, 0.8 * 1 / 4


def test_a_full_store_of_maps_gives_up_the_one_most_like_the_newcomer():
    policy = load("prefetch", "expert_map", {"capacity": 2, "distance": 1}, shape=(2, 4))
    rows = np.eye(4)
    for pass_ in (0, 1, 1):
        for layer in range(2):
            every = rows[[pass_]]
            policy.predict(layer, every, np.array([[pass_]]), np.ones((1, 1)), lambda every=every: every)
    policy.begin()
    assert policy.maps.argmax(axis=2).tolist() == [[0, 0], [1, 1]]


def test_activation_matrices_are_kept_within_capacity():
    policy = load("prefetch", "activation_matrix", {"capacity": 2}, shape=SHAPE)
    replay(policy)
    policy.begin()
    assert len(policy.collection.stored) == 2
    heir = load("prefetch", "activation_matrix", shape=SHAPE, matrices=policy.collection.matrices())
    event = next(TRACE.events())
    assert list(heir.predict(event.layer, None, event.ids, event.weights, None))


@pytest.mark.parametrize("name", names("working_set"))
def test_working_set_contract(name):
    """At most as many as asked for, none twice, all of them exist; same trace, same answer."""

    def plans():
        policy, request = load("working_set", name, shape=SHAPE), -1
        for event in TRACE.events():
            if event.request != request:
                policy.begin("task")
            request = event.request
            policy.observe(event.layer, event.ids, event.weights, None)
            yield list(policy.plan(9))

    first = list(plans())
    assert first == list(plans())
    for plan in first:
        assert len(set(plan)) == len(plan) <= 9
        assert all(0 <= id.layer < SHAPE[0] and 0 <= id.expert < SHAPE[1] for id in plan)
    assert any(first) == (name != "none")


def test_task_keeps_a_profile_of_each_task():
    policy = load("working_set", "task", {"period": 1}, shape=(1, 4))
    for task, expert in (("a", 0), ("b", 3), ("a", 0), ("b", 3)):
        policy.begin(task)
        policy.observe(0, np.array([[expert]]), np.ones((1, 1)), None)
    policy.begin("a")
    assert policy.plan(4) == [ExpertId(0, 0)]
    policy.begin("b")
    assert policy.plan(4) == [ExpertId(0, 3)]


def test_task_counts_what_ran_last_most():
    for tasks in (("", "", ""), ("a", "a", "a")):
        policy = load("working_set", "task", {"period": 1}, shape=(1, 4))
        for task, expert in zip(tasks, (0, 1, None), strict=True):
            policy.begin(task)
            if expert is not None:
                policy.observe(0, np.array([[expert]]), np.ones((1, 1)), None)
        assert policy.plan(4) == [ExpertId(0, 1), ExpertId(0, 0)]


def test_task_knows_those_asked_for_last():
    policy = load("working_set", "task", {"capacity": 2}, shape=(1, 8))
    told = {}
    for name in ("a", "b", "a", "c", "b", "c"):
        policy.begin(name)
        told[name] = policy.plan(4)
        policy.observe(0, np.array([["abc".index(name)]]), np.ones((1, 1)), None)
        assert len(policy.requests) <= 2 and len(policy.profiles) <= 3  # and what ran before the first was named
    assert told == {"a": [ExpertId(0, 0)], "b": [], "c": [ExpertId(0, 2)]}


def test_task_foretells_after_the_first_request_and_then_every_period():
    policy, told = load("working_set", "task", {"period": 2, "memory": 0.0}, shape=(1, 8)), []
    for expert in range(6):
        policy.begin()
        told.append([id.expert for id in policy.plan(4)])
        policy.observe(0, np.array([[expert]]), np.ones((1, 1)), None)
    assert told == [[], [0], [0], [2], [2], [4]]


@pytest.mark.parametrize("name", ["task", "pattern"])
def test_every_layer_keeps_as_many(name):
    """Layer 0 asks for one expert always, layer 1 for four in turn: both keep two, in the order of their use."""
    policy = load("working_set", name, shape=(2, 8))
    for _ in range(2):
        policy.begin()
        for n in range(10):
            policy.observe(0, np.array([[0 if n else 5]]), np.ones((1, 1)), None)
            policy.observe(1, np.array([[(3, 2, 2, 1)[n % 4]]]), np.ones((1, 1)), None)
    assert policy.plan(4) == [ExpertId(0, 0), ExpertId(1, 2), ExpertId(1, 3), ExpertId(0, 5)]


def test_quota_gives_slots_to_the_layer_that_spreads():
    policy = load("working_set", "quota", {"memory": 1.0}, shape=(2, 4))
    for expert in (0, 1, 2, 3) * 3:
        policy.observe(0, np.array([[expert]]), np.ones((1, 1)), None)
        policy.observe(1, np.array([[2]]), np.ones((1, 1)), None)
    assert policy.quotas(3) == [2, 1]
