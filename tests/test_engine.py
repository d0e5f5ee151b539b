"""The engine with a scripted model: no weights, logits that follow from the ids."""

import numpy as np
import pytest
import torch

from gmoe.engine.engine import Engine
from gmoe.engine.loop import EngineLoop
from gmoe.engine.sampler import Sampler
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.sequence import Sequence
from gmoe.layers.batch import Batch

VOCAB = 50
GREEDY = SamplingParams(temperature=0, max_tokens=5)


class Successor:
    """After token n comes n + 1; it notes how many tokens each step had."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.fail = False

    def new_cache(self, n_blocks: int, block_size: int, kv_type: str) -> None:
        return None

    def __call__(self, batch: Batch) -> torch.Tensor:
        if self.fail:
            raise RuntimeError("the model broke")
        self.steps.append(len(batch.token_ids))
        assert len(set(batch.slot_mapping.tolist())) == len(batch.slot_mapping)
        return torch.nn.functional.one_hot((batch.token_ids[batch.output_rows] + 1) % VOCAB, VOCAB) * 5.0


def finish(engine: Engine) -> None:
    for _ in range(1000):
        if not engine.step() and not engine.scheduler.running and not engine.scheduler.waiting:
            return
    raise AssertionError("the engine does not come to an end")


def test_greedy_tokens_until_their_number_is_reached() -> None:
    engine = Engine(Successor(), 64, 2, "f32")
    seq = Sequence([3, 4], GREEDY)
    engine.add(seq)
    finish(engine)
    assert (list(seq.generated), seq.finish_reason) == ([5, 6, 7, 8, 9], "length")


def test_an_end_token_stops_and_a_full_context_too() -> None:
    engine = Engine(Successor(), 64, 2, "f32")
    ends = Sequence([3], GREEDY, end_ids={5})
    full = Sequence(list(range(40)), SamplingParams(temperature=0))
    for seq in (ends, full):
        engine.add(seq)
    finish(engine)
    assert (list(ends.generated), ends.finish_reason) == ([4, 5], "stop")
    assert (len(full.ids), full.finish_reason) == (64, "length")


def test_a_long_prompt_does_not_starve_a_decode() -> None:
    model = Successor()
    engine = Engine(model, 256, 2, "f32", chunk=16)
    short = Sequence([1], SamplingParams(temperature=0, max_tokens=12))
    engine.add(short)
    engine.step()
    long = Sequence(list(range(40)) * 4, GREEDY)
    engine.add(long)
    for _ in range(5):
        before = len(short.ids)
        engine.step()
        assert len(short.ids) == before + 1
    assert max(model.steps) <= 16
    finish(engine)
    assert list(long.generated) == [40, 41, 42, 43, 44]


def test_every_block_comes_back() -> None:
    rng = np.random.default_rng(0)
    engine = Engine(Successor(), 128, 3, "f32", chunk=32)
    free = len(engine.scheduler.blocks.free)
    seqs: list[Sequence] = []
    for step in range(300):
        if step < 250 and rng.random() < 0.3:
            n = int(rng.integers(1, 12))
            ids = rng.integers(0, VOCAB, rng.integers(1, 60)).tolist()
            seqs.append(Sequence(ids, SamplingParams(temperature=0, max_tokens=n)))
            engine.add(seqs[-1])
        if seqs and rng.random() < 0.05:
            engine.abort(seqs[int(rng.integers(len(seqs)))])
        engine.step()
    finish(engine)
    assert sorted(engine.scheduler.blocks.free) == list(range(free))
    for seq in seqs:
        want = [(seq.ids[seq.n_prompt - 1] + 1 + i) % VOCAB for i in range(len(seq.generated))]
        assert list(seq.generated) == want


def test_when_blocks_run_out_the_youngest_begins_anew_and_says_the_same() -> None:
    engine = Engine(Successor(), 96, 3, "f32")
    engine.scheduler.blocks.free = engine.scheduler.blocks.free[:4]  # of 9
    seqs = [Sequence([n] * 40, SamplingParams(temperature=0, max_tokens=30)) for n in (1, 2, 3)]
    for seq in seqs:
        engine.add(seq)
    finish(engine)
    for n, seq in zip((1, 2, 3), seqs, strict=True):
        assert list(seq.generated) == [(n + 1 + i) % VOCAB for i in range(30)]


@pytest.mark.parametrize(("ids", "what"), [([], "the prompt is empty"), ([1] * 64, "64 tokens, the context holds 64")])
def test_prompts_that_do_not_fit_are_refused(ids: list[int], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Engine(Successor(), 64, 1, "f32").add(Sequence(ids, GREEDY))


def test_the_loop_streams_and_a_closed_iterator_ends_its_sequence() -> None:
    engine = Engine(Successor(), 4096, 2, "f32")
    loop = EngineLoop(engine)
    try:
        endless = loop.submit(Sequence([1], SamplingParams(temperature=0)))
        first = next(endless)
        endless.close()
        assert [output.token_id for output in loop.submit(Sequence([7], GREEDY))] == [8, 9, 10, 11, 12]
        assert first.seq.finish_reason == "abort"
        assert len(engine.scheduler.blocks.free) == 256
    finally:
        loop.close()


def test_a_step_that_fails_reaches_its_requester_and_the_loop_lives_on() -> None:
    model = Successor()
    loop = EngineLoop(Engine(model, 64, 2, "f32"))
    try:
        model.fail = True
        with pytest.raises(RuntimeError, match="the model broke"):
            next(loop.submit(Sequence([1], GREEDY)))
        model.fail = False
        assert len(list(loop.submit(Sequence([1], GREEDY)))) == 5
        with pytest.raises(ValueError, match="the prompt is empty"):
            next(loop.submit(Sequence([], GREEDY)))
    finally:
        loop.close()


LOGITS = np.random.default_rng(5).standard_normal(VOCAB).astype(np.float32) * 3


def draws(params: SamplingParams, n: int = 300) -> set[int]:
    sampler = Sampler(params)
    return {sampler.sample(LOGITS, []) for _ in range(n)}


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max()) / np.exp(x - x.max()).sum()


def test_the_samplers_keep_what_they_should() -> None:
    best = np.argsort(-LOGITS)
    chances = softmax(LOGITS.astype(np.float64))
    wide = {"seed": 1, "top_k": 0, "top_p": 1.0, "temperature": 3.0}
    assert draws(SamplingParams(**wide | {"top_k": 3})) == set(best[:3].tolist())
    nucleus = int(np.searchsorted(np.cumsum(chances[best]), 0.8)) + 1
    assert draws(SamplingParams(**wide | {"top_p": 0.8})) <= set(best[:nucleus].tolist())
    assert draws(SamplingParams(**wide | {"min_p": 0.3})) <= set(
        np.flatnonzero(chances >= 0.3 * chances.max()).tolist()
    )
    assert draws(SamplingParams(**wide | {"typical_p": 0.5})) < draws(SamplingParams(**wide))
    assert draws(SamplingParams(**wide | {"logit_bias": {7: 1e9}}), 5) == {7}


def test_frequencies_follow_the_probabilities() -> None:
    sampler = Sampler(SamplingParams(seed=3, top_k=0, top_p=1.0, temperature=1.0))
    counts = np.bincount([sampler.sample(LOGITS, []) for _ in range(4000)], minlength=VOCAB)
    assert np.abs(counts / 4000 - softmax(LOGITS.astype(np.float64))).max() < 0.03


def test_penalties() -> None:
    context = [4, 4, 9]
    for params, want in (
        (SamplingParams(temperature=0, repeat_penalty=2.0), lambda x, n: x / 2 if x > 0 else x * 2),
        (SamplingParams(temperature=0, frequency_penalty=0.5), lambda x, n: x - 0.5 * n),
        (SamplingParams(temperature=0, presence_penalty=0.5), lambda x, n: x - 0.5),
    ):
        x = LOGITS.astype(np.float64)
        expected = x.copy()
        for token, n in ((4, 2), (9, 1)):
            expected[token] = want(x[token], n)
        Sampler(params)._penalize(x, context)
        np.testing.assert_allclose(x, expected)


def test_a_seed_repeats_itself_and_batch_mates_do_not_matter() -> None:
    params = SamplingParams(seed=11, temperature=1.0, max_tokens=10)

    class Noisy(Successor):
        def __call__(self, batch: Batch) -> torch.Tensor:
            return super().__call__(batch) * 0.2

    def answer(mates: int) -> list[int]:
        engine = Engine(Noisy(), 64, 4, "f32")
        seqs = [Sequence([5], params)] + [Sequence([m], SamplingParams(seed=m, max_tokens=7)) for m in range(mates)]
        for seq in seqs:
            engine.add(seq)
        finish(engine)
        return list(seqs[0].generated)

    assert answer(0) == answer(3)


def test_logprobs_are_those_of_the_raw_softmax() -> None:
    report = Sampler(SamplingParams(logprobs=2)).logprobs(LOGITS, 3)
    assert report is not None
    chances = np.log(softmax(LOGITS.astype(np.float64)))
    assert report.chosen == pytest.approx(chances[3])
    assert [token for token, _ in report.top] == np.argsort(-LOGITS)[:2].tolist()


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 1.5}, {"max_tokens": 0}, {"stop": ("",)}, {"grammar": "root ::= 'a'"}]
)
def test_parameters_out_of_range_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingParams(**wrong)  # type: ignore[arg-type]
