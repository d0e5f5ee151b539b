"""Encoders: no worse than llama.cpp's, the same bits on every number of threads, refusals in a sentence."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from gmoe.kernels.formats import FORMATS, QuantTensor
from gmoe.kernels.quantize import encodable, quantize
from gmoe.kernels.reference import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

VECTORS = Path(__file__).parents[2] / "shared" / "fixtures" / "quant_vectors.npz"
SEARCHED = [name for name in encodable() if FORMATS[name].block_size > 1]
SIMPLE = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"]  # those that gguf-py can encode, too
WORST = {"Q8_0": 0.005, "Q6_K": 0.02, "Q5_K": 0.04, "Q5_1": 0.04, "Q5_0": 0.04, "Q4_K": 0.075, "Q4_1": 0.07}
WORST |= {"Q4_0": 0.085, "IQ4_NL": 0.08, "IQ4_XS": 0.08, "MXFP4": 0.12, "Q3_K": 0.15, "Q2_K": 0.26}


def rows(seed: int = 0, shape: tuple[int, int] = (24, 512)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def error(x: np.ndarray, y: np.ndarray, weight: np.ndarray | float = 1.0) -> float:
    return float(np.sqrt((weight * (y - x) ** 2).sum() / (weight * x**2).sum()))


def decoded(q: QuantTensor) -> np.ndarray:
    return dequantize(q).numpy()


def test_the_issue_s_types_can_be_written() -> None:
    wanted = "F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4".split()
    assert set(wanted) <= set(encodable())


@pytest.mark.parametrize("name", SEARCHED)
def test_error_of_gaussian_rows(name: str) -> None:
    x = rows()
    got = error(x, decoded(quantize(x, FORMATS[name])))
    assert 0 < got < WORST[name]


@pytest.mark.skipif(not VECTORS.exists(), reason="no shared fixtures beside the checkout")
@pytest.mark.parametrize("name", SEARCHED)
def test_no_worse_than_llama_cpp(name: str) -> None:
    vectors = np.load(VECTORS)
    x, theirs = vectors["source"], vectors[f"{name}_deq"]
    assert error(x, decoded(quantize(x, FORMATS[name]))) <= error(x, theirs)


@pytest.mark.parametrize("name", SIMPLE)
def test_no_worse_than_gguf_py(name: str) -> None:
    x, kind = rows(1) * 0.02, gguf.GGMLQuantizationType[name]
    theirs = gguf.dequantize(gguf.quantize(x, kind), kind)
    assert error(x, decoded(quantize(x, FORMATS[name]))) < error(x, theirs)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_types_are_rounded_as_gguf_py_does(name: str) -> None:
    x, kind = rows(2), gguf.GGMLQuantizationType[name]
    assert quantize(x, FORMATS[name]).data.tobytes() == gguf.quantize(x, kind).tobytes()


@pytest.mark.parametrize("name", SEARCHED)
def test_importance_moves_the_error_to_columns_that_count_less(name: str) -> None:
    x, weight = rows(3), np.random.default_rng(4).lognormal(0, 1.5, 512).astype(np.float32)
    plain, weighted = decoded(quantize(x, FORMATS[name])), decoded(quantize(x, FORMATS[name], weight))
    assert error(x, weighted, weight) < error(x, plain, weight)
    assert error(x, weighted) > error(x, plain)
    even = quantize(x, FORMATS[name], np.full(512, 7.0))
    assert even.data.tobytes() == quantize(x, FORMATS[name]).data.tobytes()


@pytest.mark.parametrize("name", SEARCHED)
def test_bits_do_not_depend_on_threads_or_company(name: str) -> None:
    x = rows(5, (8, 4096))
    whole = quantize(x, FORMATS[name], threads=2).data
    assert np.array_equal(whole, quantize(x, FORMATS[name], threads=1).data)
    assert np.array_equal(whole[3:4], quantize(x[3:4], FORMATS[name]).data)
    assert np.array_equal(whole.reshape(2, 4, -1), quantize(x.reshape(2, 4, -1), FORMATS[name]).data)


@pytest.mark.parametrize("name", SEARCHED)
def test_what_a_block_can_say_exactly_it_says(name: str) -> None:
    x = np.zeros((3, 256), np.float32)
    x[1], x[2] = 1.0, -0.5
    y = decoded(quantize(x, FORMATS[name]))
    assert not y[0].any()
    np.testing.assert_allclose(y[1:], x[1:], rtol=0.01)


@pytest.mark.parametrize("name", SEARCHED)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_finite_block_is_written_as_finite_values(name: str, data: st.DataObject) -> None:
    floats = st.floats(-1000, 1000, width=32)
    x = data.draw(arrays(np.float32, (1, 256), elements=floats, fill=st.sampled_from([0.0, 1e-38, 3.0])))
    y = decoded(quantize(x, FORMATS[name]))
    assert np.isfinite(y).all()
    assert ((y - x) ** 2).sum() <= 1.01 * (x**2).sum() + 1e-6  # never worse than writing zeros


def test_refusals() -> None:
    x = rows()
    with pytest.raises(ValueError, match="gmoe cannot write IQ1_S; it can write F32, F16"):
        quantize(x, FORMATS["IQ1_S"])
    with pytest.raises(ValueError, match="a row of 100 elements is not a multiple of Q4_K's block of 256"):
        quantize(x[:, :100], FORMATS["Q4_K"])
    bad = x.copy()
    bad[3, 7] = np.nan
    with pytest.raises(ValueError, match="a value that is not finite cannot be written as Q4_0"):
        quantize(bad, FORMATS["Q4_0"])
    with pytest.raises(ValueError, match="512 columns need 512 importance weights"):
        quantize(x, FORMATS["Q4_0"], np.ones(3))
    with pytest.raises(ValueError, match="importance weights must be finite and not negative"):
        quantize(x, FORMATS["Q4_0"], np.full(512, -1.0))
