"""Scheduler: decodes never wait, prompts come in chunks, the youngest yields."""

from gmoe.engine.block_manager import BlockManager
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.scheduler import Scheduler
from gmoe.engine.sequence import Sequence, Status


def scheduler(n_blocks=100, block_size=4, max_sequences=4, chunk=8):
    return Scheduler(BlockManager(n_blocks, block_size), max_sequences, chunk)


def added(s, n, first=0):
    seq = Sequence(list(range(first, first + n)), SamplingParams())
    s.add(seq)
    return seq


def advance(s):
    """One step with a token for whoever is through; who computed how many."""
    turns = [(turn.seq, turn.n_new) for turn in s.schedule()]
    for seq, count in turns:
        seq.n_cached += count
        s.blocks.publish(seq)
        if not seq.pending:
            seq.ids.append(0)
    return turns


def test_a_prompt_is_cut_into_chunks():
    s = scheduler()
    seq = added(s, 20)
    assert [advance(s) for _ in range(4)] == [[(seq, 8)], [(seq, 8)], [(seq, 4)], [(seq, 1)]]


def test_prompts_share_a_chunk_in_the_order_they_came():
    s = scheduler()
    first, second, third = added(s, 5), added(s, 5, 100), added(s, 5, 200)
    assert advance(s) == [(first, 5), (second, 3)]
    assert advance(s) == [(first, 1), (second, 2), (third, 5)]


def test_a_long_prompt_does_not_starve_decodes_nor_they_it():
    s = scheduler(max_sequences=5, chunk=2)
    decoding = [added(s, 1, 10 * i) for i in range(4)]
    while any(seq.pending > 1 or len(seq.ids) == 1 for seq in decoding):
        advance(s)
    long = added(s, 50, 100)
    for _ in range(50):
        assert advance(s) == [*((seq, 1) for seq in decoding), (long, 1)]


def test_no_more_than_max_sequences_run():
    s = scheduler(max_sequences=2)
    first, second, third = added(s, 2), added(s, 2, 10), added(s, 2, 20)
    advance(s)
    assert [seq.status for seq in (first, second, third)] == [Status.RUNNING, Status.RUNNING, Status.WAITING]
    s.remove(first)
    advance(s)
    assert (first.status, third.status) == (Status.FINISHED, Status.RUNNING)


def test_the_youngest_yields_its_blocks_and_comes_back_first():
    s = scheduler(n_blocks=4)
    old, young = added(s, 7), added(s, 7, 100)
    waiting = added(s, 1, 200)
    while s.preemptions == 0:
        advance(s)
    assert old.status is Status.RUNNING and young.status is Status.WAITING
    assert young.blocks == [] and young.n_cached == 0
    assert list(s.waiting) == [young, waiting]
    assert all(seq is old for seq, _ in advance(s))
    s.remove(old)
    advance(s)
    assert s.running == [young, waiting]


def test_a_sequence_waits_until_its_prompt_fits():
    s = scheduler(n_blocks=4, chunk=100)
    first, second = added(s, 12), added(s, 8, 100)
    assert advance(s) == [(first, 12)]
    assert second.status is Status.WAITING and s.preemptions == 0


def test_a_shared_beginning_is_not_computed_twice():
    s = scheduler(chunk=100)
    first = added(s, 10)
    advance(s)
    second = added(s, 10)
    assert (second, 2) in advance(s)
    assert second.n_reused == 8 and second.blocks[:2] == first.blocks[:2]
    s.add(fresh := Sequence(list(range(10)), SamplingParams(), reuse_prefix=False))
    assert (fresh, 10) in advance(s)


def test_a_beginning_that_is_being_computed_is_waited_for():
    s = scheduler(chunk=6, max_sequences=4)
    first, second, other = added(s, 18), added(s, 18), added(s, 5, 100)
    second.ids[12:] = range(50, 56)
    computed = {seq: 0 for seq in (first, second, other)}
    while any(len(seq.ids) == n for seq, n in ((first, 18), (second, 18), (other, 5))):
        for seq, count in advance(s):
            computed[seq] += count if len(seq.ids) - seq.n_cached != 1 or seq.n_cached <= 18 else 0
            if seq is first and first.n_cached < 12:
                assert second.status is Status.WAITING and other.status is Status.RUNNING
    assert second.n_reused == 12 and second.blocks[:3] == first.blocks[:3]


def test_where_it_may_not_be_reused_a_beginning_is_not_waited_for():
    s = scheduler(chunk=4)
    first = added(s, 18)
    s.add(second := Sequence(list(range(18)), SamplingParams(), reuse_prefix=False))
    advance(s)
    assert s.running == [first, second]
