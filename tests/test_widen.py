"""A widened model is bigger and says the same."""

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gmoe.kernels.ops import dequantize
from tokenizers import Tokenizer

from gmoe.gguf.file import GGUFFile
from tools.demo.corpus import train_tokenizer
from tools.demo.export import export, read_model
from tools.demo.model import Model, Shape
from tools.widen import main, widen

SMALL = Shape(
    n_vocab=270, n_embd=64, n_layer=2, n_head=2, n_head_kv=1, head_dim=32, n_expert=4, n_expert_used=2, n_ff_exp=32
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on a busy machine mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter(["a small text about a small thing, again and again and again " * 20]), SMALL.n_vocab)


@pytest.fixture
def small(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    torch.manual_seed(0)
    model = Model(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    export(model.state_dict(), SMALL, tokenizer, tmp_path / "small.gguf", "F32")
    return tmp_path / "small.gguf"


@torch.no_grad()
def logits_and_routes(model: Model) -> tuple[np.ndarray, list[np.ndarray]]:
    chosen: list[np.ndarray] = []
    for block in model.blk:
        inner = block.route
        block.route = lambda x, inner=inner: (out := inner(x), chosen.append(out[0].numpy()))[0]
    ids = torch.arange(40).view(2, 20) * 7 % SMALL.n_vocab
    return model(ids)[0].numpy(), chosen


@pytest.mark.parametrize("n_embd, n_ff_exp", [(64, 160), (256, 32), (128, 96)])
def test_same_logits_and_routing(small: Path, tmp_path: Path, n_embd: int, n_ff_exp: int) -> None:
    widen(small, tmp_path / "wide.gguf", n_embd, n_ff_exp, "F32")
    wide = read_model(tmp_path / "wide.gguf")
    assert wide.blk[0].ffn_gate_exps.weight.shape == (4, n_ff_exp, n_embd)
    logits, routes = logits_and_routes(read_model(small))
    wide_logits, wide_routes = logits_and_routes(wide)
    np.testing.assert_allclose(wide_logits, logits, rtol=1e-4, atol=1e-4 * np.abs(logits).max())
    for one, other in zip(routes, wide_routes, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind, n_embd, n_ff_exp", [("Q8_0", 128, 96), ("Q5_0", 96, 64), ("Q4_0", 128, 64)])
def test_small_blocks_hold_the_same_numbers(small: Path, tmp_path: Path, kind: str, n_embd: int, n_ff_exp: int) -> None:
    widen(small, tmp_path / "plain.gguf", type_name=kind)
    widen(small, tmp_path / "wide.gguf", n_embd, n_ff_exp, kind)
    plain, _ = logits_and_routes(read_model(tmp_path / "plain.gguf"))
    wide, _ = logits_and_routes(read_model(tmp_path / "wide.gguf"))
    np.testing.assert_allclose(wide, plain, rtol=1e-4, atol=1e-4 * np.abs(plain).max())


@pytest.mark.parametrize("kind", ["Q6_K", "Q4_K_M", "Q2_K"])
def test_k_types_leave_zeros_zero(small: Path, tmp_path: Path, kind: str) -> None:
    widen(small, tmp_path / "wide.gguf", 256, 512, kind)
    with GGUFFile.open(tmp_path / "wide.gguf") as file:
        down, gate = (file.view(f"blk.1.ffn_{part}_exps.weight") for part in ("down", "gate"))
        assert down.format.name.endswith("_K") and gate.format.name.endswith("_K")
        assert not dequantize(down)[..., SMALL.n_ff_exp :].any() and not dequantize(down)[:, SMALL.n_embd :].any()
        assert not dequantize(gate)[:, : SMALL.n_ff_exp, SMALL.n_embd :].any()
        assert dequantize(gate)[:, SMALL.n_ff_exp :].std() > 0.1
    logits, _ = logits_and_routes(read_model(small))
    wide, _ = logits_and_routes(read_model(tmp_path / "wide.gguf"))
    assert np.isfinite(wide).all()
    if kind == "Q6_K":
        assert np.corrcoef(wide.ravel(), logits.ravel())[0, 1] > 0.99


def test_metadata_is_kept(small: Path, tmp_path: Path) -> None:
    widen(small, tmp_path / "wide.gguf", 128, 96)
    old, new = gguf.GGUFReader(small).fields, gguf.GGUFReader(tmp_path / "wide.gguf").fields
    differing = {key for key in old if not key.startswith("GGUF.") and old[key].contents() != new[key].contents()}
    assert differing == {
        "general.file_type",
        "qwen3moe.attention.layer_norm_rms_epsilon",
        "qwen3moe.embedding_length",
        "qwen3moe.expert_feed_forward_length",
        "qwen3moe.feed_forward_length",
    }


def test_refuses_to_shrink(small: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"small\.gguf: n_embd 64 and n_ff_exp 32 can only grow"):
        main([str(small), str(tmp_path / "narrow.gguf"), "--n-ff-exp", "16"])
