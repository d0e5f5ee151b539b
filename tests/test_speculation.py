"""Speculation: the same tokens from the same logits in every architecture, drafts that pay, and none that do not."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_model import N_VOCAB, ScriptedModel, counting, hashed

import gmoe
from gmoe.engine import lookup
from gmoe.engine.engine import BLOCK_SIZE, Engine, StepOutput
from gmoe.engine.lookup import Guess, Lookup
from gmoe.engine.replay import Replay
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.sequence import Sequence
from gmoe.engine.speculation import Speculation
from tests.factory import ARCHITECTURES, write_model
from tests.foreseen import Foreseen
from tools import bench_speculation

CONTEXT = 160


def answers(engine: Engine, seqs: list[Sequence]) -> tuple[list[list[int]], list[tuple[int, bytes]]]:
    """What each says, alone one behind the other, and the logits that it was drawn from."""
    seen, choose = list[tuple[int, bytes]](), engine._choose

    def look(seq: Sequence, logits: np.ndarray) -> StepOutput:
        seen.append((len(seq.ids), logits.tobytes()))
        return choose(seq, logits)

    engine._choose = look  # type: ignore[method-assign]
    for seq in seqs:
        engine.add(seq)
        while not seq.finish_reason:
            engine.step()
    assert engine.scheduler.blocks.n_free == len(engine.scheduler.blocks.users)
    return [seq.ids for seq in seqs], seen


def requests(n_vocab: int, **given: Any) -> list[Sequence]:
    draw = random.Random(n_vocab)
    made = [
        Sequence(draw.choices(range(n_vocab), k=length), SamplingParams(max_tokens=16, seed=length, **given))
        for length in (5, 70)
    ]
    return [*made, Sequence(made[-1].ids[:64] + made[0].ids, made[0].params)]  # begins like the one before it


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_bit_changes(name: str, tmp_path: Path) -> None:
    with gmoe.LLM.load(write_model(tmp_path / "m.gguf", name), gmoe.RuntimeOptions(context=CONTEXT)) as llm:
        assert isinstance(llm._engine.speculation, Speculation)
        said = answers(Engine(Replay(llm.model), CONTEXT, 1, "f16"), requests(llm.model.n_vocab, temperature=0.8))
        engine = Engine(Replay(llm.model), CONTEXT, 1, "f16", speculation=Foreseen(said[0]))
        rows = widths(engine)
        assert answers(engine, requests(llm.model.n_vocab, temperature=0.8)) == said
        assert 4 * len(rows) < 3 * len(said[1]) and max(rows) > 10


def widths(engine: Engine) -> list[int]:
    """How many rows of logits each pass of an engine will be asked for."""
    seen, forward = list[int](), engine.runner.forward

    def count(turns: Any, rows: Any) -> np.ndarray:
        seen.append(len(rows))
        return forward(turns, rows)

    engine.runner.forward = count  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("ends", [{"max_tokens": 1}, {"max_tokens": 17}, {"max_tokens": None}, {"end": 9}])
def test_an_answer_ends_where_it_would(ends: dict[str, Any]) -> None:
    params = SamplingParams(temperature=0, max_tokens=ends.get("max_tokens", 40), logprobs=2)
    for context in (64, 2 * BLOCK_SIZE):
        want, got = (Sequence([3, 4], params, end_ids={ends.get("end", -1)}) for _ in range(2))
        said = answers(Engine(ScriptedModel(counting), context, 1, "f32"), [want])
        engine = Engine(ScriptedModel(counting), context, 1, "f32", speculation=Foreseen(said[0]))
        assert answers(engine, [got]) == said and got.finish_reason == want.finish_reason


class Rising:
    """A constraint: each token of an answer is above the one before, and the last is the highest."""

    def __init__(self) -> None:
        self.last = 0

    def allows(self, token: int) -> bool:
        return token > self.last

    def mask(self, n_vocab: int) -> np.ndarray:
        return np.arange(n_vocab) > self.last

    def accept(self, token: int) -> None:
        assert self.allows(token)
        self.last = token

    @property
    def complete(self) -> bool:
        return self.last == N_VOCAB - 1


def test_a_grammar_sees_the_tokens_that_are_said() -> None:
    def bound() -> list[Sequence]:
        params = [SamplingParams(temperature=2, seed=seed, max_tokens=40) for seed in range(4)]
        return [Sequence([seed], p, constraint=Rising()) for seed, p in enumerate(params)]  # type: ignore[arg-type]

    said = answers(Engine(ScriptedModel(hashed), CONTEXT, 1, "f32"), bound())
    ahead = Foreseen(said[0])
    engine = Engine(ScriptedModel(hashed), CONTEXT, 1, "f32", speculation=ahead)
    assert answers(engine, got := bound()) == said and 0 < ahead.accepted < ahead.drafted
    assert {seq.finish_reason for seq in got} == {"stop"} and max(len(seq.generated) for seq in got) > 4


def test_penalties_see_each_token() -> None:
    given: dict[str, Any] = {"temperature": 1.0, "repeat_penalty": 1.3, "presence_penalty": 0.5, "dry_multiplier": 0.8}
    said = answers(Engine(ScriptedModel(hashed), CONTEXT, 1, "f32"), requests(N_VOCAB, **given))
    for seed in range(5):
        engine = Engine(ScriptedModel(hashed), CONTEXT, 1, "f32", speculation=Foreseen(said[0], seed))
        assert answers(engine, requests(N_VOCAB, **given)) == said


def test_numbers_that_are_none_end_an_answer_behind_the_tokens_before_them() -> None:
    def broken(ids: Any) -> np.ndarray:
        return counting(ids) if len(ids) < 9 else np.full(N_VOCAB, np.nan, dtype=np.float32)

    for ahead in (None, Foreseen([[*range(3, 40)]], 3)):
        engine = Engine(ScriptedModel(broken), CONTEXT, 1, "f32", speculation=ahead)
        rows, outputs = widths(engine), list[StepOutput]()
        engine.add(seq := Sequence([3, 4], SamplingParams(temperature=0)))
        while not seq.finish_reason:
            outputs += engine.step()
        assert [output.token_id for output in outputs] == [5, 6, 7, 8, 9, 10, 11, None]
        assert str(outputs[-1].error) == "the model gave logits that are not numbers"
        assert ahead is None or (max(rows) > 3 and 0 < ahead.accepted < ahead.drafted)


def test_nothing_is_guessed_beside_others() -> None:
    engine = Engine(ScriptedModel(counting), CONTEXT, 2, "f32", speculation=Foreseen([[*range(3, 60)]]))
    rows = widths(engine)
    for _ in range(2):
        engine.add(Sequence([3, 4, 5, 6], SamplingParams(temperature=0, max_tokens=20), reuse_prefix=False))
    for _ in range(20):
        engine.step()
    assert rows == [2] * 20


def test_a_draft_sends_nobody_back() -> None:
    """Of three blocks the first has two, the other waits with one for a second; a draft that needs it is left out."""

    def run(ahead: Speculation | None) -> tuple[Engine, list[Sequence], list[int]]:
        engine = Engine(ScriptedModel(counting), 3 * BLOCK_SIZE, 2, "f32", chunk=8, n_blocks=3, speculation=ahead)
        rows, params = widths(engine), SamplingParams(temperature=0, max_tokens=50)
        grow, blocks = engine.scheduler.blocks.grow, engine.scheduler.blocks

        def asked(seq: Sequence, length: int, ahead: bool = False) -> bool:
            granted = grow(seq, length, ahead)
            refused.append(ahead and not granted)
            return granted

        blocks.grow = asked  # type: ignore[method-assign]
        seqs = [Sequence([n % N_VOCAB for n in range(begin, begin + 30)], params) for begin in (0, 7)]
        engine.add(seqs[0])
        while seqs[0].pending > 1 or len(seqs[0].ids) < 33:
            engine.step()
        engine.add(seqs[1])
        engine.add(extra := Sequence([*range(40)], params))
        while not all(seq.finish_reason for seq in [*seqs, extra]):
            before = engine.scheduler.preemptions
            engine.step()
            if rows[-1] > 1 and ahead is not None and len(engine.scheduler.running) > 1:
                assert engine.scheduler.preemptions == before
        return engine, [*seqs, extra], rows

    refused = list[bool]()
    _, want, _ = run(None)
    _, got, rows = run(Foreseen([seq.ids for seq in want]))
    assert any(refused)
    assert [seq.ids for seq in got] == [seq.ids for seq in want] and max(rows) > 10


@given(st.lists(st.integers(0, 3), max_size=80), st.integers(1, 20))
def test_a_guess_is_what_followed_the_same_tokens_last(ids: list[int], most: int) -> None:
    found, text = Lookup(), list[int]()
    for token in ids:
        text.append(token)
        if token == 3:
            continue  # not every end is looked at
        n = len(text)
        places = [p for p in range(lookup.SHORTEST, n) if text[p - lookup.SHORTEST : p] == text[-lookup.SHORTEST :]]
        if not places or n < lookup.SHORTEST:
            assert found.guess(text, most) == Guess()
            continue
        place, whole = places[-1], list(text)
        for k in range(most):
            whole.append(whole[place + k])
        same = next((k for k in range(place) if text[place - 1 - k] != text[n - 1 - k]), place)
        assert found.guess(text, most) == Guess(tuple(whole[n:]), min(same, lookup.LONGEST))


class Timed(ScriptedModel):
    """A step takes what `lasts` says of its rows."""

    def __init__(self, script: Callable[[Any], np.ndarray], lasts: Callable[[int], float]):
        super().__init__(script)
        self.lasts, self.now = lasts, 0.0

    def __call__(self, batch: Any) -> Any:
        self.now += self.lasts(batch.numbers.shape[1])
        return super().__call__(batch)


def copying(ids: Any) -> np.ndarray:
    """A text of 37 tokens over and over."""
    logits = np.zeros(N_VOCAB, dtype=np.float32)
    logits[(len(ids) % 37) ** 2 % N_VOCAB] = 9
    return logits


def took(
    script: Callable[[Any], np.ndarray], lasts: Callable[[int], float], n: int = 400, only_forward: bool = False
) -> tuple[float, list[int]]:
    """Seconds of an answer by those of single steps, and the rows of its steps."""
    model = Timed(script, lasts)
    engine = Engine(model, 512, 1, "f32", clock=lambda: model.now, speculation=Speculation(only_forward=only_forward))
    engine._only_forward = only_forward
    rows = widths(engine)
    answers(engine, [Sequence([1, 2, 3], SamplingParams(temperature=0, max_tokens=n))])
    return model.now / (n * lasts(1)), rows


def test_what_repeats_comes_several_tokens_a_step_as_far_as_steps_are_worth_it() -> None:
    share, rows = took(copying, lambda rows: rows**0.6)  # as experts of a layer that are read once for all
    assert share < 0.4 and max(rows) == 32
    share, rows = took(copying, lambda rows: max(1, rows / 8))  # until arithmetic takes longer than reading
    assert share < 0.3 and rows.count(8) > 20 and rows.count(32) == 2


def test_where_rows_cost_what_steps_do_nothing_is_drafted_but_a_try_now_and_then() -> None:
    share, rows = took(copying, lambda rows: rows)
    assert share < 1.02 and sum(n > 1 for n in rows) < 20


def test_guesses_that_are_wrong_are_not_computed() -> None:
    def turning(ids: Any) -> np.ndarray:
        """Three tokens that were there before, and another one behind them each time."""
        logits = np.zeros(N_VOCAB, dtype=np.float32)
        logits[[1, 2, 3, 4 + len(ids) // 4 % 40][len(ids) % 4]] = 9
        return logits

    share, rows = took(turning, lambda rows: rows**0.6)
    assert share < 1.05 and sum(n > 1 for n in rows) < 20


def test_right_guesses_that_are_computed_twice_behind_a_wrong_one_count_twice() -> None:
    def nearly(ids: Any) -> np.ndarray:
        """A text of 16 tokens over and over, one of which is another each time."""
        logits = np.zeros(N_VOCAB, dtype=np.float32)
        logits[len(ids) % 16 if len(ids) % 16 else 20 + len(ids) // 16 % 25] = 9
        return logits

    for lasts in (lambda rows: rows**0.6, lambda rows: rows**0.8):
        back, forward = (took(nearly, lasts, only_forward=again)[0] for again in (False, True))
        assert back < forward < 1.05
    assert took(copying, lambda rows: rows**0.6, only_forward=True)[0] < 0.5


def test_a_step_that_was_slow_once_is_tried_again() -> None:
    slow = iter([False, True, True] + [False] * 1000)
    share, rows = took(copying, lambda rows: rows if rows > 1 and next(slow) else rows**0.3)
    assert share < 0.5


def test_a_program_says_what_was_drafted(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", "qwen3moe")
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=256, speculate="off")) as llm:
        assert llm._engine.speculation is None and llm.stats["drafted_tokens"] == 0
        want = [event.token_id for event in llm.generate("a", SamplingParams(max_tokens=200, temperature=0))]
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=256)) as llm:
        ahead = llm._engine.speculation
        assert ahead is not None

        def as_if(rows: int, seconds: float) -> None:
            Speculation.computed(ahead, rows, rows**0.3)

        ahead.computed = as_if  # type: ignore[method-assign]
        events = [*(stream := llm.generate("a", SamplingParams(max_tokens=200, temperature=0)))]
        assert [event.token_id for event in events] == want
        assert 10 < llm.stats["accepted_tokens"] == stream.n_accepted <= stream.n_drafted
        before = llm.stats["drafted_tokens"]
        assert before == stream.n_drafted
        recorder = llm.record()
        assert [*llm.generate("a", SamplingParams(max_tokens=200, temperature=0))] and recorder.trace()
        assert llm.stats["drafted_tokens"] == before  # who listens hears of tokens that were said


def test_what_guesses_bring_is_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path / "m.gguf", "qwen3moe")
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven " * 20)
    bench_speculation.main([str(path), "--text", str(text), "--tokens", "60", "--rounds", "1", "-t", "1"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[0].strip("| ") for row in rows[2:]] == ["edited", "new", "the same"] and rows[3][1] == "60"
    ids = [*range(5000)]
    changed = bench_speculation.edited(ids, 5000)
    assert 20 < len(set(ids) - set(changed)) < 200 and changed != ids
