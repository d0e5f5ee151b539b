"""Engine and EngineLoop over scripted models: no weights, every token known."""

import random
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from scripted_model import N_VOCAB, ScriptedModel, counting, hashed, uniform

from gmoe.engine.engine import BLOCK_SIZE, Engine
from gmoe.engine.loop import EngineLoop
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.sequence import Sequence

GREEDY = SamplingParams(temperature=0)


def make(script=hashed, context=256, max_sequences=4, **given):
    return Engine(ScriptedModel(script), context, max_sequences, "f32", **given)


def finish(engine, *sequences):
    """Run all to the end; their generated tokens."""
    for seq in sequences:
        engine.add(seq)
    while not all(seq.finish_reason for seq in sequences):
        assert engine.step() or any(seq.pending for seq in sequences)
    assert engine.scheduler.blocks.n_free == len(engine.scheduler.blocks.users)
    return [list(seq.generated) for seq in sequences]


def sampled(seed, n=40, prompt=(1, 2, 3)):
    return Sequence(list(prompt), SamplingParams(seed=seed, max_tokens=n, temperature=1.0))


def test_greedy_until_the_end_token():
    (tokens,) = finish(make(counting), seq := Sequence([3], GREEDY, end_ids={9}))
    assert tokens == [4, 5, 6, 7, 8, 9] and seq.finish_reason == "stop"


def test_max_tokens_and_a_full_context_end_by_length():
    engine = make(counting, context=10)
    (tokens,) = finish(engine, seq := Sequence([3], SamplingParams(temperature=0, max_tokens=2)))
    assert tokens == [4, 5] and seq.finish_reason == "length"
    (tokens,) = finish(engine, seq := Sequence([3] * 6, GREEDY))
    assert tokens == [4, 5, 6, 7] and seq.finish_reason == "length"


@pytest.mark.parametrize(
    "ids, says", [([], "the prompt is empty"), ([1] * 11, "the prompt has 11 tokens, the context holds 10")]
)
def test_a_prompt_that_cannot_be_run_is_refused(ids, says):
    engine = make(context=10)
    with pytest.raises(ValueError, match=says):
        engine.add(Sequence(ids, GREEDY))
    with pytest.raises(ValueError, match=says):
        engine.logits(ids)


def test_tokens_depend_on_the_seed_and_on_no_batch_mate():
    alone = [finish(make(), sampled(seed, prompt=[seed]))[0] for seed in range(4)]
    assert finish(make(), *(sampled(seed, prompt=[seed]) for seed in range(4))) == alone
    assert finish(make(uniform), sampled(1)) == finish(make(uniform), sampled(1))
    assert finish(make(uniform), sampled(1)) != finish(make(uniform), sampled(2))


@pytest.mark.parametrize("chunk", [1, 3, BLOCK_SIZE, 100])
def test_prefill_in_chunks_is_prefill_as_a_whole(chunk):
    prompt = random.Random(1).choices(range(N_VOCAB), k=77)
    whole = finish(make(chunk=512), sampled(5, prompt=prompt))
    assert finish(make(chunk=chunk), sampled(5, prompt=prompt)) == whole
    rows = make(chunk=chunk).logits(prompt)
    assert np.array_equal(rows, np.stack([hashed(prompt[: i + 1]) for i in range(77)]))


def test_logits_takes_and_leaves_no_block_even_where_all_are_in_use():
    engine = make(context=64, max_sequences=2, n_blocks=2)
    seq = sampled(1, prompt=range(30))
    alone = finish(engine, sampled(1, prompt=range(30)))
    engine.add(seq)
    for _ in range(8):
        engine.step()
    assert len(engine.logits(range(50))) == 50
    while not seq.finish_reason:
        engine.step()
    assert [list(seq.generated)] == alone and engine.scheduler.blocks.n_free == 2


def test_preemption_changes_no_token():
    prompts = [[seed] * 40 for seed in range(4)]
    roomy, tight = make(), make(n_blocks=8)
    wanted = finish(roomy, *(sampled(i, 100, prompt) for i, prompt in enumerate(prompts)))
    assert finish(tight, *(sampled(i, 100, prompt) for i, prompt in enumerate(prompts))) == wanted
    assert roomy.scheduler.preemptions == 0 and tight.scheduler.preemptions > 0


def test_a_known_beginning_is_reused_and_changes_no_token():
    engine, prompt = make(), list(range(45)) + [7] * 30
    first = finish(engine, sampled(3, prompt=prompt))
    computed = sum(len(batch.token_ids) for batch in engine.runner.model.batches)
    again = sampled(3, prompt=prompt)
    assert finish(engine, again) == first and again.n_reused == 2 * BLOCK_SIZE
    total = sum(len(batch.token_ids) for batch in engine.runner.model.batches)
    assert total - computed == computed - 2 * BLOCK_SIZE


def test_abort_frees_at_once():
    engine = make()
    running, waiting = sampled(1), sampled(2)
    engine.add(running)
    engine.step()
    engine.add(waiting)
    engine.abort(running)
    engine.abort(waiting)
    assert (running.finish_reason, waiting.finish_reason) == ("abort", "abort")
    assert engine.step() == [] and engine.scheduler.blocks.n_free == len(engine.scheduler.blocks.users)


def test_logprobs_come_with_the_token():
    engine = make()
    engine.add(Sequence([1], SamplingParams(temperature=0, max_tokens=1, logprobs=2)))
    (output,) = engine.step()
    assert output.logprobs.top[0] == (output.token_id, output.logprobs.chosen)


def test_prompt_logprobs_are_those_of_the_same_tokens_when_they_are_generated():
    engine = make()
    seq = Sequence([7] * 150, SamplingParams(temperature=1, seed=1, max_tokens=50, logprobs=3))
    engine.add(seq)
    given = []
    while not seq.finish_reason:
        given += [output.logprobs for output in engine.step()]
    found = engine.prompt_logprobs(seq.ids, 3)
    assert len(found) == 199 and found[149:] == given
    assert engine.scheduler.blocks.n_free == len(engine.scheduler.blocks.users)
    again = Sequence(seq.ids, GREEDY)
    engine.add(again)
    engine.step()
    assert again.n_reused == 192 and engine.prompt_logprobs([5], 0) == []


def test_a_thousand_random_steps_leak_nothing():
    rng, engine, live = random.Random(3), make(context=100, n_blocks=9, chunk=16), []
    finished = 0
    for _ in range(1000):
        if rng.random() < 0.1 and len(live) < 8:
            prompt = [rng.randrange(3)] * rng.randint(1, 100)
            live.append(Sequence(prompt, SamplingParams(seed=1, max_tokens=rng.randint(1, 60))))
            engine.add(live[-1])
        if live and rng.random() < 0.02:
            engine.abort(live.pop(rng.randrange(len(live))))
        assert engine.step() or not live or any(seq.pending for seq in live)
        finished += sum(seq.finish_reason is not None for seq in live)
        live = [seq for seq in live if not seq.finish_reason]
        blocks = engine.scheduler.blocks
        assert blocks.users == [sum(b in seq.blocks for seq in live) for b in range(9)]
    assert finished > 20 and engine.scheduler.preemptions > 0
    for seq in live:
        engine.abort(seq)
    assert blocks.n_free == 9


@pytest.fixture
def loop():
    loop = EngineLoop(make(counting))
    yield loop
    loop.close()
    assert not loop._thread.is_alive()


def test_loop_streams_to_many_threads(loop):
    answers = {}

    def ask(first):
        answers[first] = [o.token_id for o in loop.submit(Sequence([first], GREEDY, end_ids={40}))]

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {first: list(range(first + 1, 41)) for first in range(8)}


def test_closing_the_iterator_aborts(loop):
    seq = Sequence([0], GREEDY)
    outputs = loop.submit(seq)
    next(outputs)
    outputs.close()
    blocks = loop.engine.scheduler.blocks
    assert loop.call(lambda: blocks.n_free) == len(blocks.users)
    assert seq.finish_reason in ("abort", "length")


def test_who_is_sent_back_has_found_what_it_found_at_first():
    engine = make(counting, n_blocks=6)
    seqs = [sampled(seed, n=100, prompt=[seed] * 40) for seed in (1, 2, 3)]
    finish(engine, *seqs)
    assert engine.scheduler.preemptions and [seq.n_reused for seq in seqs] == [0, 0, 0]


def test_between_two_calls_who_runs_has_a_step(loop):
    outputs, happened, go = loop.submit(Sequence([0], GREEDY)), [], threading.Event()
    next(outputs)
    step = loop.engine.step
    loop.engine.step = lambda: happened.append("step") or step()
    work = [(lambda n=n: go.wait(20) and happened.append(n)) for n in ("first", "second", "third")]
    threads = [threading.Thread(target=loop.call, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    while loop._inbox.qsize() < 2:  # one is at work
        time.sleep(0.001)
    go.set()
    for thread in threads:
        thread.join()
    begin, *_, end = [i for i, what in enumerate(happened) if what != "step"]
    assert all(one == "step" or other == "step" for one, other in pairwise(happened[begin : end + 1]))


def test_a_prompt_tells_how_far_it_is():
    loop = EngineLoop(make(counting, chunk=16))
    outputs = list(loop.submit(Sequence([1] * 40, GREEDY, end_ids={3}, tells=True)))
    assert [(o.token_id, o.n_read) for o in outputs] == [(None, 16), (None, 32), (None, 40), (2, 0), (3, 0)]
    assert all(o.n_read == 0 for o in loop.submit(Sequence([1] * 40, GREEDY, end_ids={3})))
    loop.close()


def test_errors_reach_who_asked_and_the_loop_lives_on(loop):
    with pytest.raises(ValueError, match="the context holds 256"):
        next(loop.submit(Sequence([1] * 300, GREEDY)))
    with pytest.raises(ZeroDivisionError):
        loop.call(lambda: 1 // 0)
    loop.engine.runner.model.fail_next = True
    with pytest.raises(OSError, match="the disk is gone"):
        list(loop.submit(Sequence([1], GREEDY)))
    assert [o.token_id for o in loop.submit(Sequence([1], GREEDY, end_ids={3}))] == [2, 3]
    blocks = loop.engine.scheduler.blocks
    assert loop.call(lambda: blocks.n_free) == len(blocks.users)


def test_one_poisoned_sequence_ends_alone():
    def script(ids):
        return np.full(N_VOCAB, np.nan, dtype=np.float32) if ids[0] == 7 else counting(ids)

    loop = EngineLoop(make(script))
    answers = {}

    def ask(first):
        try:
            answers[first] = [o.token_id for o in loop.submit(Sequence([first], GREEDY, end_ids={40}))]
        except ValueError as error:
            answers[first] = str(error)

    threads = [threading.Thread(target=ask, args=(first,)) for first in (1, 7, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: list(range(n + 1, 41)) for n in (1, 3)} | {7: "the model gave logits that are not numbers"}
    blocks = loop.engine.scheduler.blocks
    assert loop.call(lambda: blocks.n_free) == len(blocks.users)
    loop.close()


class Digits:
    """Thirty, then thirty-one, then no more."""

    complete = False

    def allows(self, token):
        return token == 30

    def mask(self, n_vocab):
        return np.arange(n_vocab) == 31

    def accept(self, token):
        self.complete = token == 31


def test_a_complete_constraint_ends_the_answer_with_its_token():
    answer = finish(make(counting), seq := Sequence([29], GREEDY, constraint=Digits()))
    assert answer == [[30, 31]]
    assert seq.finish_reason == "stop"


def test_a_process_that_ends_closes_its_loops_first(monkeypatch):
    at_exit = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    monkeypatch.setattr("atexit.unregister", at_exit.remove)
    loop = EngineLoop(make(counting, context=100_000, max_sequences=1))
    left = loop.submit(Sequence([1], GREEDY))
    next(left)
    at_exit[0]()
    assert not at_exit
    with pytest.raises(RuntimeError, match="the model was closed"):
        list(left)


def test_a_closed_loop_says_so():
    loop = EngineLoop(make(counting, context=100_000, max_sequences=1))
    outputs = loop.submit(Sequence([1], GREEDY))
    next(outputs)
    loop.close()
    loop.close()
    with pytest.raises(RuntimeError, match="the model was closed"):
        list(outputs)
    with pytest.raises(RuntimeError, match="the model was closed"):
        next(loop.submit(Sequence([1], GREEDY)))
    with pytest.raises(RuntimeError, match="the model was closed"):
        loop.call(lambda: None)
