"""Triton's attention, norm, rotation and store against the reference: compiled where there is a card."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton", reason="triton is not installed")

from gmoe.kernels import reference_step
from gmoe.kernels.activations import under, within
from gmoe.kernels.kv import KvLayer, KvShape, KvType
from gmoe.kernels.reference_step import HeadRule, Mask, Turn, Turns
from gmoe.kernels.triton import step
from gmoe.kernels.triton.activation import activate
from gmoe.kernels.triton.attention import Tiles, attention, tiles, widths

from tests.pairs import pairwise
from tests.test_step_cpu import random, scene

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ["f32", "f16", "bf16", "q8_0"]
MASKS = [Mask("causal"), Mask("sliding", 50), Mask("chunked", 70)]
ROWS = [((530, 1, 40), (1, 1, 1)), ((270, 40), (6, 2)), ((90, 33), (20, 3))]  # a sequence's keys, and its new ones
PARTS = ("keys", "values", "key_scales", "value_scales")


def there(kv: KvLayer, turns: Turns) -> tuple[KvLayer, Turns]:
    """The same where the kernels run; the lengths stay on the CPU."""
    for name in PARTS:
        if getattr(kv, name) is not None:
            setattr(kv, name, getattr(kv, name).to(DEVICE))
    return kv, turns._replace(positions=turns.positions.to(DEVICE), block_tables=turns.block_tables.to(DEVICE))


def both(
    shape: KvShape, heads: int, kind: KvType, mask: Mask, lengths: list[int], new: list[int], how: Tiles | None = None
) -> None:
    """Sums of float32 in another order, with sinks and without."""
    plain = scene(shape, kind, lengths, new, None)  # type: ignore[arg-type]
    q, sinks = random(sum(new), heads, shape.dk), random(heads, seed=8)
    ways = ((sinks, 0.7), (None, 0.0))
    want = [reference_step.attention(q, *plain, 0.125, mask, some, cap) for some, cap in ways]
    given = there(*plain)
    for (some, cap), expected in zip(ways, want, strict=True):
        got = attention(
            q.to(DEVICE), *given, 0.125, mask, None if some is None else some.to(DEVICE), how, cap=cap
        ).cpu()
        assert (got - expected).abs().max() <= 5e-6 * expected.abs().max()


@pytest.mark.parametrize("row", pairwise({"kind": KINDS, "mask": MASKS, "rows": ROWS}), ids=str)
def test_attention_over_every_cache(row: dict[str, Any]) -> None:
    both(KvShape(2, 64, 64), 8, row["kind"], row["mask"], *map(list, row["rows"]))


@pytest.mark.parametrize(
    ("shape", "heads"),
    [
        (KvShape(1, 72, 40), 5),
        (KvShape(1, 40, 24), 24),
        (KvShape(2, 16, 200), 2),
        (KvShape(1, 7, 50), 1),
        (KvShape(1, 576, 512), 20),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_attention_of_every_shape(shape: KvShape, heads: int, kind: KvType) -> None:
    for lengths, new in (([130, 35], [1, 1]), ([50, 35], [18, 1])):  # in parts of 128 keys, and in one
        both(shape, heads, kind, Mask("causal"), lengths, new)


@pytest.mark.parametrize("mask", [Mask("causal"), Mask("sliding", 600), Mask("chunked", 1000)], ids=lambda m: m.kind)
def test_many_parts_are_merged_in_turns(mask: Mask) -> None:
    how = tiles(4, 32, 1, True)._replace(split=32)
    both(KvShape(1, 32, 32), 4, "f16", mask, [1100, 33], [2, 1], how)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_alone_and_in_company(kind: KvType) -> None:
    """Up to 16 rows a row's bits are its own; so are those of more rows where each is another sequence's."""
    shape, mask, q = KvShape(2, 32, 32), Mask("sliding", 100), random(20, 4, 32).to(DEVICE)
    lengths = [300, 270, 17, *range(1, 18)]
    for count in (3, 20):
        kv, turns = there(*scene(shape, kind, lengths[:count], [1] * count, None))  # type: ignore[arg-type]
        whole = attention(q[:count], kv, turns, 0.1, mask, None)
        for some in (range(count), range(count - 1)) if count > 16 else ([0], [1], [2], [2, 0]):
            rows = torch.tensor(list(some))
            part = Turns(
                turns.positions[rows.to(DEVICE)],
                turns.block_tables[rows.to(DEVICE)],
                turns.context_lens[rows],
                torch.arange(len(rows) + 1, dtype=torch.int32),
            )
            assert torch.equal(attention(q[rows.to(DEVICE)], kv, part, 0.1, mask, None), whole[rows.to(DEVICE)])


def test_a_few_rows_of_a_prompt_as_if_they_had_been_written() -> None:
    kv, turns = there(*scene(KvShape(1, 32, 32), "f16", [300], [9], None))  # type: ignore[arg-type]
    q = random(9, 16, 32).to(DEVICE)
    together = attention(q, kv, turns, 0.1, Mask("causal"), None)
    for row in range(9):
        one = turns._replace(
            positions=turns.positions[row : row + 1],
            context_lens=turns.context_lens - (8 - row),
            query_starts=torch.tensor([0, 1], dtype=torch.int32),
        )
        assert torch.equal(attention(q[row : row + 1], kv, one, 0.1, Mask("causal"), None), together[row : row + 1])


def test_widths_hold_keys_and_values() -> None:
    for d in range(1, 600):
        w = widths(d, d)
        assert w["D1"] + w["D2"] >= d and w["WIDTH"] >= d and (w["D2"] == 0 or w["D1"] < d)
        assert all(size == 0 or size >= 16 for size in (w["D1"], w["D2"], w["WIDTH"]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [KvShape(2, 64, 64), KvShape(1, 40, 24), KvShape(3, 7, 50), KvShape(1, 576, 512)])
def test_what_is_stored_has_the_reference_bits(kind: KvType, shape: KvShape) -> None:
    kv, plain = KvLayer(shape, 3, kind, DEVICE), KvLayer(shape, 3, kind)
    slots = torch.tensor([0, 33, 95, 40, 1])
    keys, values = random(5, shape.heads, shape.dk, scale=2.0), random(5, shape.heads, shape.dv, seed=1, scale=1e-3)
    keys[0, 0, 0], keys[2], values[1, 0, 1] = 1e-7, 0.0, 0.0
    plain.write(slots, keys, values)
    wide = torch.cat((keys, values), -1).to(DEVICE)  # parts of one product, as a model has them
    step.store(kv, slots.to(DEVICE), wide[..., : shape.dk], wide[..., shape.dk :])
    for name in PARTS:
        if getattr(kv, name) is not None:
            assert torch.equal(getattr(kv, name).cpu(), getattr(plain, name)), name


@pytest.mark.parametrize("n", [1, 15, 100, 2048, 5120])
def test_norm(n: int) -> None:
    x, weight, bias = random(9, 1, n, scale=3.0), random(n, seed=1), random(n, seed=2)
    for w, b in ((weight, bias), (weight, None), (None, None)):
        given = [None if part is None else part.to(DEVICE) for part in (w, b)]
        got = step.rms_norm(x.to(DEVICE), *given, 1e-6)
        torch.testing.assert_close(got.cpu(), reference_step.rms_norm(x, w, b, 1e-6), atol=2e-6, rtol=2e-5)
        assert torch.equal(got[4:5], step.rms_norm(x[4:5].to(DEVICE), *given, 1e-6))
        for scale in (1.0, 0.22):
            y = random(*x.shape, seed=3).to(DEVICE)
            want = x.to(DEVICE) + scale * y
            total, normed = step.residual_norm(x.to(DEVICE), y, scale, *given, 1e-6)
            assert total is y
            torch.testing.assert_close(total, want, atol=1e-6, rtol=1e-6)
            assert torch.equal(normed, step.rms_norm(total, *given, 1e-6))


@pytest.mark.parametrize("width", [1, 600])
@pytest.mark.parametrize("curve", [torch.sigmoid, torch.nn.functional.softplus])
def test_gates_of_rows_and_of_their_elements(curve: Callable[[torch.Tensor], torch.Tensor], width: int) -> None:
    gate, up = random(3, width, scale=8.0), random(3, 600, seed=1, scale=5.0)
    got = activate(curve.__name__, gate.to(DEVICE), up.to(DEVICE)).cpu()
    torch.testing.assert_close(got, up * curve(gate), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["swiglu", "geglu", "reglu", "relu2", "swiglu_oai", within(1.25), under(1.25)])
def test_activations(name: str) -> None:
    gate, up = random(3, 600, scale=2.0), random(3, 600, seed=1, scale=5.0)
    got = activate(name, None if name == "relu2" else gate.to(DEVICE), up.to(DEVICE)).cpu()
    torch.testing.assert_close(got, reference_step.activate(name, gate, up), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("neox", [False, True])
@pytest.mark.parametrize(("d", "n_rot"), [(8, 4), (64, 64), (80, 40), (128, 128)])
def test_rotation(neox: bool, d: int, n_rot: int) -> None:
    x, positions = random(5, 4, d), torch.tensor([0, 7, 2, 30, 131000])
    frequencies = 10000.0 ** (-torch.arange(0, n_rot, 2) / n_rot)
    angles = positions[:, None].float() * frequencies
    want = reference_step.rotate(x, torch.arange(5), angles.cos() * 1.1, angles.sin() * 1.1, neox)
    given = positions.to(DEVICE), frequencies.to(DEVICE), 1.1, neox
    got = step.rotate(x.to(DEVICE), *given).cpu()
    torch.testing.assert_close(got, want, atol=2e-6, rtol=2e-5)
    assert torch.equal(step.rotate(x.to(DEVICE)[:, 1:3], *given).cpu(), got[:, 1:3])


@pytest.mark.parametrize("neox", [False, True, None])
@pytest.mark.parametrize("norms", [(True, True), (False, True), (True, False)])
def test_heads_are_prepared_as_by_one_call_each(norms: tuple[bool, bool], neox: bool | None) -> None:
    both = random(5, 8, 48, scale=3.0).to(DEVICE)
    positions = torch.tensor([0, 7, 2, 30, 131000], device=DEVICE)
    q, k = both[:, :6], both[:, 6:]
    weight, bias = random(2, 48, seed=2).to(DEVICE), random(48, seed=4).to(DEVICE)
    rules = [HeadRule(weight[n], bias if n else None, 1e-5) for n in range(2)]
    frequencies = 10000.0 ** (-torch.arange(0, 40, 2, device=DEVICE) / 40)
    turn = None if neox is None else Turn(frequencies, 1.1, neox)
    wants = []
    for x, rule, norm in zip((q, k), rules, norms, strict=True):
        want = step.rms_norm(x, rule.weight, rule.bias, rule.eps) if norm else x
        wants.append(want if turn is None else step.rotate(want, positions, *turn))
    used = rules[0] if norms[0] else None, rules[1] if norms[1] else None
    got = step.heads(q, k, used, positions, turn)
    for ours, want in zip(got, wants, strict=True):
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, want, atol=2e-6, rtol=2e-5)


def test_what_does_not_fit_is_refused() -> None:
    kv, turns = scene(KvShape(2, 8, 8), "f16", [3], [1], None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"queries \[1, 3, 8\] do not fit 2 heads of 8"):
        attention(random(1, 3, 8), kv, turns, 1.0, Mask("causal"), None)
    with pytest.raises(ValueError, match=r"keys \[1, 2, 8\] and values \[1, 2, 9\] do not fit 1 slots"):
        step.store(kv, torch.zeros(1, dtype=torch.int64), random(1, 2, 8), random(1, 2, 9))
    with pytest.raises(ValueError, match=r"x \[1, 8\] and y \[2, 8\] do not fit"):
        step.residual_norm(random(1, 8), random(2, 8), 1.0, None, None, 1e-6)
    with pytest.raises(ValueError, match="unknown activation 'tanh'"):
        activate("tanh", random(1, 8), random(1, 8))
    with pytest.raises(ValueError, match="'situ:4.0:0.0' is computed on the CPU alone"):
        activate("situ:4.0:0.0", random(1, 8), random(1, 8))
    with pytest.raises(ValueError, match="'swiglu' needs a gate"):
        activate("swiglu", None, random(1, 8))
    with pytest.raises(ValueError, match=r"gate \[1, 1\] and up \[1, 8\] do not fit"):
        activate("swiglu", random(1, 1), random(1, 8))
    with pytest.raises(ValueError, match=r"q \[3, 1, 8\], k \[3, 0, 8\], 5 pairs and positions \[3\] do not fit"):
        step.rotate(random(3, 1, 8), torch.arange(3), random(5), 1.0, True)
    with pytest.raises(ValueError, match=r"a norm of \[16\] does not fit heads of 8"):
        step.heads(random(1, 2, 8), random(1, 1, 8), (HeadRule(random(16), None, 1e-5), None), torch.arange(1), None)
