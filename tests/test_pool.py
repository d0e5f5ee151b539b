"""The pool against a model of itself: slots, bytes, pins."""

import random

import pytest

from gmoe.experts.evict.lru import Policy as Lru
from gmoe.experts.expert_id import ExpertId
from gmoe.experts.pool import SlotPool


def test_slots_are_reused():
    pool = SlotPool(2, Lru())
    a, b, c = (ExpertId(0, n) for n in range(3))
    assert pool.lookup(a) == -1
    assert pool.place(a) == (0, ()) and pool.place(b) == (1, ())
    assert pool.lookup(a) == 0
    assert pool.place(c) == (1, (b,))
    pool.remove(a)
    assert pool.place(b) == (0, ())


def test_refusals_change_nothing():
    pool = SlotPool(10, Lru(), lambda id: 4 + id.layer)
    pool.place(ExpertId(0, 0))
    pool.place(ExpertId(1, 0))
    with pytest.raises(ValueError, match="resident already"):
        pool.place(ExpertId(0, 0))
    with pytest.raises(ValueError, match="does not fit"):
        pool.place(ExpertId(4, 0), pinned={ExpertId(1, 0)})
    with pytest.raises(ValueError, match="does not fit"):
        pool.place(ExpertId(9, 0))
    assert set(pool) == {(0, 0), (1, 0)} and pool.used == 9
    with pytest.raises(ValueError, match="one expert at least"):
        SlotPool(0, Lru())


def test_bytes_hold_over_random_steps():
    choose = random.Random(3)
    pool = SlotPool(40, Lru(), lambda id: 3 + id.layer)
    for _ in range(5000):
        id = ExpertId(choose.randrange(5), choose.randrange(9))
        pinned = {other for other in pool if choose.random() < 0.1}
        if pool.lookup(id) < 0 and 3 + id.layer + sum(3 + p.layer for p in pinned) <= 40:
            assert not set(pool.place(id, pinned).evicted) & pinned
        elif id in pool and choose.random() < 0.2:
            pool.remove(id)
        assert pool.used == sum(3 + other.layer for other in pool) <= 40
        slots = [pool.lookup(other) for other in pool]
        assert len(set(slots)) == len(slots) and max(slots, default=0) <= 40 // 3


def test_a_smaller_pool_uses_its_first_slots():
    choose = random.Random(5)
    pool = SlotPool(9, Lru())
    for _ in range(3000):
        id = ExpertId(0, choose.randrange(20))
        if pool.lookup(id) < 0:
            pool.place(id)
        elif choose.random() < 0.2:
            pool.remove(id)
        if choose.random() < 0.1:
            before = {other: pool.lookup(other) for other in pool}
            capacity = choose.randint(1, 9)
            assert pool.resize(capacity) == [other for other, slot in before.items() if slot >= capacity]
        slots = [pool.lookup(other) for other in pool]
        assert len(set(slots)) == len(slots) == pool.used and max(slots, default=0) < pool.capacity
    with pytest.raises(ValueError, match="one expert at least"):
        pool.resize(0)
