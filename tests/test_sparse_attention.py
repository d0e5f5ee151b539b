"""Attention to chosen tokens: what it says of all, of some, and of several sequences; and which an index chooses."""

from types import SimpleNamespace

import pytest
import torch
from gmoe.kernels import cpu_step
from gmoe.kernels.kv import KvShape, KvType
from gmoe.kernels.ops import Turns

from gmoe.layers import sparse_attention
from gmoe.layers.attention import causal
from gmoe.layers.group_index import GroupIndex
from gmoe.layers.row_index import RowIndex
from gmoe.layers.sparse_attention import Chosen, attend, attend_apart
from tests.test_step_cpu import random, scene

KINDS: list[KvType] = ["f32", "f16", "bf16", "q8_0"]


def slots(table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return table[positions // 32].long() * 32 + positions % 32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [KvShape(1, 72, 40), KvShape(2, 40, 64)])
def test_of_all_tokens_it_says_what_attention_does(
    kind: KvType, shape: KvShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    kv, turns = scene(shape, kind, [100, 40], [70, 3], cpu_step.levels()[-1])
    q, sinks = random(73, 4, shape.dk), random(4, seed=8)
    whole = cpu_step.attention(q, kv, turns, 0.125, causal, sinks, 2)
    tables = turns.block_tables[torch.tensor([0] * 70 + [1] * 3)]
    before = torch.minimum(torch.arange(100), turns.positions[:, None])
    chosen = Chosen(torch.stack([slots(t, p) for t, p in zip(tables, before, strict=True)]), turns.positions + 1)
    assert torch.equal(attend(q, kv, chosen, 0.125, sinks), whole)
    monkeypatch.setattr(sparse_attention, "COPIED", 1)
    assert torch.equal(attend(q, kv, chosen, 0.125, sinks), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_of_some_tokens_it_says_what_these_say(kind: KvType) -> None:
    kv, turns = scene(KvShape(1, 72, 40), kind, [100], [3], cpu_step.levels()[-1])
    q, keys, values = random(3, 4, 72), *kv.read(turns.block_tables[0], 100)
    some = torch.tensor([[0, 3, 31, 32, 60, 97], [2, 64, 95, 96, 97, 98], [5, 99, 0, 0, 0, 0]])
    counts = torch.tensor([6, 6, 2])
    got = attend(q, kv, Chosen(slots(turns.block_tables[0], some), counts), 0.125)
    for row, places, n in zip(range(3), some, counts, strict=True):
        weights = torch.softmax(q[row] @ keys[places[:n], 0].T * 0.125, -1)
        torch.testing.assert_close(got[row], weights @ values[places[:n], 0], atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_each_head_may_have_tokens_of_its_own(kind: KvType) -> None:
    kv, turns = scene(KvShape(2, 40, 64), kind, [100], [3], cpu_step.levels()[-1])
    q, (keys, values) = random(3, 6, 40), kv.read(turns.block_tables[0], 100)
    whole = cpu_step.attention(q, kv, turns, 0.125, causal, None, 2)
    before = torch.minimum(torch.arange(100), turns.positions.repeat_interleave(2)[:, None])
    everything = Chosen(slots(turns.block_tables[0], before), turns.positions.repeat_interleave(2) + 1)
    assert torch.equal(attend_apart(q, kv, everything, 0.125), whole)
    some = torch.tensor([[0, 3, 31, 32, 60, 97], [1, 2, 0, 0, 0, 0]] * 2 + [[5, 99, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]])
    counts = torch.tensor([6, 2, 6, 2, 2, 6])
    got = attend_apart(q.clone(), kv, Chosen(slots(turns.block_tables[0], some), counts), 0.125)
    for row, (places, n) in enumerate(zip(some, counts, strict=True)):
        token, head = divmod(row, 2)
        own = q[token, 3 * head : 3 * head + 3]
        weights = torch.softmax(own @ keys[places[:n], head].T * 0.125, -1)
        want = weights @ values[places[:n], head]
        torch.testing.assert_close(got[token, 3 * head : 3 * head + 3], want, atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_blocks_of_the_cache_are_seen_where_they_are(kind: KvType) -> None:
    kv, turns = scene(KvShape(2, 40, 64), kind, [100], [3], cpu_step.levels()[-1])
    q, table = random(3, 6, 40), turns.block_tables[0]
    some, counts = (
        torch.tensor([[0, 2], [1, 3], [2, 3], [0, 3], [1, 2], [0, 1]]),
        torch.tensor([64, 35, 36, 33, 64, 40]),
    )
    places = (some[:, :, None] * 32 + torch.arange(32)).flatten(1).clamp(max=99)
    want = attend_apart(q.clone(), kv, Chosen(slots(table, places), counts), 0.125)
    blocks = Turns(counts - 1, table[some], counts.int(), torch.arange(7, dtype=torch.int32))
    assert torch.equal(attend_apart(q, kv, blocks, 0.125), want)


@pytest.mark.parametrize("local", [0, 1, 2])
def test_a_block_counts_as_its_best_token_and_the_last_are_always_chosen(local: int) -> None:
    index, keys, q = SimpleNamespace(groups=2, size=4, most=3, local=local), random(50, 8), random(50, 2, 8, seed=1)
    found = GroupIndex.best(index, q, keys, torch.arange(50))  # type: ignore[arg-type]
    for at in range(12, 50):
        for group in range(2):
            scores = (keys[: at + 1] @ q[at, group]).split(4)
            forced = range(len(scores) - local, len(scores))
            others = sorted((n for n in range(len(scores)) if n not in forced), key=lambda n: -float(scores[n].max()))
            assert found[at, group].tolist() == sorted([*forced, *others[: 3 - local]])
    assert found[:12].tolist() == [[[0, 1, 2]] * 2] * 12
    keys[:] = keys[0]
    equal = GroupIndex.best(index, q, keys, torch.arange(50))  # type: ignore[arg-type]
    assert equal[49, 0].tolist() == sorted([0, 1, 2][: 3 - local] + [12 - n for n in range(local)])


def test_of_equal_scores_the_earlier_is_chosen() -> None:
    index, keys, q = SimpleNamespace(n_head=2, most=3), random(9, 8), random(4, 2, 8, seed=1)
    counts = torch.tensor([9, 8, 4, 3])
    assert RowIndex.best(index, q, torch.zeros(4, 2), keys, counts).tolist() == [[0, 1, 2]] * 4  # type: ignore[arg-type]
    keys[:] = keys[0]
    keys[7] = 2 * keys[0]
    q[:] = keys[0]
    found = RowIndex.best(index, q, torch.ones(4, 2), keys, counts)  # type: ignore[arg-type]
    assert found.tolist() == [[0, 1, 7], [0, 1, 7], [0, 1, 2], [0, 1, 2]]
