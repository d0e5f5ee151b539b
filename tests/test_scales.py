"""Scales beside maps and experts: their products, not their values, are multiplied."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gmoe.kernels.formats import QuantTensor

from gmoe.gguf.file import GGUFFile, TensorInfo, UnsupportedModel
from gmoe.gguf.rewrite import rewrite
from gmoe.llm import LLM
from gmoe.options import RuntimeOptions
from gmoe.passes.quantize import quantize
from tests.factory import Shape, write_model
from tests.fake_device import FakeDevice
from tests.scaled import scaled

EXACT = RuntimeOptions(device="cpu", activations="float", kv_type="f32", context=64)
DEFAULT = RuntimeOptions(device="cpu", context=64)
IDS = list(range(3, 30))
NAMES = ["llama", "qwen3", "qwen3moe", "qwen2moe", "qwen3next", "qwen35moe", "glm4moe", "nemotron_h_moe"]


@pytest.mark.parametrize("options", [EXACT, DEFAULT], ids=["exact", "default"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_and_their_scales_are_the_weights(tmp_path: Path, name: str, options: RuntimeOptions) -> None:
    path = write_model(tmp_path / "m.gguf", name)
    other = scaled(path, tmp_path / "scaled.gguf", np.random.default_rng(0))
    with LLM.load(path, options) as a, LLM.load(other, options) as b:
        for step in (0, 1):  # a prompt; a step that is recorded
            assert np.array_equal(a.logits(IDS, step), b.logits(IDS, step))


@pytest.mark.parametrize(("name", "experts"), [("qwen3", 0), ("qwen3moe", 8)])
def test_a_converted_model_says_what_its_values_say(tmp_path: Path, name: str, experts: int) -> None:
    path = write_model(tmp_path / "m.gguf", name, shape=Shape(embd=128, ff=64, ff_exp=64, expert=experts))
    packed = scaled(path, tmp_path / "packed.gguf", np.random.default_rng(0), packed=True)
    quantize(packed, tmp_path / "values.gguf", "F32", requantize=True)
    with LLM.load(packed, EXACT) as a, LLM.load(packed, DEFAULT) as b, LLM.load(tmp_path / "values.gguf", EXACT) as c:
        assert not a.notices
        want = c.logits(IDS)
        assert np.abs(a.logits(IDS) - want).max() < 1e-5 * want.std()  # experts of F32 are one kernel, others are not
        assert np.abs(b.logits(IDS) - want).mean() < 0.05 * want.std()


def test_a_device_has_scales_of_maps_alone(tmp_path: Path, card: FakeDevice) -> None:
    options = replace(EXACT, device="cuda")
    path = write_model(tmp_path / "m.gguf", "qwen3")
    other = scaled(path, tmp_path / "scaled.gguf", np.random.default_rng(0))
    with LLM.load(path, options) as a, LLM.load(other, options) as b:
        np.testing.assert_allclose(a.logits(IDS), b.logits(IDS), rtol=1e-4, atol=1e-5)
    path = scaled(write_model(tmp_path / "e.gguf"), tmp_path / "experts.gguf", np.random.default_rng(0))
    with pytest.raises(UnsupportedModel, match=r"experts.gguf: blk.0.ffn_gate_exps.scale: supported on the CPU, not"):
        LLM.load(path, options)


def test_where_experts_lie_changes_no_scale(tmp_path: Path) -> None:
    path = scaled(write_model(tmp_path / "m.gguf", "qwen3moe"), tmp_path / "scaled.gguf", np.random.default_rng(0))
    with LLM.load(path, DEFAULT) as whole:
        want, budget = whole.logits(IDS), whole.budget
    memory = str(budget.fixed + 6 * max(group.slot_bytes for group in budget.groups))
    few = RuntimeOptions(device="cpu", context=64, max_sequences=1, host_memory=memory)
    with LLM.load(path, few) as llm:
        assert not llm.store.whole
        assert np.array_equal(llm.logits(IDS), want)


@pytest.mark.parametrize(
    ("architecture", "added", "shape", "what"),
    [
        ("qwen3moe", "blk.0.attn_q.scale", (2,), "blk.0.attn_q.scale: has the shape [2], the rest of the file asks"),
        ("qwen3moe", "blk.1.ffn_up_exps.scale", (3,), "blk.1.ffn_up_exps.scale: has the shape [3], not [8]"),
        ("qwen3moe", "token_embd.scale", (1,), "token_embd.scale: scales are supported beside maps and experts"),
        ("qwen3moe", "blk.0.ffn_gate_inp.scale", (1,), "blk.0.ffn_gate_inp.scale: architecture qwen3moe of gmoe does"),
        ("qwen3moe+fused", "blk.0.ffn_gate_up_exps.scale", (8,), "ffn_gate_up_exps.scale: architecture qwen3moe of"),
        ("gpt-oss", "blk.0.ffn_down_exps.scale", (8,), "ffn_down_exps.scale: supported where ffn_down_exps has no"),
        ("llama4", "blk.1.ffn_down_exps.scale", (8,), "blk.1.ffn_down_exps.scale: llama4's experts have no scales"),
    ],
)
def test_scales_that_would_be_lost_are_refused(
    tmp_path: Path, architecture: str, added: str, shape: tuple[int, ...], what: str
) -> None:
    path = tmp_path / "added.gguf"
    with GGUFFile.open(write_model(tmp_path / "m.gguf", architecture)) as file:
        first = next(iter(file.tensors))
        norm = file.tensors["output_norm.weight"].format

        def edit(info: TensorInfo, tensor: QuantTensor) -> list[tuple[str, QuantTensor]]:
            more = QuantTensor(np.ones(shape, np.float32).view(np.uint8), norm, shape)
            return [(info.name, tensor)] + ([(added, more)] if info.name == first else [])

        rewrite(file, path, edit)
    with pytest.raises(UnsupportedModel) as error:
        LLM.load(path, DEFAULT)
    assert what in str(error.value) and str(path) in str(error.value)
