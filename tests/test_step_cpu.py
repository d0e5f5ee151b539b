"""The compiled parts of a step at every level of this machine: the reference's numbers, the same bits everywhere."""

from typing import Literal

import numpy as np
import pytest
import torch
from gmoe.kernels import cpu_rows, cpu_step, reference_step
from gmoe.kernels.activations import kind_of, situ, under, within
from gmoe.kernels.formats import FORMATS, QuantTensor
from gmoe.kernels.kv import KvLayer, KvShape, KvType
from gmoe.kernels.ops import Linears
from gmoe.kernels.reference_step import HeadRule, Mask, RouterRule, Score, Turns

LEVELS = pytest.mark.parametrize("level", cpu_step.levels())
NEAR = {"atol": 2e-6, "rtol": 2e-5}
ACTIVATIONS = [
    "swiglu",
    "geglu",
    "reglu",
    "relu2",
    "swiglu_oai",
    within(3.5),
    under(3.5),
    situ(2.5, 1.5),
    situ(2.5, 0.0),
]


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@LEVELS
@pytest.mark.parametrize("n", [1, 15, 16, 64, 100, 2048])
def test_norm(level: str, n: int) -> None:
    x, weight, bias = random(9, n, scale=3.0), random(n, seed=1), random(n, seed=2)
    for w, b in ((weight, bias), (weight, None), (None, None)):
        got = cpu_step.rms_norm(x, w, b, 1e-6, 2, level)
        torch.testing.assert_close(got, reference_step.rms_norm(x, w, b, 1e-6), **NEAR)
        assert torch.equal(got, cpu_step.rms_norm(x, w, b, 1e-6, 1))
        assert torch.equal(got[4:5], cpu_step.rms_norm(x[4:5], w, b, 1e-6, 3, level))


@LEVELS
@pytest.mark.parametrize("neox", [False, True])
@pytest.mark.parametrize(("d", "n_rot"), [(8, 4), (64, 64), (80, 40), (128, 128)])
def test_rotation(level: str, neox: bool, d: int, n_rot: int) -> None:
    x, positions = random(5, 3, d), torch.tensor([0, 7, 2, 30, 31])
    angles = random(32, n_rot // 2, seed=1)
    cos, sin = angles.cos(), angles.sin()
    got = cpu_step.rotate(x, positions, cos, sin, neox, 2, level)
    torch.testing.assert_close(got, reference_step.rotate(x, positions, cos, sin, neox), **NEAR)
    assert torch.equal(got, cpu_step.rotate(x, positions, cos, sin, neox, 1))


@LEVELS
@pytest.mark.parametrize("n", [3, 64, 77])
def test_residual(level: str, n: int) -> None:
    x, y = random(400, n), random(400, n, seed=1)
    for scale in (1.0, 0.22):
        got = y.clone()
        cpu_step.residual(x, got, scale, 3, level)
        assert torch.equal(got, x + scale * y)
    with pytest.raises(ValueError, match="x must be contiguous"):
        cpu_step.residual(x[:, 1:], y[:, 1:].contiguous(), 1.0, 1)


@LEVELS
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("neox", [False, True])
def test_heads_are_prepared_as_by_one_call_each(level: str, neox: bool, wide: bool) -> None:
    q, k, positions = random(5, 6, 48), random(5, 2, 48, seed=1), torch.tensor([3, 0, 9, 9, 1])
    rules = [HeadRule(random(x.shape[1] * 48 if wide else 48, seed=2), None, 1e-5) for x in (q, k)]
    table = random(10, 16, seed=3).cos(), random(10, 16, seed=3).sin()
    wants = []
    for x, rule in zip((q, k), rules, strict=True):
        normed = cpu_step.rms_norm(x.reshape(5, -1, len(rule.weight)), rule.weight, None, 1e-5, 2, level).view(x.shape)
        wants.append(cpu_step.rotate(normed, positions, *table, neox, 2, level))
    got = q.clone(), k.clone()
    cpu_step.Heads(*rules)(*got, positions, table, neox, 2, level)
    assert torch.equal(got[0], wants[0]) and torch.equal(got[1], wants[1])
    got = q.clone(), k.clone()
    cpu_step.Heads(None, rules[1])(*got, positions, None, neox, 2, level)
    assert torch.equal(got[0], q) and not torch.equal(got[1], k)


@LEVELS
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(level: str, name: str) -> None:
    gate, up = random(4, 77, scale=5.0), random(4, 77, seed=1, scale=5.0)
    got = cpu_rows.activate(name, gate, up, 2, level)
    torch.testing.assert_close(got, reference_step.activate(name, gate, up), atol=1e-5, rtol=1e-5)
    assert torch.equal(got, cpu_rows.activate(name, gate, up, 1))
    scalar = random(4, 1, seed=3)
    for each in (scalar, gate):
        torch.testing.assert_close(cpu_rows.gated(each, up, 1, level), up * torch.sigmoid(each), **NEAR)
        soft = cpu_rows.gated(each, up, 1, level, curve="softplus")
        torch.testing.assert_close(soft, up * torch.nn.functional.softplus(each), **NEAR)
        assert torch.equal(soft, cpu_rows.gated(each, up, 3, curve="softplus"))


def test_a_bound_of_nothing_is_none() -> None:
    assert within(0.0) == within(1e-6) == "swiglu" and kind_of(within(7.0)) == ("swiglu_within", 7.0, 0.0)
    assert under(0.0) == "swiglu" and kind_of(under(7.0)) == ("swiglu_under", 7.0, 0.0)
    assert kind_of(situ(4.0, 0.0)) == ("situ", 4.0, 0.0) and kind_of(situ(4.0, 2.5)) == ("situ", 4.0, 2.5)
    for name in ("swiglu:7.0", "swiglu_within", "swiglu_under", "situ:4.0", "tanh"):
        with pytest.raises(ValueError, match=f"unknown activation '{name}'"):
            kind_of(name)


@LEVELS
def test_small_numbers_of_situ_keep_their_digits(level: str) -> None:
    """Where a tangent of 1 less 1 would have few."""
    up = torch.logspace(-8, 1, 300)[None] * torch.tensor([[1.0], [-1.0]])
    gate = torch.full_like(up, 50.0)
    got = cpu_rows.activate(situ(1.0, 100.0), gate, up, 1, level)
    want = 100.0 * torch.tanh(up.double() / 100.0)
    torch.testing.assert_close(got.double(), want, atol=0, rtol=5e-7)


@LEVELS
@pytest.mark.parametrize(("n", "rounds"), [(4, 20), (4, 1), (3, 2), (16, 5)])
def test_streams(level: str, n: int, rounds: int) -> None:
    mixes, x, y = random(5, (2 + n) * n), random(5, n, 77), random(5, 77, seed=1)
    weights = cpu_rows.stream_weights(mixes, n, rounds, 1e-3, 2, level)
    for got, want in zip(weights, reference_step.stream_weights(mixes, n, rounds, 1e-3), strict=True):
        torch.testing.assert_close(got, want, **NEAR)
    for part, its in zip((None, y), weights, strict=True):
        got = cpu_rows.blended(x, part, its, 2, level)
        torch.testing.assert_close(got, reference_step.blended(x, part, its), **NEAR)
        assert torch.equal(got, cpu_rows.blended(x, part, its, 1))
        assert torch.equal(got[2:3], cpu_rows.blended(x[2:3], None if part is None else part[2:3], its[2:3], 1))
    assert all(map(torch.equal, weights, cpu_rows.stream_weights(mixes, n, rounds, 1e-3, 1)))
    for wrong in ((0, 1), (17, 1), (n, -1)):
        with pytest.raises(ValueError, match="streams and"):
            cpu_rows.stream_weights(mixes, *wrong, 1e-3, 1)
    with pytest.raises(ValueError, match="weights must be"):
        cpu_rows.blended(x, y, weights[0], 1)


@LEVELS
def test_numbers_for_rows(level: str) -> None:
    x, most, each = random(4, 77, scale=40.0), torch.tensor([30.0]), random(4, 1, seed=3)
    calls = {
        cpu_rows.capped: (most, 30.0 * torch.tanh(x / 30.0)),
        cpu_rows.clamped: (most, x.clamp(-30.0, 30.0)),
        cpu_rows.scaled: (each, x * each),
    }
    for call, (number, want) in calls.items():
        got = call(x, number, 2, level)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=2e-5)
        assert torch.equal(got, call(x, number, 1)) and torch.equal(got[2:3], call(x[2:3], number[-2:][:1], 1))
        there = x.clone()
        assert call(there, number, 2, level, out=there) is there and torch.equal(there, got)
        there = x.clone()
        there[1, 5] = torch.nan
        assert call(there, number, 1, level)[1].isnan().nonzero().tolist() == [[5]]
    assert torch.equal(cpu_rows.scaled(x, most, 1, level), x * most)
    with pytest.raises(ValueError, match="gate must be contiguous float32"):
        cpu_rows.scaled(x, random(3, 1), 1, level)


@LEVELS
def test_layer_norms(level: str) -> None:
    x, weight, bias = random(5, 101, scale=3.0) + 7.0, random(101, seed=1), random(101, seed=2)
    got = cpu_step.rms_norm(cpu_rows.centred(x, 2, level), weight, bias, 1e-5, 2, level)
    torch.testing.assert_close(got, torch.nn.functional.layer_norm(x, (101,), weight, bias, 1e-5), **NEAR)
    assert torch.equal(got[3:4], cpu_step.rms_norm(cpu_rows.centred(x[3:4], 1), weight, bias, 1e-5, 1))


def test_warmth_of_positions() -> None:
    positions = torch.tensor([0, 5, 8190, 8191, 8192, 300_000])
    got = cpu_rows.warmth(positions, 1, 8192, 0.1)
    want = torch.log(torch.floor((positions + 1).double() / 8192) + 1.0) * 0.1 + 1.0
    torch.testing.assert_close(got[:, 0].double(), want, atol=0.0, rtol=2e-7)
    with pytest.raises(ValueError, match="a step at least 1, not 0"):
        cpu_rows.warmth(positions, 1, 0, 0.1)


RULES = [
    RouterRule(Score.SOFTMAX, 60, 4),
    RouterRule(Score.SOFTMAX, 512, 10, renormalize=True),
    RouterRule(Score.SOFTMAX_WEIGHT, 32, 4),
    RouterRule(Score.SIGMOID, 64, 6, 8, 3, random(64, seed=5, scale=0.1), renormalize=True, scale=2.5),
    RouterRule(Score.SQRT_SOFTPLUS, 17, 1),
    RouterRule(Score.SOFTMAX, 24, 5, renormalize=True, scale=0.5, each=random(24, seed=6)),
    RouterRule(Score.SOFTMAX, 48, 6, renormalize=True, chunk=4),
    RouterRule(Score.SOFTMAX, 82, 9, chunk=41),  # whose first expert of the second chunk counts to the first
]


@LEVELS
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.score.name}-{rule.experts}")
def test_routers(level: str, rule: RouterRule) -> None:
    logits = random(50, rule.experts, scale=2.0)
    ids, weights = cpu_step.Router(rule)(logits, 2, level)
    want_ids, want = reference_step.choose(logits, rule)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(weights, want, **NEAR)
    again = cpu_step.Router(rule)(logits[7:8], 1)
    assert torch.equal(again[0], ids[7:8]) and torch.equal(again[1], weights[7:8])


@LEVELS
@pytest.mark.parametrize("score", [Score.SIGMOID, Score.SOFTMAX, Score.SQRT_SOFTPLUS])
def test_routers_tell_logits_apart_whose_scores_round_alike(level: str, score: Score) -> None:
    logits = torch.tensor([[20.0, 25.0, -200.0, -199.0], [-300.0, 30.0, 29.0, -299.0]])
    rule = RouterRule(score, 4, 3)
    for ids, _ in (cpu_step.Router(rule)(logits, 1, level), reference_step.choose(logits, rule)):
        assert ids.tolist() == [[1, 0, 3], [1, 2, 3]]


@LEVELS
def test_a_router_of_chunks_weighs_experts_of_their_numbers(level: str) -> None:
    logits = torch.tensor([[1.0, 0.5, -40.0, -50.0, 2.0, 3.0, 2.5, -9.0]])
    chances = torch.softmax(logits, -1)[0]
    ids, weights = cpu_step.Router(RouterRule(Score.SOFTMAX, 8, 3, chunk=2))(logits, 1, level)
    assert ids.tolist() == [[2, 3, 2]]  # of experts 5, 6 and 4
    torch.testing.assert_close(weights[0], chances[[2, 3, 2]], **NEAR)
    with pytest.raises(ValueError, match="chunks of 0 experts"):
        cpu_step.Router(RouterRule(Score.SOFTMAX, 8, 3, chunk=0))


def scene(shape: KvShape, kind: KvType, lengths: list[int], new: list[int], level: str) -> tuple[KvLayer, Turns]:
    """A cache whose sequences lie in shuffled blocks; the last `new` tokens of each are this step's."""
    needed = [-(-length // 32) for length in lengths]
    order = torch.randperm(sum(needed) + 3, generator=torch.Generator().manual_seed(4)).tolist()
    tables = torch.zeros(len(lengths), max(needed), dtype=torch.int32)
    kv = KvLayer(shape, sum(needed) + 3, kind)
    for s, length in enumerate(lengths):
        mine = [order.pop() for _ in range(needed[s])]
        tables[s, : len(mine)] = torch.tensor(mine)
        slots = torch.tensor([mine[p // 32] * 32 + p % 32 for p in range(length)])
        keys, values = random(length, shape.heads, shape.dk, seed=s), random(length, shape.heads, shape.dv, seed=9 + s)
        cpu_step.store(kv, slots, keys, values, 2, level)
    positions = torch.cat([torch.arange(n - m, n) for n, m in zip(lengths, new, strict=True)])
    starts = torch.tensor([0, *np.cumsum(new)], dtype=torch.int32)
    return kv, Turns(positions, tables, torch.tensor(lengths, dtype=torch.int32), starts)


@LEVELS
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("shape", [KvShape(2, 64, 64), KvShape(1, 40, 24), KvShape(3, 7, 50)])
def test_what_is_stored_is_read(level: str, kind: KvType, shape: KvShape) -> None:
    kv, plain = KvLayer(shape, 3, kind), KvLayer(shape, 3, kind)
    slots = torch.tensor([0, 33, 95, 40, 1])
    keys, values = random(5, shape.heads, shape.dk, scale=2.0), random(5, shape.heads, shape.dv, seed=1, scale=1e-3)
    keys[0, 0, 0], values[1, 0, 1] = 1e-7, 0.0
    cpu_step.store(kv, slots, keys, values, 2, level)
    plain.write(slots, keys, values)
    for name in ("keys", "values", "key_scales", "value_scales"):
        if getattr(kv, name) is not None:
            assert torch.equal(getattr(kv, name), getattr(plain, name)), name


MASKS = [Mask("causal"), Mask("sliding", 50), Mask("sliding", 600), Mask("chunked", 70)]
SHAPES = [(KvShape(2, 64, 64), 8), (KvShape(4, 128, 128), 4), (KvShape(1, 72, 40), 5), (KvShape(1, 16, 200), 16)]


@LEVELS
@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"{mask.kind}{mask.size}")
@pytest.mark.parametrize(("shape", "heads"), SHAPES)
def test_attention(level: str, shape: KvShape, heads: int, mask: Mask) -> None:
    kv, turns = scene(shape, "f32", [670, 1, 40], [70, 1, 3], level)
    q, sinks = random(74, heads, shape.dk), random(heads, seed=8)
    for some, cap in ((sinks, 0.0), (None, 0.7), (None, 0.0)):
        got = cpu_step.attention(q, kv, turns, 0.125, mask, some, 2, level, cap=cap)
        torch.testing.assert_close(got, reference_step.attention(q, kv, turns, 0.125, mask, some, cap), **NEAR)
        assert torch.equal(got, cpu_step.attention(q, kv, turns, 0.125, mask, some, 1, cap=cap))
        if shape.dv <= shape.dk:  # where the queries were
            own = q.clone()
            part = own[..., : shape.dv]
            assert torch.equal(cpu_step.attention(own, kv, turns, 0.125, mask, some, 2, level, part, cap), got)
            assert torch.equal(part, got) and torch.equal(own[..., shape.dv :], q[..., shape.dv :])


@LEVELS
@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize(
    ("shape", "heads"), [(KvShape(1, 64, 32), 48), (KvShape(2, 40, 64), 6), (KvShape(3, 32, 24), 3)]
)
def test_few_queries_are_those_of_many(level: str, shape: KvShape, heads: int, kind: KvType) -> None:
    """One token's are read as they are stored, and shared by the threads where the cache has fewer heads."""
    kv, many = scene(shape, kind, [601], [66], level)
    q = random(66, heads, shape.dk)
    got = cpu_step.attention(q, kv, many, 0.125, Mask("causal"), None, 2, level)
    for token in (0, 39, 65):
        at = slice(token, token + 1)
        lens, starts = torch.tensor([536 + token], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
        one = Turns(many.positions[at], many.block_tables, lens, starts)
        for threads in (1, 2, 5):
            alone = cpu_step.attention(q[at], kv, one, 0.125, Mask("causal"), None, threads, level)
            assert torch.equal(alone, got[at])


@LEVELS
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("length", [70, 601])
def test_what_is_no_number_reaches_all_who_see_it_and_nobody_else(level: str, kind: KvType, length: int) -> None:
    shape, mask = KvShape(2, 64, 64), Mask("causal")
    kv, turns = scene(shape, kind, [length], [66], level)
    q = random(66, 4, 64)
    good = cpu_step.attention(q, kv, turns, 0.125, mask, None, 2, level)
    asked = q.clone()
    asked[9, 1, 5] = float("nan")
    got = cpu_step.attention(asked, kv, turns, 0.125, mask, None, 2, level)
    assert got[9, 1].isnan().all()
    got[9, 1] = good[9, 1]
    assert torch.equal(got, good)
    slot = turns.block_tables[0, (length - 40) // 32] * 32 + (length - 40) % 32
    keys, values = random(1, 2, 64, seed=5), random(1, 2, 64, seed=6)
    for x in (keys, values):
        cpu_step.store(kv, slot[None].long(), keys, values, 2, level)
        good = cpu_step.attention(q, kv, turns, 0.125, mask, None, 2, level)
        bad = [torch.where(torch.arange(64) == 40, float("nan"), y) if y is x else y for y in (keys, values)]
        cpu_step.store(kv, slot[None].long(), *bad, 2, level)
        got = cpu_step.attention(q, kv, turns, 0.125, mask, None, 2, level)
        assert torch.equal(got[:26], good[:26]) and got[26:, :, 40].isnan().all()


@LEVELS
def test_rows_of_what_is_no_number(level: str) -> None:
    x = random(4, 60)
    x[1] = x[2, 17] = float("nan")
    for name in ACTIVATIONS:
        for gate, up in ((x, torch.ones(4, 60)), (torch.ones(4, 60), x)):
            got, want = cpu_rows.activate(name, gate, up, 1, level), reference_step.activate(name, gate, up)
            assert torch.equal(got.isnan(), want.isnan()), name
    for curve in ("sigmoid", "softplus"):
        gate = x[:, 17:18].contiguous()
        assert cpu_rows.gated(gate, torch.ones(4, 60), 1, level, curve=curve)[1:3].isnan().all()
    for score in (Score.SOFTMAX, Score.SOFTMAX_WEIGHT, Score.SIGMOID):
        ids, weights = cpu_step.Router(RouterRule(score, 60, 4, renormalize=True))(x, 1, level)
        assert weights[1].isnan().all() and not weights[[0, 3]].isnan().any()
        assert all(len(set(row)) == 4 and 0 <= min(row) and max(row) < 60 for row in ids.tolist())


@LEVELS
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_attention_alone_and_in_company(level: str, kind: KvType) -> None:
    kv, turns = scene(KvShape(2, 64, 64), kind, [1100, 300], [70, 9], level)
    q = random(79, 4, 64)
    whole = cpu_step.attention(q, kv, turns, 0.1, Mask("causal"), None, 2, level)
    torch.testing.assert_close(whole, reference_step.attention(q, kv, turns, 0.1, Mask("causal"), None), **NEAR)
    for row, table in ((0, 0), (33, 0), (69, 0), (75, 1)):
        starts = torch.tensor([0, 1], dtype=torch.int32)
        one = Turns(
            turns.positions[row : row + 1], turns.block_tables[table : table + 1], turns.context_lens[:1], starts
        )
        for threads in (1, 3, 9):
            got = cpu_step.attention(q[row : row + 1], kv, one, 0.1, Mask("causal"), None, threads, level)
            assert torch.equal(got, whole[row : row + 1])


@pytest.mark.parametrize("n", [1, 17, 1024, 50001])
def test_the_largest(n: int) -> None:
    x = random(n).round(decimals=1).numpy()
    assert cpu_step.argmax(x) == int(x.argmax())
    for k in (1, 5, 40):
        want = np.argsort(-x, kind="stable")[:k]
        assert np.array_equal(cpu_step.largest(x, k), want)
    x[n // 2] = np.nan
    assert cpu_step.argmax(x) == -1
    assert cpu_step.argmax(np.full(n, -np.inf, np.float32)) == 0


def test_what_does_not_fit_is_refused_with_its_shapes() -> None:
    x, at = random(3, 8), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"weight must be contiguous float32 \[8\] on the CPU, not .* \[7\]"):
        cpu_step.rms_norm(x, random(7), None, 1e-6, 1)
    with pytest.raises(ValueError, match="no kernel level 'sse9'"):
        cpu_step.rms_norm(x, None, None, 1e-6, 1, "sse9")
    with pytest.raises(ValueError, match="a rotation of 10"):
        cpu_step.rotate(random(3, 1, 8), torch.arange(3), random(4, 5), random(4, 5), True, 1)
    with pytest.raises(ValueError, match="a norm of 7 and a rotation of 0 do not fit 2 heads of 8"):
        cpu_step.Heads(HeadRule(random(7), None, 1e-6), None)(random(1, 2, 8), random(1, 1, 8), at, None, True, 1)
    with pytest.raises(ValueError, match=r"k must be contiguous float32 \[1, 1, 8\] on the CPU, not .* \[2, 1, 8\]"):
        cpu_step.Heads(None, None)(random(1, 2, 8), random(2, 1, 8), at, None, True, 1)
    with pytest.raises(ValueError, match="5 of 4 experts"):
        cpu_step.Router(RouterRule(Score.SOFTMAX, 4, 5))
    kv = KvLayer(KvShape(2, 8, 8), 1, "f16")
    with pytest.raises(ValueError, match=r"queries \[1, 3, 8\] do not fit 2 heads of 8"):
        zero = torch.zeros(1, dtype=torch.int64)
        turns = Turns(zero, zero[None].int(), zero.int(), torch.tensor([0, 1], dtype=torch.int32))
        cpu_step.attention(random(1, 3, 8), kv, turns, 1.0, Mask("causal"), None, 1)


def test_parts_of_rows_are_laid_beside_others() -> None:
    x = random(5, 3, 20)
    out = torch.zeros(5, 3, 32)
    cpu_step.lay(x[..., 4:11], out[..., 16:23], 2)
    assert torch.equal(out[..., 16:23], x[..., 4:11])
    assert not out[..., :16].any() and not out[..., 23:].any()
    with pytest.raises(ValueError, match="side by side"):
        cpu_step.lay(x.transpose(1, 2), out, 1)
    with pytest.raises(ValueError, match=r"out must be float32 \[5, 3, 7\]"):
        cpu_step.lay(x[..., 4:11], out, 1)


@pytest.mark.parametrize("activations", ["q8", "float"])
def test_results_lie_in_the_memory_that_is_given(activations: Literal["q8", "float"]) -> None:
    weights = [(QuantTensor(random(n, 32).view(torch.uint8), FORMATS["F32"], (n, 32)), random(n)) for n in (5, 7)]
    maps, x, out = Linears(weights, activations), random(3, 32), torch.full((3, 12), 7.0)
    want = maps(x)
    got = maps(x, out)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert torch.equal(out.flatten(), torch.cat([y.flatten() for y in want])) and got[0].data_ptr() == out.data_ptr()
    if activations == "q8":
        for bad in (torch.empty(3, 11), x):
            with pytest.raises(ValueError, match="out"):
                maps(x, bad)
