"""Every quant type against gguf-py, bit for bit, and against the recorded vectors of llama.cpp."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gmoe.kernels.formats import FORMAT_BY_TYPE, FORMATS, QuantTensor
from gmoe.kernels.reference import as_tensor, dequantize

VECTORS = Path(__file__).parents[2] / "shared" / "fixtures" / "quant_vectors.npz"
BLOCKED = [name for name, row in FORMATS.items() if row.block_size > 1]
FLOATS = {"d": "<f2", "m": "<f2", "dmin": "<f2"}


def random_blocks(name: str, seed: int, n: int = 64) -> np.ndarray:
    """Random bytes, with float scales that are finite: large, denormal, zero and negative ones among them."""
    row, rng = FORMATS[name], np.random.default_rng(seed)
    data = rng.integers(0, 256, (n, row.type_size), dtype=np.uint8)
    scales = rng.choice(np.array([0.0, -0.0, 6e-8, -3e-5, 0.01, -0.5, 1.0, 900.0], np.float16), n)
    for field in row.fields:
        if field.dtype == "f2":
            begin = row.offset(field.name)
            data[:, begin : begin + 2] = rng.permutation(scales)[:, None].view(np.uint8)
    if name == "IQ1_M":  # its scale lies in the top nibbles of four words
        begin = row.offset("scales")
        words = data[:, begin : begin + 8].copy().view("<u2")
        nibbles = (scales.view(np.uint16)[:, None] >> np.array([0, 4, 8, 12])) & 15
        data[:, begin : begin + 8] = (words & 0x0FFF | nibbles << 12).astype("<u2").view(np.uint8)
    if name == "MXFP4":
        data[:, 0] = rng.integers(0, 250, n)
    return data


@pytest.mark.parametrize("name", FORMATS)
def test_sizes_are_those_of_the_file_format(name: str) -> None:
    row = FORMATS[name]
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (row.block_size, row.type_size)
    assert FORMAT_BY_TYPE[int(gguf.GGMLQuantizationType[name])] is row


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", BLOCKED)
def test_bit_exact_with_gguf(name: str, seed: int) -> None:
    data = random_blocks(name, seed)
    want = gguf.dequantize(data, gguf.GGMLQuantizationType[name])
    got = dequantize(QuantTensor(data, FORMATS[name], want.shape)).numpy()
    assert np.isfinite(want).all()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), want.astype(np.float32).view(np.uint32))


@pytest.mark.skipif(not VECTORS.exists(), reason="no shared fixtures beside the checkout")
@pytest.mark.parametrize("kind", ["", "_rnd"])
@pytest.mark.parametrize("name", ["F16", "BF16", *BLOCKED])
def test_equal_to_recorded_vectors(name: str, kind: str) -> None:
    vectors = np.load(VECTORS)
    want, row = vectors[f"{name}{kind}_deq"], FORMATS[name]
    raw = vectors[f"{name}{kind}_raw"].reshape(len(want), -1)
    got = dequantize(QuantTensor(raw, row, want.shape)).numpy()
    np.testing.assert_array_equal(got, want)


def test_a_block_by_hand() -> None:
    codes = np.arange(-16, 16, dtype=np.int8)
    data = np.concatenate([np.array([0.5], np.float16).view(np.uint8), codes.view(np.uint8)])[None]
    got = dequantize(QuantTensor(data, FORMATS["Q8_0"], (1, 32)))
    assert got.tolist() == [(np.arange(-16, 16) * 0.5).tolist()]  # scale 0.5 times the code


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "I8", "I32"])
def test_plain_numbers(name: str) -> None:
    values = torch.tensor([[1.0, -2.0, 0.0, 96.0]])
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8, "I32": torch.int32}
    data = values.to(kinds[name]).view(torch.uint8)
    assert dequantize(QuantTensor(data, FORMATS[name], (1, 4))).equal(values)


def test_a_read_only_array_is_shared_and_not_copied() -> None:
    array = np.arange(4, dtype=np.uint8)
    array.setflags(write=False)
    assert as_tensor(array).data_ptr() == array.ctypes.data


def test_a_row_must_be_whole_blocks() -> None:
    with pytest.raises(ValueError, match="200 elements is not a multiple of Q4_K's block of 256"):
        FORMATS["Q4_K"].row_bytes(200)
