"""Every eviction policy keeps the contract, and none beats the oracle."""

import numpy as np
import pytest
from traces import synthetic

from gmoe.experts.controls import CONTROLS, eviction
from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import PolicyError, load, names
from gmoe.experts.pool import SlotPool
from gmoe.experts.schedule import Schedule
from gmoe.experts.simulate import Replay

TRACE = synthetic()
SCHEDULE = Schedule(TRACE)
EVENTS = list(TRACE.events())
SHAPE = TRACE.header.n_layer, TRACE.header.n_expert
ALL = [*names("evict"), *CONTROLS]


@pytest.mark.parametrize("capacity", [10, 24, 64])
@pytest.mark.parametrize("name", ALL)
def test_contract(name, capacity):
    """A victim is resident and never pinned; the capacity holds; slots are never shared; same trace, same answer."""

    def victims():
        policy = eviction(name, {}, SCHEDULE)
        pool = SlotPool(capacity, policy)
        gone = []
        for n, event in enumerate(EVENTS):
            if n % 97 == 0:
                policy.begin()
            wanted = [ExpertId(event.layer, e) for e in sorted(set(event.ids.ravel().tolist()))][:capacity]
            policy.observe(event.layer, event.ids, event.weights, None)
            slots = []
            for id in wanted:
                before = set(pool)
                slot = pool.lookup(id)
                if slot < 0:
                    slot, evicted = pool.place(id, wanted)
                    assert set(evicted) <= before - set(wanted)
                    gone += evicted
                slots.append(slot)
            assert len(pool) <= capacity
            assert len(set(slots)) == len(slots) and max(slots) < capacity
            assert all(pool.lookup(id) == slot for id, slot in zip(wanted, slots, strict=True))
        return gone

    first = victims()
    assert first == victims()
    assert bool(first) == (capacity < 64)


@pytest.mark.parametrize("name", [name for name in ALL if name != "belady"])
@pytest.mark.parametrize("budget", [10_000, 24_000, 40_000])
def test_belady_is_never_beaten(name, budget):
    def hits(evict):
        report = Replay(SCHEDULE, budget, evict).run()
        return report.prefill.hits + report.decode.hits

    assert hits(name) <= hits("belady")


@pytest.mark.parametrize("name", ALL)
def test_where_all_fit_each_expert_is_read_once(name):
    report = Replay(SCHEDULE, SCHEDULE.bytes, name).run()
    once = len({id for turn in SCHEDULE.turns for id in turn.wanted})
    assert report.prefill.asked + report.decode.asked - report.prefill.hits - report.decode.hits == once
    assert report.prefill.bytes + report.decode.bytes == 1000 * once


def test_lru_never_loses_by_more_room():
    def hits(slots):
        report = Replay(SCHEDULE, 1000 * slots, "lru").run()
        return report.prefill.hits + report.decode.hits

    by_room = [hits(slots) for slots in range(10, 65)]
    assert by_room == sorted(by_room) and by_room[0] < by_room[-1]


@pytest.mark.parametrize("name", ALL)
def test_one_slot(name):
    pool = SlotPool(1, eviction(name, {}, SCHEDULE))
    pool.place(ExpertId(0, 1))
    assert pool.place(ExpertId(1, 1)).evicted == (ExpertId(0, 1),)


def order(policy, n=3):
    """The first n to leave, of three inserted in order."""
    return [policy.victim({ExpertId(0, e) for e in pinned}).expert for pinned in ([], [0], [0, 1])][:n]


def test_lru_and_lfu_order():
    for name in ("lru", "lfu"):
        policy = load("evict", name, shape=SHAPE)
        for expert in (0, 1, 2):
            policy.insert(ExpertId(0, expert))
        assert order(policy) == [0, 1, 2]
        policy.hit(ExpertId(0, 0))
        assert policy.victim(()).expert == 1


def test_sieve_spares_the_used_once():
    policy = load("evict", "sieve")
    for expert in (0, 1, 2):
        policy.insert(ExpertId(0, expert))
    policy.hit(ExpertId(0, 0))
    assert policy.victim(()) == ExpertId(0, 1)
    policy.remove(ExpertId(0, 1))
    assert policy.victim(()) == ExpertId(0, 2)
    policy.remove(ExpertId(0, 2))
    policy.insert(ExpertId(0, 3))  # the hand was at the end of the queue: it starts over, and does not chase newcomers
    assert policy.victim(()) == ExpertId(0, 0)


def test_all_scores_count_where_they_are_known():
    """Expert 2 is never chosen, and nearly: by the chosen ones' weights it would be the first to leave."""
    ids, weights, every = np.array([[0]]), np.ones((1, 1)), np.array([[0.5, 0.1, 0.4, 0.0]])
    for name in ("score_window", "probability"):
        policy = load("evict", name, shape=(1, 4))
        for expert in (2, 1):
            policy.insert(ExpertId(0, expert))
        policy.observe(0, ids, weights, None)
        assert policy.victim(()) == ExpertId(0, 2)
        policy.observe(0, ids, weights, lambda: every)
        assert policy.victim(()) == ExpertId(0, 1)


def test_hobbit_knows_when_in_a_prompt_an_expert_was_last_used():
    policy = load("evict", "hobbit", {"lru": 1.0, "lfu": 0.0, "lhu": 0.0, "fld": 0.0}, shape=(1, 4))
    policy.observe(0, np.array([[0, 3], [1, 3], [2, 0]]), np.full((3, 2), 0.5), None)
    for expert in (0, 2, 1, 3):  # otherwise the first inserted would leave
        policy.insert(ExpertId(0, expert))
    assert policy.score()[0].tolist() == [1.0, 2 / 3, 1.0, 2 / 3]
    assert policy.victim(()) == ExpertId(0, 1)


def test_activation_matches_the_pass_and_on_demand_the_request():
    """The request was like the first record until now, this pass is like the second."""
    records = np.array([[[9, 0, 0, 0], [0, 9, 0, 0]], [[0, 0, 9, 0], [0, 0, 0, 9]]])
    shares = {}
    for scope in ("iteration", "request"):
        policy = load("evict", "activation", {"own": 0.0, "scope": scope}, shape=(2, 4), matrices=records)
        policy.begin()
        for layer, expert in ((0, 0), (1, 1), (0, 0), (1, 1), (0, 2), (1, 3)):
            policy.observe(layer, np.array([[expert]]), np.ones((1, 1)), None)
        shares[scope] = policy.share[1]
    assert shares["iteration"].argmax() == 3 and shares["request"].argmax() == 1


def test_score_window_is_a_mean_over_the_last_runs():
    policy = load("evict", "score_window", {"window": 2}, shape=(1, 2))
    for expert in (0, 1):
        policy.insert(ExpertId(0, expert))
    gone = []
    for first in (0.9, 0.2, 0.6, 0.3):
        policy.observe(0, np.array([[0]]), np.ones((1, 1)), lambda first=first: np.array([[first, 1 - first]]))
        gone.append(policy.victim(()).expert)
    assert gone == [1, 1, 0, 0]  # means of the first: 0.9, 0.55, 0.4, 0.45
    policy = load("evict", "score_window", shape=(2, 1))
    for layer, score in ((0, 0.4), (1, 0.5), (0, 0.4)):  # the second layer has run less often, and scores more
        policy.observe(layer, np.array([[0]]), np.ones((1, 1)), lambda score=score: np.array([[score]]))
    for layer in (0, 1):
        policy.insert(ExpertId(layer, 0))
    assert policy.victim(()).layer == 0


def test_unknown_names_and_knobs_are_told():
    with pytest.raises(PolicyError, match="no policy is called 'nope'; there are activation, belady, hobbit"):
        load("evict", "nope")
    with pytest.raises(PolicyError, match=r"evict.lfu: no knob is called 'agin'; there are aging"):
        load("evict", "lfu", {"agin": 3}, shape=SHAPE)
    with pytest.raises(PolicyError, match=r"evict.belady: needs future"):
        load("evict", "belady", shape=SHAPE)
    assert load("evict", "lfu", {"aging": 3}, shape=SHAPE, future=()).aging == 3
