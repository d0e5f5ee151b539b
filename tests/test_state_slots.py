"""StateSlots: recurrent models answer as if every sequence were alone, and begin where another has been."""

import random
from collections.abc import Sequence as Ids

import numpy as np
import pytest
import torch

from gmoe.engine.block_manager import BlockManager
from gmoe.engine.engine import Engine
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.sequence import NO_SLOT, Sequence, Status
from gmoe.engine.state_slots import StateSlots, n_slots
from gmoe.layers.batch import Batch
from tests.foreseen import Foreseen
from tests.scripted_model import N_VOCAB, ScriptedModel

BLOCK = 32


class Remembering(ScriptedModel):
    """Its logits follow from a number that every token of the sequence has changed, and from nothing else."""

    recurrent = True

    def __init__(self, device: str = "cpu"):
        super().__init__()
        self.device = torch.device(device)
        self.passes: list[tuple[int, int, int, int]] = []

    def new_states(self, n_slots: int) -> list[int]:  # type: ignore[override]
        return [-7] * n_slots

    def __call__(self, batch: Batch) -> torch.Tensor:
        assert batch.paths is not None and self.device.type in ("cpu", "meta")
        states, rows = batch.states, []
        wanted = set(batch.output_rows.tolist())
        bounds = batch.query_starts.tolist()
        for begin, end, *path in zip(bounds, bounds[1:], *(part.tolist() for part in batch.paths), strict=False):
            source, target, kept, kept_after = path
            self.passes.append((source, target, kept, kept_after))
            assert (source == NO_SLOT) == (int(batch.positions[begin]) == 0)
            value = 1 if source == NO_SLOT else states[source]
            assert value != -7
            for row in range(begin, end):
                value = (value * 1_000_003 + int(batch.token_ids[row]) + 1) % (1 << 61)
                if kept != NO_SLOT and row - begin + 1 == kept_after:
                    states[kept] = value
                if row in wanted:
                    rows.append(np.random.default_rng(value).normal(0, 2, N_VOCAB).astype(np.float32))
            states[target] = value
        return torch.from_numpy(np.stack(rows) if rows else np.zeros((0, N_VOCAB), np.float32))


def answers(engine: Engine, prompts: Ids[Ids[int]], n: int) -> list[Sequence]:
    seqs = [Sequence(list(ids), SamplingParams(temperature=0, max_tokens=n)) for ids in prompts]
    for seq in seqs:
        engine.add(seq)
    while any(seq.finish_reason is None for seq in seqs):
        engine.step()
    return seqs


def alone(ids: Ids[int], n: int) -> list[int]:
    return list(answers(Engine(Remembering(), 2048, 1, "f32"), [ids], n)[0].generated)


@pytest.mark.parametrize("device, guessed", [("cpu", False), ("cpu", True), ("meta", False)])
def test_whoever_runs_beside_or_before_changes_no_answer(device: str, guessed: bool) -> None:
    draw, ahead = random.Random(0), Foreseen([])
    model = Remembering(device)
    engine = Engine(model, 512, 3, "f32", chunk=64, n_blocks=13, speculation=ahead if guessed else None)
    known: list[list[int]] = [[draw.randrange(N_VOCAB) for _ in range(200)]]
    reused = 0
    for _ in range(40):
        prompts = []
        for _ in range(draw.randint(1, 5)):
            before = draw.choice(known)
            own = [draw.randrange(N_VOCAB) for _ in range(draw.randint(1, 60))]
            prompts.append(before[: draw.randrange(len(before) + 1)] + own if draw.random() < 0.8 else before)
        n = draw.randint(1, 50)
        want = [alone(ids, n) for ids in prompts]
        ahead.answers = [[*ids, *answer] for ids, answer in zip(prompts, want, strict=True)]
        for seq, answer in zip(answers(engine, prompts, n), want, strict=True):
            assert list(seq.generated) == answer
            reused += seq.n_reused
            known = [*known[-6:], seq.ids[:300]]
    assert reused > 500 and engine.scheduler.preemptions > 0
    states = engine.scheduler.blocks.states
    assert states is not None and not states._of and not any(states._readers.values())
    spare = [states._ahead] * (device == "cpu")
    left = [*states._empty, *states._kept.values(), *(s for own in states._free for s in own), *spare]
    assert sorted(left) == list(range(n_slots(3, device != "cpu")))
    assert guessed == (states._ahead in {target for _, target, _, _ in model.passes})


def test_the_next_turn_of_a_conversation_begins_behind_the_last_answer() -> None:
    engine = Engine(Remembering(), 2048, 2, "f32", chunk=128)
    prompt = [n % N_VOCAB for n in range(300)]
    (first,) = answers(engine, [prompt], 100)
    (second,) = answers(engine, [[*first.ids, 5, 6, 7]], 3)
    assert second.n_reused == 384  # the last block of the 400 tokens
    (again,) = answers(engine, [prompt], 3)
    assert again.n_reused == 256  # 16 tokens at least before the end of its prompt
    (other,) = answers(engine, [[*prompt[:140], *([9] * 100)]], 3)
    assert other.n_reused == 128  # where its length had doubled


def test_an_answer_of_several_tokens_a_step_is_begun_from_as_well() -> None:
    prompt = [n % N_VOCAB for n in range(300)]
    whole = [*prompt, *alone(prompt, 100)]
    for seed in range(10):
        engine = Engine(Remembering(), 2048, 2, "f32", chunk=128, speculation=Foreseen([whole], seed))
        (first,) = answers(engine, [prompt], 100)
        assert first.ids == whole and first.n_accepted > 20
        (second,) = answers(engine, [[*whole, 5, 6, 7]], 3)
        assert second.n_reused == 384 and list(second.generated) == alone([*whole, 5, 6, 7], 3)


def test_what_reuses_nothing_leaves_what_is_kept() -> None:
    engine = Engine(Remembering(), 2048, 1, "f32", chunk=128)
    prompt = [n % N_VOCAB for n in range(300)]
    answers(engine, [prompt], 3)
    for n in range(4):
        engine.logits([n, *prompt])
    assert answers(engine, [prompt], 3)[0].n_reused == 256


def test_on_a_device_a_pass_leaves_the_state_that_it_began_with() -> None:
    model = Remembering("meta")
    answers(Engine(model, 512, 2, "f32", chunk=64), [[1, 2, 3] * 50, [3, 2, 1]], 40)
    assert all(source != target for source, target, _, _ in model.passes)
    model = Remembering()
    answers(Engine(model, 512, 2, "f32", chunk=64), [[1, 2, 3] * 50], 40)
    assert sum(source == target for source, target, _, _ in model.passes) > 40


def test_a_state_that_somebody_is_about_to_read_is_not_given_away() -> None:
    blocks = BlockManager(64, BLOCK, StateSlots(1, False, BLOCK))

    def computed(ids: Ids[int]) -> Sequence:
        seq = Sequence(list(ids), SamplingParams())
        seq.status = Status.RUNNING
        blocks.reuse(seq)
        assert blocks.grow(seq, len(seq.ids))
        seq.n_cached = len(seq.ids)
        blocks.publish(seq)
        return seq

    blocks.release(computed([1] * 64))
    reader = Sequence([1] * 64, SamplingParams())
    assert blocks.reuse(reader) == 32
    for n in range(2, 12):  # more than there is room for
        blocks.release(computed([n] * 64))
    assert blocks.grow(reader, 64) and reader.path.source != NO_SLOT
    other = Sequence([1] * 64, SamplingParams())
    blocks.release(reader)
    assert blocks.reuse(other) == 32
