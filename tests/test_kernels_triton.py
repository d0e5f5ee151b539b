"""The Triton kernels against the reference: interpreted where there is no CUDA device, compiled where there is."""

import os
from dataclasses import replace

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton", reason="triton is not installed")

from gmoe.kernels import reference
from gmoe.kernels.formats import FORMATS, QuantTensor
from gmoe.kernels.reference_step import activate
from gmoe.kernels.triton import linears
from gmoe.kernels.triton.experts import ExpertBank, SlotMatrix, blocks_of, expert_mlp, expert_rows
from gmoe.kernels.triton.matmul import Launch, dequantize, matmul

from tests.test_formats import random_blocks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WEIGHTS = [name for name, row in FORMATS.items() if row.block_size > 1]
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def weights(name: str, rows: int, cols: int, seed: int = 0) -> QuantTensor:
    """Random finite weights of a format."""
    row = FORMATS[name]
    if name in PLAIN:
        values = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)).to(PLAIN[name])
        data = values.view(torch.uint8)
    else:
        data = torch.from_numpy(random_blocks(name, seed, rows * cols // row.block_size).reshape(rows, -1))
    return QuantTensor(data.to(DEVICE), row, (rows, cols))


@pytest.mark.parametrize("name", [*WEIGHTS, *PLAIN])
def test_every_format_unpacks_to_the_reference(name: str) -> None:
    w = weights(name, 21, 320 if FORMATS[name].block_size < 256 else 512)
    assert dequantize(w).cpu().equal(reference.dequantize(QuantTensor(w.data.cpu(), w.format, w.shape)))


@pytest.mark.parametrize("tokens", [1, 2, 17])
@pytest.mark.parametrize(("name", "cols"), [("Q4_K", 512), ("Q8_0", 288), ("F16", 40)])
def test_sums(name: str, cols: int, tokens: int) -> None:
    w = weights(name, 33, cols, seed=1)
    x = torch.randn(tokens, cols, generator=torch.Generator().manual_seed(2))
    dense = reference.dequantize(QuantTensor(w.data.cpu(), w.format, w.shape)).double()
    want, size = x.double() @ dense.T, x.double().abs() @ dense.abs().T  # [tokens, 33]
    assert ((matmul(x.to(DEVICE), w).cpu() - want).abs() <= 1e-6 * size).all()


@pytest.mark.parametrize("tokens", [1, 17])
@pytest.mark.parametrize("name", [*WEIGHTS, *PLAIN])
def test_every_format_is_multiplied_as_it_lies(name: str, tokens: int) -> None:
    cols = 768 if FORMATS[name].block_size == 256 else 832  # neither is whole turns of a kernel's loop
    w = weights(name, 9, cols, seed=1)
    dense = reference.dequantize(QuantTensor(w.data.cpu(), w.format, w.shape)).double()
    dense, x = dense / dense.abs().max(), torch.randn(tokens, cols, generator=torch.Generator().manual_seed(2))
    factor = reference.dequantize(QuantTensor(w.data.cpu(), w.format, w.shape)).double().abs().max()
    want, size = x.double() @ dense.T, x.double().abs() @ dense.abs().T  # [tokens, 9]
    for parts in (1, 3) if tokens == 1 else (1,):
        got = matmul(x.to(DEVICE), w, how=Launch(4 if tokens == 1 else 16, parts, 4, 1)).cpu().double() / factor
        assert ((got - want).abs() <= 1e-6 * size).all(), parts


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 5])
def test_half_precision_rounds_once_each_side(tokens: int, dtype: torch.dtype) -> None:
    if DEVICE == "cpu" and dtype is torch.bfloat16 and tokens > 1:
        pytest.skip("triton's interpreter multiplies tiles of bfloat16 as integers")
    w = weights("F16", 16, 64, seed=3)
    x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(4)).to(dtype)
    dense = reference.dequantize(QuantTensor(w.data.cpu(), w.format, w.shape)).double()
    want, size = x.double() @ dense.T, x.double().abs() @ dense.abs().T
    eps = torch.finfo(dtype).eps
    assert ((matmul(x.to(DEVICE), w).cpu().double() - want).abs() <= eps * size).all()


@pytest.mark.parametrize("tokens", [1, 5, 16, 17])
def test_maps_of_the_same_rows_are_one_launch(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(tokens, 288, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    some = [(weights(name, rows, 288, seed=rows), rows) for name, rows in (("Q8_0", 70), ("F16", 33), ("IQ4_NL", 8))]
    given = [(w, torch.randn(rows).to(DEVICE) if rows == 33 else None) for w, rows in some]
    wants = [matmul(x, w) if bias is None else matmul(x, w) + bias for w, bias in given]
    for which in (given, given[:2], given[1:2], [*given, *given]):
        got = linears.linears(x, which, True)
        expected = [wants[[w is other for other, _ in given].index(True)] for w, _ in which]
        assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
    launched: list[int] = []
    monkeypatch.setattr(
        linears, "matmul", lambda *_, **__: launched.append(1) or torch.zeros(tokens, 33, device=DEVICE)
    )
    linears.linears(x, given, True)
    assert bool(launched) == (tokens > linears.FEW)
    with pytest.raises(ValueError, match="does not fit weights"):
        matmul(x[:, 1:], given[0][0])


def bank_of(slots: int, width: int, inner: int, formats: tuple[str, str, str], biased: bool) -> ExpertBank:
    """Random experts in slots with a gap before each matrix, as aligned reads leave them."""
    shapes = ((inner, width), (inner, width), (width, inner))
    parts, matrices, offset = [], [], 0
    for n, (name, shape) in enumerate(zip(formats, shapes, strict=True)):
        data = torch.stack([weights(name, *shape, seed=97 * s + n).data.flatten() for s in range(slots)])
        bias = torch.randn(slots, shape[0], generator=torch.Generator().manual_seed(n)).to(DEVICE) if biased else None
        parts += [torch.zeros(slots, 16, dtype=torch.uint8, device=DEVICE), data]
        matrices.append(SlotMatrix(offset + 16, FORMATS[name], *shape, bias))
        offset += 16 + data.shape[1]
    return ExpertBank(torch.cat(parts, 1), *matrices)


def dense(bank: ExpertBank, matrix: SlotMatrix, slot: int) -> torch.Tensor:
    size = matrix.rows * matrix.format.row_bytes(matrix.cols)
    data = bank.data[slot, matrix.offset : matrix.offset + size].cpu()
    return reference.dequantize(QuantTensor(data, matrix.format, (matrix.rows, matrix.cols))).double()


def one_expert(x: torch.Tensor, bank: ExpertBank, slot: int, expert: int, activation: str) -> torch.Tensor:
    def times(a: torch.Tensor, matrix: SlotMatrix) -> torch.Tensor:
        y = dense(bank, matrix, slot) @ a
        return y if matrix.bias is None else y + matrix.bias[expert].cpu().double()

    gate = None if bank.gate is None else times(x, bank.gate)
    return times(activate(activation, gate, times(x, bank.up)), bank.down)


@pytest.mark.parametrize("tokens", [2, 20])
@pytest.mark.parametrize(
    ("formats", "activation", "biased"),
    [
        (("F16", "F16", "F32"), "swiglu", False),
        (("F16", "BF16", "F16"), "geglu", True),
        (("F32", "F16", "F16"), "reglu", False),
        (("F16", "F16", "F16"), "swiglu_oai", True),
        (("F16", "F16", "F16"), "swiglu_within:0.1", False),
        (("F16", "F16", "F16"), "swiglu_under:0.1", False),
        (("F16", "F16", "F16"), "relu2", False),
    ],
)
def test_experts_in_slots(formats: tuple[str, str, str], activation: str, biased: bool, tokens: int) -> None:
    bank = bank_of(4, 32, 24, formats, biased)
    if activation == "relu2":
        bank = ExpertBank(bank.data, None, bank.up, bank.down)
    rng = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, 32, generator=rng) / 6
    slot_of = torch.tensor([2, -1, 0, 3])  # experts 0 .. 3; expert 1 is not here
    ids = torch.stack([torch.randperm(4, generator=rng)[:2] for _ in range(tokens)])
    topk_weights = torch.rand(tokens, 2, generator=rng)
    slots = slot_of[ids].int()
    given = (x.to(DEVICE), slots.to(DEVICE), ids.to(DEVICE), topk_weights.to(DEVICE))
    got = expert_mlp(*given, bank, activation).cpu().double()
    want = torch.zeros(tokens, 32, dtype=torch.float64)
    for t in range(tokens):
        for slot, expert, weight in zip(slots[t].tolist(), ids[t].tolist(), topk_weights[t].double(), strict=True):
            if slot >= 0:
                want[t] += weight * one_expert(x[t].double(), bank, slot, expert, activation)
    assert (got - want).abs().max() < 2e-6 * want.abs().max()


@pytest.mark.parametrize("formats", [("Q4_K", "Q6_K", "Q8_0"), ("IQ2_XS", "MXFP4", "Q5_1")])
def test_quantized_experts_equal_the_plain_kernel(formats: tuple[str, str, str]) -> None:
    bank = bank_of(2, 256, 32, formats, False)
    x = torch.randn(1, 256, generator=torch.Generator().manual_seed(5)) * 1e-9  # random scales are large
    one = torch.ones(1, 1)
    index = torch.ones(1, 1, dtype=torch.int32)
    got = expert_mlp(x.to(DEVICE), index.to(DEVICE), index.to(DEVICE), one.to(DEVICE), bank, "reglu").cpu().double()
    want = one_expert(x[0].double(), bank, 1, 1, "reglu")
    assert (got[0] - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize(("tokens", "parts"), [(1, 2), (20, 1)])
def test_products_tile_after_tile_give_the_same_bits(tokens: int, parts: int) -> None:
    w = weights("Q8_0", 72, 288, seed=1)
    x = torch.randn(tokens, 288, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    want, *others = (matmul(x, w, how=Launch(16, parts, 4, 1, persistent)) for persistent in (0, 1, 4))
    assert len(want.unique()) > 50 * tokens and all(torch.equal(got, want) for got in others)


@pytest.mark.parametrize("tokens", [1, 2, 20])
@pytest.mark.parametrize("activation", ["reglu", "relu2"])
def test_one_program_after_another_gives_the_same_bits(activation: str, tokens: int) -> None:
    bank = bank_of(5, 96, 96, ("Q8_0", "Q8_0", "F16"), True)
    bank = replace(bank, gate=None) if activation == "relu2" else bank
    rng = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, 96, generator=rng).to(DEVICE)
    slots = torch.stack([torch.randperm(5, generator=rng)[:3] for _ in range(tokens)]).int().to(DEVICE)
    slots[0, 1] = -1
    results = []
    for persistent in (0, 1, 2):
        out = torch.full((tokens, 3, 96), 7.0, device=DEVICE)
        how = [Launch(32, 1, 4, 1, n) for n in (persistent, persistent and 3 - persistent)]
        expert_rows(x, slots, slots.clamp(min=0), bank, activation, out, how=(how[0], how[1]))
        results.append(out.cpu())
    assert (results[0][0, 1] == 7.0).all() and not (results[0][0, 0] == 7.0).any()
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("tokens", [1, 2, 20])
def test_slots_are_looked_up_by_id(tokens: int) -> None:
    bank = bank_of(5, 64, 64, ("Q4_0", "Q4_0", "Q4_0"), False)
    rng = torch.Generator().manual_seed(tokens)
    x, table = torch.randn(tokens, 64, generator=rng).to(DEVICE), torch.tensor([4, -1, 0, 2], dtype=torch.int32)
    ids = torch.stack([torch.randperm(4, generator=rng)[:3] for _ in range(tokens)]).int()
    ids[0, 0] = -1
    slots = torch.where(ids < 0, -1, table[ids.clamp(min=0)])
    results = []
    for where in (slots, table):
        out = torch.zeros(tokens, 3, 64, device=DEVICE)
        expert_rows(x, where.to(DEVICE), ids.to(DEVICE), bank, "reglu", out)
        results.append(out.cpu())
    assert torch.equal(*results) and (results[0] != 0).any(-1).equal(slots >= 0)


@pytest.mark.parametrize("m", [16, 32])
def test_blocks_hold_every_pair_once(m: int) -> None:
    rng = torch.Generator().manual_seed(m)
    slots = torch.randint(-1, 7, (123,), generator=rng)
    pairs, block_slot = blocks_of(slots, 7, m)
    assert len(pairs) == m * len(block_slot)
    owners = block_slot.repeat_interleave(m)
    live = (pairs >= 0) & (owners >= 0)
    assert sorted(pairs[live].tolist()) == torch.nonzero(slots >= 0).flatten().tolist()
    assert (slots[pairs[live].long()] == owners[live]).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    bank = bank_of(2, 32, 32, ("F16", "F16", "F16"), False)
    x, ids, one = torch.zeros(1, 32), torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1)
    with pytest.raises(ValueError, match=r"x \(1, 31\).* do not fit experts of width 32"):
        expert_mlp(x[:, :31], ids, ids, one, bank)
    with pytest.raises(ValueError, match="'relu2' does not go with a gate"):
        expert_mlp(x, ids, ids, one, bank, "relu2")
    with pytest.raises(ValueError, match=r"x of shape \(1, 31\) does not fit weights of shape \(4, 32\)"):
        matmul(x[:, :31], weights("F16", 4, 32))
