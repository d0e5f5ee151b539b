"""BlockManager: who owns which block, shared beginnings, and no leak."""

import random

from gmoe.engine.block_manager import BlockManager
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.sequence import Sequence


def sequence(ids):
    return Sequence(list(ids), SamplingParams())


def filled(blocks, ids):
    """A sequence whose tokens are all computed."""
    seq = sequence(ids)
    blocks.reuse(seq)
    assert blocks.grow(seq, len(seq.ids))
    seq.n_cached = len(seq.ids)
    blocks.publish(seq)
    return seq


def test_grow_takes_no_more_than_it_needs_and_all_or_nothing():
    blocks = BlockManager(4, 8)
    first, second = sequence(range(17)), sequence(range(9))
    assert blocks.missing(first, 17) == 3
    assert blocks.grow(first, 17) and blocks.grow(first, 24) and len(first.blocks) == 3
    assert not blocks.grow(second, 9)
    assert second.blocks == [] and blocks.n_free == 1
    blocks.release(first)
    assert first.blocks == [] and blocks.n_free == 4
    assert blocks.grow(second, 9)


def test_a_known_beginning_is_shared_and_the_last_token_left():
    blocks = BlockManager(8, 4)
    first = filled(blocks, range(10))
    second = sequence([0, 1, 2, 3, 4, 5, 6, 7])
    assert blocks.reuse(second) == 4  # the second block holds the last token
    third = sequence([0, 1, 2, 3, 4, 5, 6, 7, 99])
    assert blocks.reuse(third) == third.n_reused == third.n_cached == 8
    assert third.blocks == first.blocks[:2]
    assert [blocks.users[b] for b in first.blocks] == [3, 2, 1]
    blocks.release(first)
    assert blocks.n_free == 6 and [blocks.users[b] for b in third.blocks] == [2, 1]


def test_equal_blocks_after_other_beginnings_are_not_mixed_up():
    blocks = BlockManager(8, 2)
    filled(blocks, [1, 2, 7, 7, 5])
    other = sequence([3, 4, 7, 7, 5])
    assert blocks.reuse(other) == 0


def test_freed_blocks_stay_known_until_they_are_handed_out_longest_unused_first():
    blocks = BlockManager(4, 2)
    blocks.release(filled(blocks, [1, 2, 3, 4]))
    again = sequence([1, 2, 3, 4, 5])
    assert blocks.reuse(again) == 4
    blocks.release(again)
    other = filled(blocks, [9, 9, 8, 8, 7, 7])  # two fresh blocks, then the end of the first sequence
    assert blocks.reuse(again) == 2
    blocks.release(again)
    blocks.release(other)
    assert blocks.n_free == 4


def test_nothing_leaks_in_random_use():
    rng, blocks, live = random.Random(0), BlockManager(12, 4), []
    for _ in range(2000):
        if live and rng.random() < 0.5:
            blocks.release(live.pop(rng.randrange(len(live))))
            continue
        seq = sequence(rng.choices([1, 2], k=rng.randint(1, 24)))
        blocks.reuse(seq)
        if blocks.grow(seq, len(seq.ids)):
            seq.n_cached = len(seq.ids)
            blocks.publish(seq)
            live.append(seq)
        else:
            blocks.release(seq)
        uses = [sum(b in s.blocks for s in live) for b in range(12)]
        assert uses == blocks.users
        assert blocks.n_free == uses.count(0)
    for seq in live:
        blocks.release(seq)
    assert blocks.n_free == 12
