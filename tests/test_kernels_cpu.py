"""The CPU kernels: every format, level and shape against float64, and the same bits whatever is computed beside."""

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch
from gmoe.kernels import cpu_ops, cpu_step
from gmoe.kernels.cpu_step import HeadMaps, Linears
from gmoe.kernels.formats import FORMATS, QuantFormat, QuantTensor
from gmoe.kernels.grids import grid
from gmoe.kernels.ops import activate, matmul
from gmoe.kernels.record import record
from gmoe.kernels.reference import dequantize
from gmoe.kernels.rounding import round_activations

NAMES = [name for name in FORMATS if cpu_ops.supported(name)]


def random_rows(name: str, rows: int, cols: int, seed: int = 0) -> QuantTensor:
    """Random bytes with scales that are finite and of like size, so that every code and sign occurs."""
    rng = np.random.default_rng(seed)
    form = FORMATS[name]
    if form.block_size == 1:
        values = torch.from_numpy(rng.standard_normal((rows, cols)).astype(np.float32))
        kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]
        return QuantTensor(values.to(kind).view(torch.uint8).numpy(), form, (rows, cols))
    blocks = rng.integers(0, 256, (rows * (cols // form.block_size), form.type_size), dtype=np.uint8)
    for field in form.fields:
        at = form.offset(field.name)
        if field.dtype == "f2":
            scale = rng.uniform(0.001, 0.01, (len(blocks), field.count)).astype(np.float16)
            blocks[:, at : at + field.nbytes] = scale.view(np.uint8)
    if name == "MXFP4":
        blocks[:, form.offset("e")] = rng.integers(118, 124, len(blocks))
    if name == "IQ1_M":  # the four top nibbles are one f16
        words = blocks[:, form.offset("scales") :].view(np.uint16)
        bits = rng.uniform(0.001, 0.01, len(blocks)).astype(np.float16).view(np.uint16)
        for n in range(4):
            words[:, n] = (words[:, n] & 0x0FFF) | ((bits >> (4 * n)) & 15) << 12
    return QuantTensor(blocks.reshape(rows, -1), form, (rows, cols))


def activations(tokens: int, cols: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(tokens, cols, generator=torch.Generator().manual_seed(seed))


def assert_near(got: torch.Tensor, x: torch.Tensor, w: QuantTensor) -> None:
    """Within float32's rounding of the exact product of the rounded activations; sizes, not results, set the scale."""
    values, rounded = dequantize(w).double(), round_activations(x, w.format).double()
    bound = 4e-6 * (rounded.abs() @ values.abs().T) + 1e-30
    assert ((got.double() - rounded @ values.T).abs() <= bound).all()


def columns(form: QuantFormat) -> list[int]:
    known = {256: [256, 512, 768, 1280], 64: [64, 320, 448, 512], 32: [32, 352, 512]}
    return known.get(form.block_size, [7, 272])


@pytest.mark.parametrize("level", cpu_ops.levels())
@pytest.mark.parametrize("name", NAMES)
def test_matmul(name: str, level: str) -> None:
    for cols in columns(FORMATS[name]):
        w = random_rows(name, 37, cols)
        x = activations(40, cols)
        whole = cpu_ops.matmul(x, w, level=level)
        assert_near(whole, x, w)
        best = cpu_ops.matmul(x, w)
        assert torch.equal(whole, best)
        for tokens in (*range(1, 9), 13):
            assert torch.equal(cpu_ops.matmul(x[:tokens], w, level=level, threads=1), whole[:tokens])


@pytest.mark.parametrize("level", cpu_ops.levels())
@pytest.mark.parametrize("name", NAMES)
def test_one_token_and_rows_enough_to_be_read_in_runs(name: str, level: str) -> None:
    """Some CPUs read four runs of a task's rows at once where each has a page or more, and the rows behind them."""
    for cols in columns(FORMATS[name])[1:]:
        w, x = random_rows(name, 1003, cols), activations(2, cols)
        both = cpu_ops.matmul(x, w, level="portable")
        assert torch.equal(cpu_ops.matmul(x[:1], w, level=level, threads=1), both[:1])
        assert torch.equal(cpu_ops.matmul(x[1:], w, level=level, threads=2), both[1:])


@pytest.mark.parametrize("level", cpu_ops.levels())
@pytest.mark.parametrize("name", [name for name in NAMES if FORMATS[name].block_size > 1])
def test_the_largest_codes_and_activations_do_not_overflow(name: str, level: str) -> None:
    w = random_rows(name, 256, 256)
    codes = w.data.reshape(256, -1).copy()
    scales = codes.copy()
    codes[:] = np.arange(256, dtype=np.uint8)[:, None]  # every byte of a row is its number
    form = w.format
    for block in range(0, codes.shape[1], form.type_size):
        for field in form.fields:
            if field.dtype == "f2" or (name, field.name) in {("MXFP4", "e"), ("IQ1_M", "scales")}:
                at = slice(block + form.offset(field.name), block + form.offset(field.name) + field.nbytes)
                codes[:, at] = scales[:, at]
    w = QuantTensor(np.concatenate([codes, scales[:16]]), form, (272, 256))
    x = dequantize(w)[::8].sign()  # that a row's products all have one sign, and are as large as they can be
    x = torch.cat([x, -x])
    whole = cpu_ops.matmul(x, w, level=level)
    assert_near(whole, x, w)
    assert torch.equal(whole, cpu_ops.matmul(x, w, level="portable"))
    assert torch.equal(whole[:1], cpu_ops.matmul(x[:1], w, level=level))


def uneven(tokens: int, cols: int) -> torch.Tensor:
    """Tokens whose largest elements are of one sign, of both, many, few, at neighbours, or all; zeros; no number."""
    x = activations(tokens, cols)
    kinds = [x, x.abs(), -x.abs(), x.sign(), -x.sign().abs(), x**3, (x * 3).tanh(), x.clamp(max=1.0), x * 0]
    x = torch.stack([kinds[t % len(kinds)][t] for t in range(tokens)])
    x[3, 250:262] = 9.0
    x[4, 5] = float("nan")
    return x


@pytest.mark.parametrize("level", cpu_ops.levels())
@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q4_0"])
def test_uneven_activations_change_no_bit(name: str, level: str) -> None:
    w, x = random_rows(name, 40, 512), uneven(300, 512)
    whole, alone = cpu_ops.matmul(x, w, level=level), cpu_ops.matmul(x, w, level="portable")
    assert torch.equal(whole.isnan(), alone.isnan()) and not whole[5:].isnan().any()
    assert torch.equal(whole.nan_to_num(), alone.nan_to_num())
    for tokens in range(8, 18):  # what is behind whole eights, of most kinds first and last
        assert torch.equal(cpu_ops.matmul(x[7 : 7 + tokens], w, level=level), alone[7 : 7 + tokens])
    assert_near(whole[8:], x[8:], w)


@pytest.mark.parametrize("level", cpu_ops.levels())
@pytest.mark.parametrize("total", [1039, 1040, 1326, 1327, 1350, 1600, 2100, 4064])
def test_sums_at_the_limits_of_their_numbers_change_no_bit(total: int, level: str) -> None:
    """32 activations of one sign add up to `total`, which meets codes that are all largest, none, or by turns."""
    fours = np.arange(32) // 4 % 2 == 0
    groups = []
    for here in (np.full(32, True), fours, ~fours):
        group, n = np.zeros(32, dtype=int), int(here.sum())
        group[here] = np.minimum(total // n + (np.arange(n) < total % n), 127)
        groups += [group, -group]
    x = np.tile(groups, 8).astype(np.float32)  # [6, 256]
    x[:, :32] = 0
    x[:, [24, 25]] = 127, -127  # so that all of them are whole numbers of one scale
    x = torch.from_numpy(x).repeat_interleave(8, 0)
    w = random_rows("Q4_K", 32, 256)
    codes = [np.full(32, 255), np.zeros(32), np.where(fours, 255, 0), np.where(fours, 0, 255)]
    for row in range(24):
        w.data[row, 16:] = np.tile(codes[row % 4], 4)
    whole = cpu_ops.matmul(x, w, level=level)
    assert_near(whole, x, w)
    assert torch.equal(whole, cpu_ops.matmul(x, w, level="portable"))


@pytest.mark.parametrize("level", cpu_ops.levels())
@pytest.mark.parametrize("total", [500, 1022, 1023, 1024, 1025, 2032])
@pytest.mark.parametrize(("name", "codes"), [("Q6_K", slice(192)), ("Q3_K", slice(96)), ("Q2_K", slice(16, 80))])
def test_sums_of_16_at_the_limits_of_words_change_no_bit(name: str, codes: slice, total: int, level: str) -> None:
    """16 activations of one sign add up to `total`, which meets codes that are all smallest or all largest."""
    group = np.full(16, 127)
    group[1:] = np.minimum((total - 127) // 15 + (np.arange(15) < (total - 127) % 15), 127)
    x = torch.from_numpy(np.stack([np.tile(g, 16) for g in (group, -group)]).astype(np.float32))
    x = torch.cat([x, x.roll(1, 0).repeat_interleave(7, 0), x.repeat_interleave(8, 0), activations(3, 256)])
    w = random_rows(name, 32, 256)
    for row in range(24):
        w.data[row, codes] = row % 2 * 255
    whole = cpu_ops.matmul(x, w, level=level)
    assert_near(whole, x, w)
    assert torch.equal(whole, cpu_ops.matmul(x, w, level="portable"))


@pytest.mark.parametrize("level", cpu_ops.levels())
@pytest.mark.parametrize("total", [528, 529, 762, 763, 1016])
@pytest.mark.parametrize("name", ["IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S"])
def test_sums_of_eight_at_the_limits_of_words_change_no_bit(name: str, total: int, level: str) -> None:
    """The first two, or last two, activations of four columns add up to `total`, and meet a grid's largest points."""
    eight = np.full(8, 127)
    eight[1:] = (total - 127) // 7 + (np.arange(7) < (total - 127) % 7)
    places = np.arange(16) // 2 % 2 == 0  # 0 and 1 of each four
    groups = []
    for here in (places, ~places):
        group = np.zeros(16, dtype=int)
        group[here] = eight
        groups += [np.tile(group, 16), -np.tile(group, 16)]
    x = torch.from_numpy(np.stack(groups).astype(np.float32)).repeat_interleave(4, 0)
    x = torch.cat([x, activations(3, 256), x])
    w = random_rows(name, 32, 256)
    at, high = w.format.offset("qs"), np.array([0, 0, 0, 0xF0], dtype=np.uint8)  # of words of signs and a scale
    largest = [grid(name).reshape(-1, grid(name).shape[1] // 4, 4)[..., two].sum((1, 2)) for two in ([0, 1], [2, 3])]
    for row in range(24):  # all signs plus
        data, best = w.data[row], int(largest[row % 2].argmax())
        if name == "IQ3_XXS":
            data[at : at + 64], data[at + 64 :] = best, data[at + 64 :] & np.tile(high, 8)
        elif name == "IQ2_XXS":
            words = data[at:].reshape(8, 8)
            words[:, :4], words[:, 4:] = best, words[:, 4:] & high
        elif name == "IQ2_XS":
            data[at : at + 64].view(np.uint16)[:] = best
        else:
            data[at : at + 32], data[at + 32 : at + 64] = best & 255, 0
            data[at + 64 : at + 72] = (best >> 8) * 0b01010101
    whole = cpu_ops.matmul(x, w, level=level)
    assert_near(whole, x, w)
    assert torch.equal(whole, cpu_ops.matmul(x, w, level="portable"))


@pytest.mark.parametrize("name", [name for name in NAMES if cpu_ops.has_values(name)])
def test_rows_are_the_values_bit_for_bit(name: str) -> None:
    w, ids = random_rows(name, 9, 512), torch.tensor([8, 0, 3, 3, 7])
    assert torch.equal(cpu_ops.Rows(w)(ids), dequantize(w)[ids])
    assert torch.equal(cpu_ops.Rows(w)(ids[:1], threads=1), dequantize(w)[ids[:1]])
    for wrong in (torch.tensor([9]), torch.tensor([-1]), torch.tensor([0], dtype=torch.int32)):
        with pytest.raises(ValueError, match="ids must be contiguous int64 of 9 rows"):
            cpu_ops.Rows(w)(wrong)
    _, tape = record(lambda: cpu_ops.Rows(w)(ids))
    assert tape is not None
    ids[2] = 9
    with pytest.raises(ValueError, match="ids must be contiguous int64 of 9 rows"):
        tape.run()


@pytest.mark.parametrize("names", [("Q4_K", "Q4_K", "Q6_K"), ("Q8_0", "Q4_K", "F16", "BF16", "F32")])
@pytest.mark.parametrize("tokens", [1, 9, 40])
def test_several_matrices_at_once_are_each_by_itself(names: tuple[str, ...], tokens: int) -> None:
    rows = (300, 7, 64, 1, 33)
    weights = [random_rows(name, rows[n], 512, seed=n) for n, name in enumerate(names)]
    parts = [(w, None if n % 2 else activations(1, w.shape[0])[0]) for n, w in enumerate(weights)]
    x = activations(tokens, 512)
    for threads in (1, 3):
        for (w, bias), y in zip(parts, Linears(parts)(x, threads), strict=True):
            alone = cpu_ops.matmul(x, w)
            assert torch.equal(y, alone if bias is None else alone + bias)
        scales = [0.3 * n for n in range(len(parts))]
        for (w, bias), scale, y in zip(parts, scales, Linears(parts, scales)(x, threads), strict=True):
            alone = cpu_ops.matmul(x, w) * scale
            assert torch.equal(y, alone if bias is None else alone + bias)


@pytest.mark.parametrize("tokens", [1, 3, 20])
@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "F16", "F32", "IQ2_S"])
def test_maps_of_heads_are_each_by_itself(name: str, tokens: int) -> None:
    maps = [random_rows(name, 40, 256, seed) for seed in range(5)]
    wide = activations(tokens * 5, 300).view(tokens, 5, 300)
    x, into = wide[..., 7:263], torch.zeros(tokens, 5, 64)
    for threads in (1, 3):
        into.zero_()
        HeadMaps(maps)(x, into[..., 10:50], threads)
        for h, w in enumerate(maps):
            assert torch.equal(into[:, h, 10:50], cpu_ops.matmul(x[:, h].contiguous(), w))
        assert not into[..., :10].any() and not into[..., 50:].any()
    with pytest.raises(ValueError, match="one format and shape"):
        HeadMaps([maps[0], random_rows("Q4_0", 40, 256)])
    with pytest.raises(ValueError, match="x must be float32"):
        HeadMaps(maps)(wide, into, 1)


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "F16"])
def test_many_tokens_and_threads_change_no_bit(name: str) -> None:
    w, x = random_rows(name, 700, 512), activations(300, 512)
    whole = cpu_ops.matmul(x, w, threads=3)
    assert_near(whole, x, w)
    assert torch.equal(whole, cpu_ops.matmul(x, w, threads=1))
    assert torch.equal(whole[170:171], cpu_ops.matmul(x[170:171], w, threads=2))


@pytest.mark.parametrize(("name", "kind"), [("NVFP4", "float"), ("Q4_K", "float"), ("F16", "float")])
def test_what_is_unpacked_first_has_the_same_bits_in_any_company(name: str, kind: Literal["q8", "float"]) -> None:
    w, x = random_rows(name, 70, 512), activations(40, 512)
    whole = matmul(x, w, activations=kind)
    seen = round_activations(x, w.format) if kind == "q8" else x
    want = seen.double() @ dequantize(w).double().T
    assert (whole - want).abs().max() < 1e-5 * (seen.abs().double() @ dequantize(w).abs().double().T).max()
    for begin, end in ((0, 1), (3, 4), (7, 9), (5, 38)):
        assert torch.equal(whole[begin:end], matmul(x[begin:end], w, activations=kind))


def test_all_formats_are_here() -> None:
    missing = {"F64", "I8", "I16", "I32", "I64"}
    assert set(FORMATS) - set(NAMES) == missing


def test_zeros_and_not_a_number() -> None:
    w = random_rows("Q4_K", 5, 256)
    x = torch.zeros(3, 256)
    x[1, 7] = float("nan")
    x[2, 9] = float("inf")
    y = cpu_ops.matmul(x, w)
    assert torch.equal(y[0], torch.zeros(5))
    assert y[1:].isnan().all()


@dataclass(frozen=True)
class Experts:
    """An `ops.ExpertMatrix` for a test: n experts of random rows."""

    format: QuantFormat
    rows: int
    cols: int
    tensors: tuple[QuantTensor, ...]
    address: np.ndarray
    bias: np.ndarray | None
    scale: np.ndarray | None = None


@dataclass(frozen=True)
class Table:
    gate: Experts | None
    up: Experts
    down: Experts


def experts(name: str, n: int, rows: int, cols: int, seed: int, bias: bool, scaled: bool = False) -> Experts:
    tensors = tuple(random_rows(name, rows, cols, seed + i) for i in range(n))
    address = np.array([t.data.ctypes.data for t in tensors], dtype=np.int64)
    values = np.random.default_rng(seed).standard_normal((n, rows)).astype(np.float32) if bias else None
    scale = np.linspace(0.5, 1.5, n, dtype=np.float32) if scaled else None
    return Experts(FORMATS[name], rows, cols, tensors, address, values, scale)


def table(
    names: tuple[str, str, str], gated: bool = True, bias: bool = False, n: int = 5, scaled: bool = False
) -> Table:
    gate = experts(names[0], n, 288, 256, 10, bias, scaled) if gated else None
    up, down = experts(names[1], n, 288, 256, 30, bias, scaled), experts(names[2], n, 256, 288, 50, bias, scaled)
    return Table(gate, up, down)


def one_by_one(x: torch.Tensor, ids: torch.Tensor, t: Table, activation: str, out: torch.Tensor) -> None:
    """The same through `matmul` and torch's activations."""

    def times(h: torch.Tensor, m: Experts, e: int) -> torch.Tensor:
        y = cpu_ops.matmul(h, m.tensors[e])
        y = y if m.scale is None else y * float(m.scale[e])
        return y if m.bias is None else y + torch.from_numpy(m.bias[e])

    for token in range(ids.shape[0]):
        for j, e in enumerate(ids[token].tolist()):
            if e >= 0:
                row = x[token : token + 1]
                gate = None if t.gate is None else times(row, t.gate, e)
                out[token, j] = times(activate(activation, gate, times(row, t.up, e)), t.down, e)[0]


SKEWED = torch.tensor([[0, 1], [0, 3], [0, -1], [0, 3], [-1, -1], [0, 1], [3, 0]] * 3, dtype=torch.int32)


@pytest.mark.parametrize("level", cpu_ops.levels())
@pytest.mark.parametrize(
    "activation",
    ["swiglu", "geglu", "reglu", "relu2", "swiglu_oai", "swiglu_within:0.2", "swiglu_under:0.2", "situ:0.5:0.2"],
)
@pytest.mark.parametrize(("bias", "scaled"), [(False, False), (True, False), (False, True), (True, True)])
def test_experts(activation: str, level: str, bias: bool, scaled: bool) -> None:
    t = table(("Q4_K", "Q4_K", "Q8_0"), gated=activation != "relu2", bias=bias, scaled=scaled)
    x = activations(len(SKEWED), 256)
    out, expected = torch.full((len(SKEWED), 2, 256), -7.0), torch.full((len(SKEWED), 2, 256), -7.0)
    cpu_ops.expert_rows(x, SKEWED, t, activation, out, level=level)
    one_by_one(x, SKEWED, t, activation, expected)
    assert (out[SKEWED < 0] == -7).all()
    # a middle value on the edge of two 8-bit codes may fall to either side: a step of its block, twice at most
    for row in range(len(SKEWED)):
        scale = expected[row].abs().amax()
        assert (out[row] - expected[row]).abs().amax() <= 0.01 * scale


def test_experts_do_not_depend_on_company() -> None:
    t = table(("MXFP4", "Q6_K", "IQ4_NL"))
    x = activations(len(SKEWED), 256)
    out = torch.zeros(len(SKEWED), 2, 256)
    cpu_ops.expert_rows(x, SKEWED, t, "swiglu", out, threads=2)
    for level in cpu_ops.levels():
        for row in (0, 2, 6, 19):
            alone = torch.zeros(1, 2, 256)
            cpu_ops.expert_rows(x[row : row + 1], SKEWED[row : row + 1], t, "swiglu", alone, threads=1, level=level)
            assert torch.equal(alone[0], out[row])


@pytest.mark.parametrize("names", [("Q4_K", "Q6_K", "Q4_K"), ("Q8_0", "Q4_K", "Q4_K"), ("Q4_K", "Q4_0", "Q6_K")])
def test_experts_with_many_tokens_do_not_depend_on_the_level(names: tuple[str, str, str]) -> None:
    gate, up = (experts(name, 5, 512, 768, 20 * n, False) for n, name in enumerate(names[:2]))
    t = Table(gate, up, experts(names[2], 5, 300, 512, 50, False))
    x, weights = uneven(300, 768)[5:].contiguous(), activations(295, 2, seed=3)
    ids = SKEWED.repeat(15, 1)[:295]
    want = cpu_ops.expert_mlp(x, ids, weights, t, "swiglu", level="portable")
    for level in cpu_ops.levels():
        for threads in (1, 3):
            assert torch.equal(cpu_ops.expert_mlp(x, ids, weights, t, "swiglu", threads=threads, level=level), want)


def chosen(tokens: int, k: int = 4) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(tokens).integers(-1, 5, (tokens, k), dtype=np.int32))


@pytest.mark.parametrize("level", cpu_ops.levels())
def test_combine_adds_in_the_order_of_the_experts(level: str) -> None:
    ids, weights = chosen(40), activations(40, 4)
    out = activations(40 * 4, 256).view(-1, 4, 256)
    out[ids < 0] = float("nan")
    expected = torch.zeros(40, 256)
    for t in range(40):
        for j in sorted(range(4), key=lambda j: int(ids[t, j])):
            if ids[t, j] >= 0:
                expected[t] += weights[t, j] * out[t, j]
    assert torch.equal(cpu_ops.combine(out, weights, ids, level=level), expected)


@pytest.mark.parametrize("tokens", [1, 7, 21, 140])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_sum_is_that_of_the_rows(tokens: int, threads: int) -> None:
    t = Table(
        experts("Q4_K", 5, 544, 256, 10, True),
        experts("F16", 5, 544, 256, 30, True),
        experts("Q5_0", 5, 592, 544, 50, False),
    )
    x, weights, ids = activations(tokens, 256), activations(tokens, 4, seed=3), chosen(tokens)
    rows = torch.full((tokens, 4, 592), float("nan"))
    cpu_ops.expert_rows(x, ids, t, "swiglu", rows)
    expected = cpu_ops.combine(rows, weights, ids)
    for level in cpu_ops.levels():
        got = cpu_ops.expert_mlp(x, ids, weights, t, "swiglu", threads=threads, level=level)
        assert torch.equal(got, expected)
    absent = torch.full_like(ids, -1)
    assert not cpu_ops.expert_mlp(x, absent, weights, t, "swiglu", threads=threads).any()


def test_wrong_shapes_are_refused() -> None:
    w, x = random_rows("Q4_K", 8, 256), activations(2, 256)
    with pytest.raises(ValueError, match=r"x must be float32 \[any, 256\].*\[2, 128\]"):
        cpu_ops.matmul(x[:, :128], w)
    with pytest.raises(ValueError, match="float64"):
        cpu_ops.matmul(x.double(), w)
    with pytest.raises(ValueError, match="no kernel level 'neon9'"):
        cpu_ops.matmul(x, w, level="neon9")
    with pytest.raises(ValueError, match="bytes"):
        cpu_ops.matmul(x, QuantTensor(w.data[:7], w.format, w.shape))
    t, ids, out = (
        table(("Q4_K", "Q4_K", "Q8_0")),
        torch.tensor([[0, 5], [1, 1]], dtype=torch.int32),
        torch.zeros(2, 2, 256),
    )
    with pytest.raises(ValueError, match="expert 5 is chosen, gate has 5"):
        cpu_ops.expert_rows(x, ids, t, "swiglu", out)
    with pytest.raises(ValueError, match=r"topk_weights must be float32 \[2, 2\]"):
        cpu_ops.expert_mlp(x, ids.clamp(max=4), torch.ones(2, 3), t, "swiglu")
    with pytest.raises(ValueError, match="unknown activation"):
        cpu_ops.expert_rows(x, ids, t, "mish", out)
    t.up.address[1] = 0
    with pytest.raises(ValueError, match="up of expert 1 is chosen but absent"):
        cpu_ops.expert_rows(x, ids.clamp(max=1), t, "swiglu", out)


def test_the_environment_names_the_highest_level() -> None:
    def said(level: str) -> subprocess.CompletedProcess[str]:
        code = "from gmoe.kernels import cpu_ops, cpu_step; print(cpu_ops.levels(), cpu_step.levels())"
        environment = os.environ | {"GMOE_CPU_LEVEL": level}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    for highest in cpu_ops.levels()[1:2]:
        below = [level for level in cpu_ops.levels() if level in ("portable", highest)]
        assert said(highest).stdout.split("\n")[0] == f"{below} {below}"
    assert said("").stdout.split("\n")[0] == f"{cpu_ops.levels()} {cpu_step.levels()}"
    wrong = said("fast")
    assert wrong.returncode == 1 and "GMOE_CPU_LEVEL is 'fast'; this CPU has portable" in wrong.stderr


def test_a_result_may_not_lie_on_its_rows() -> None:
    buffer = torch.zeros(64)
    maps = Linears([(random_rows("F32", 32, 32), None)])
    for x, out in ((buffer[:32], buffer[:32]), (buffer[16:48], buffer[:32]), (buffer[:32], buffer[31:63])):
        with pytest.raises(ValueError, match="none of them x's"):
            maps(x.view(1, 32), 1, out)
