"""Every architecture on tiny models: llama.cpp's logits, and one answer however the tokens are cut into steps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gmoe.kernels.formats import FORMATS, QuantTensor
from gmoe.kernels.kv import KvType

from gmoe.engine.engine import Engine
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.sequence import Sequence
from gmoe.experts.budget import fixed_tensors
from gmoe.experts.device_budget import state_bytes, token_bytes
from gmoe.gguf.file import GGUFFile, TensorInfo, UnsupportedModel
from gmoe.gguf.hparams import Gating
from gmoe.gguf.rewrite import rewrite
from gmoe.layers import group_index
from gmoe.llm import LLM
from gmoe.models.decoder import architectures
from gmoe.models.deepseek2 import own_gating
from gmoe.options import RuntimeOptions
from tests.factory import ARCHITECTURES, Shape, write_model

EXACT = RuntimeOptions(activations="float", kv_type="f32", context=256, threads=1)
RECORDED = Path(__file__).parent / "data" / "llamacpp_logits.npz"
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
IDS = [*range(3, 60), 7, 8, 9, 200, 250, 100, 101]
INDEXED = [
    "deepseek4",
    "deepseek32",
    "glm-dsa+shared",
    "glm5-next",
    "qwen4exp",
    "minimax-m3+all",
    "dots3note",
    "hy_v4",
]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    path = write_model(tmp_path_factory.mktemp("models") / f"{request.param}.gguf", request.param)
    with LLM.load(path, EXACT) as llm:
        yield llm


def run(engine: Engine, prompts: list[list[int]], n: int) -> list[list[int]]:
    """Greedy tokens of prompts that run together."""
    seqs = [Sequence(list(ids), SamplingParams(temperature=0, max_tokens=n)) for ids in prompts]
    for seq in seqs:
        engine.add(seq)
    while any(seq.finish_reason is None for seq in seqs):
        engine.step()
    return [list(seq.generated) for seq in seqs]


def test_logits_are_those_of_llama_cpp(llm: LLM) -> None:
    recorded = np.load(RECORDED)
    name = llm.file.path.stem
    if name not in recorded:
        assert name == "qwen3moe+fused"  # llama.cpp reads no fused experts in this architecture
        return
    got = llm.logits(recorded["ids"].tolist())[recorded["rows"]]
    np.testing.assert_allclose(got, recorded[name], atol=1e-4, rtol=0)
    assert recorded[name].std() > 0.2


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("name", INDEXED)
def test_an_index_chooses_what_is_seen(tmp_path: Path, name: str, kv_type: KvType) -> None:
    """Tokens, pools, or rows of 4 beside which others are of 128: the same bits in chunks, together, begun later."""
    ids, recorded = 5 * IDS, np.load(RECORDED)[f"{name} long"]
    rows = [126, 254, 318] if name == "qwen4exp" else [126, 127, 255, 319]  # as the tool that recorded says
    with LLM.load(write_model(tmp_path / "m.gguf", name), replace(EXACT, context=512)) as llm:
        whole = Engine(llm.model, 512, 1, kv_type, 512).logits(ids)
        if kv_type == "f32":
            np.testing.assert_allclose(whole[rows], recorded, atol=1e-4, rtol=0)
        for chunk in (3, 100) if kv_type == "f32" else (37,):
            assert np.array_equal(Engine(llm.model, 512, 1, kv_type, chunk).logits(ids), whole)
        engine = Engine(llm.model, 512, 3, kv_type, 70)
        seen: dict[int, list[np.ndarray]] = {}
        choose = engine._choose
        engine._choose = lambda seq, row: seen.setdefault(id(seq), []).append(row.copy()) or choose(seq, row)  # type: ignore
        for lengths in ((300, 131), (320, 310, 7)):
            seqs = [Sequence(ids[:n], SamplingParams(temperature=0, max_tokens=2)) for n in lengths]
            for seq in seqs:
                engine.add(seq)
            while any(seq.finish_reason is None for seq in seqs):
                engine.step()
            for seq in seqs:
                assert np.array_equal(seen[id(seq)][0], whole[seq.n_prompt - 1])
        assert seqs[0].n_reused >= 256 and seqs[1].n_reused > 0


def test_blocks_that_are_whole_ones_of_the_cache_are_chosen_as_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, sizes = 5 * IDS, {"attention.indexer.block_size": 64, "attention.indexer.top_k": 3}
    path = write_model(tmp_path / "m.gguf", "minimax-m3", metadata=sizes)
    with LLM.load(path, replace(EXACT, context=512)) as llm:
        whole = llm.logits(ids)
        assert np.array_equal(Engine(llm.model, 512, 1, "f32", 100).logits(ids), whole)
        monkeypatch.setattr(group_index, "BLOCK", 128)
        assert np.array_equal(llm.logits(ids), whole)


@pytest.mark.parametrize(("name", "all_of", "few"), [("glm-dsa", 64, 12), ("minimax-m3+all", 16, 3)])
def test_a_model_with_an_index_sees_all_where_that_is_no_more_than_it_chooses(
    tmp_path: Path, name: str, all_of: int, few: int
) -> None:
    wide, narrow = (
        write_model(tmp_path / f"{n}.gguf", name, metadata={"attention.indexer.top_k": n}) for n in (all_of, few)
    )
    with LLM.load(wide, EXACT) as a, LLM.load(narrow, EXACT) as b:
        ours, fewer = a.logits(IDS), b.logits(IDS)
    assert np.array_equal(ours[:12], fewer[:12]) and not np.allclose(ours[12:], fewer[12:], atol=0.1)


@pytest.mark.parametrize("chunk", [1, 7, 32])
def test_a_prompt_in_chunks_is_the_prompt_in_one_piece(llm: LLM, chunk: int) -> None:
    whole = llm.logits(IDS)
    parts = Engine(llm.model, 256, 1, "f32", chunk).logits(IDS)
    np.testing.assert_allclose(parts, whole, atol=2e-5, rtol=0)


def test_what_a_plan_reckons_is_what_the_model_takes(llm: LLM) -> None:
    assert 32 * token_bytes(llm.hparams) == llm.model.kv_bytes_per_block(32, "f16")
    assert state_bytes(llm.hparams) == llm.model.state_bytes()


def test_a_batch_of_two_is_two_singles(llm: LLM) -> None:
    prompts = [IDS[:20], IDS[30:47]]
    together = run(Engine(llm.model, 256, 2, "f32", 16), prompts, 8)
    alone = [run(Engine(llm.model, 256, 1, "f32"), [prompt], 8)[0] for prompt in prompts]
    assert together == alone


def test_decoding_continues_what_prefill_says(llm: LLM) -> None:
    (answer,) = run(Engine(llm.model, 256, 1, "f32"), [IDS[:20]], 6)
    logits = llm.logits([*IDS[:20], *answer[:-1]])
    assert logits[19:].argmax(-1).tolist() == answer


def test_the_default_kernels_give_the_same_bits_in_any_company(llm: LLM) -> None:
    """Chunks, token by token, beside another sequence, on one thread or two: no bit of the logits differs."""
    with LLM.load(llm.file.path, RuntimeOptions(context=256, threads=2)) as q8:
        whole = q8.logits(IDS)
        assert np.isfinite(whole).all() and whole.std() > 0.1
        for chunk in (1, 7, 32):
            assert np.array_equal(Engine(q8.model, 256, 1, "f16", chunk).logits(IDS), whole)
        engine = Engine(q8.model, 256, 3, "f16", 24)
        seqs = [Sequence(ids, SamplingParams(max_tokens=2)) for ids in (IDS[:31], IDS[5:9], IDS[:])]
        seen: dict[int, list[np.ndarray]] = {}
        choose = engine._choose
        engine._choose = lambda seq, row: seen.setdefault(id(seq), []).append(row) or choose(seq, row)  # type: ignore
        for seq in seqs:
            engine.add(seq)
        while any(seq.finish_reason is None for seq in seqs):
            engine.step()
        assert np.array_equal(seen[id(seqs[0])][0], whole[30]) and np.array_equal(seen[id(seqs[2])][0], whole[-1])
        torch.set_num_threads(1)
        assert np.array_equal(q8.logits(IDS), whole)


def test_fused_experts_are_the_same_experts(tmp_path: Path) -> None:
    """The factory draws gate and up in another order, so the fused file is filled from the plain one."""
    import gguf

    plain, fused = write_model(tmp_path / "a.gguf", "qwen3moe", shape=Shape()), tmp_path / "b.gguf"
    reader, writer = gguf.GGUFReader(str(plain)), gguf.GGUFWriter(str(fused), "qwen3moe")
    for name, entry in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            kinds = [*entry.types, None]
            writer.add_key_value(name, entry.contents(), kinds[0], kinds[1])
    tensors = {t.name: t.data for t in reader.tensors}
    for name, data in tensors.items():
        if "ffn_gate_exps" in name:
            both = np.concatenate((data, tensors[name.replace("gate", "up")]), 1)
            writer.add_tensor(name.replace("gate_exps", "gate_up_exps"), both)
        elif "ffn_up_exps" not in name:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with LLM.load(plain, EXACT) as a, LLM.load(fused, EXACT) as b:
        assert np.array_equal(a.logits(IDS), b.logits(IDS))


@pytest.mark.parametrize("kv_type", ["f16", "bf16", "q8_0"])
def test_smaller_caches_stay_near(tmp_path: Path, kv_type: str) -> None:
    """On a dense model: where experts are chosen, a rounding can flip a near tie, which is no small change."""
    path = write_model(tmp_path / "m.gguf", "qwen3")
    with LLM.load(path, EXACT) as exact, LLM.load(path, RuntimeOptions(kv_type=kv_type, context=256)) as small:
        want, got = exact.logits(IDS), small.logits(IDS)
    error = float(np.sqrt(((got - want) ** 2).mean()) / want.std())
    assert 0 < error < {"f16": 0.002, "bf16": 0.01, "q8_0": 0.02}[kv_type]


@pytest.mark.parametrize("quant", ["Q8_0", "Q4_0", "Q5_1", "F16", "BF16"])
def test_rounded_activations_stay_near(tmp_path: Path, quant: str) -> None:
    path = write_model(tmp_path / "m.gguf", "qwen3", quant=quant, shape=Shape(embd=256, expert=0))
    with LLM.load(path, EXACT) as exact, LLM.load(path, RuntimeOptions(kv_type="f32", context=256)) as q8:
        want, got = exact.logits(IDS), q8.logits(IDS)
    assert 0 < float(np.sqrt(((got - want) ** 2).mean()) / want.std()) < 0.05


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"rope.scaling.type": "spiral"}, "'spiral' is not one of none, linear, yarn, longrope"),
        ({"rope.dimension_count": 7}, "7 is not even and positive"),
        ({"attention.logit_softcapping": 30.0}, "qwen3moe.attention.logit_softcapping: not known to gmoe"),
        ({"final_logit_softcapping": 30.0}, "qwen3moe.final_logit_softcapping: not known to gmoe"),
        ({"attention.sliding_window_pattern": [True, True]}, "attention.sliding_window_pattern: not known to gmoe"),
        ({"attention.head_count_kv": [1, 2]}, "head_count_kv: a value that differs by layer is not supported"),
        ({"embedding_length": 32}, "token_embd.weight: has the shape [272, 64], the metadata asks for rows of 32"),
    ],
)
def test_what_would_change_the_arithmetic_is_refused(tmp_path: Path, change: dict[str, object], what: str) -> None:
    path = write_model(tmp_path / "m.gguf", "qwen3moe", metadata=change)
    with pytest.raises(UnsupportedModel) as error:
        LLM.load(path)
    assert what in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "told", "meant"),
    [
        ("llama", {"rope.scale_linear": 4.0}, LINEAR),
        ("llama", {"rope.scaling.factor": 4.0}, LINEAR),
        ("llama", {"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, LINEAR),
        ("llama", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}),
        ("llama", {"attention.scale": 0.5}, {}),
        ("qwen3moe", {"expert_weights_scale": 2.5}, {}),
        ("glm4moe", {"expert_weights_scale": 0.0}, {"expert_weights_scale": 1.0}),
        ("glm4moe", {"rope.dimension_sections": [2, 1, 1, 0]}, {}),
        ("qwen3vlmoe", {"rope.dimension_sections": [24, 20, 20, 0], "n_deepstack_layers": 3}, {}),
        ("qwen3vlmoe", {"expert_weights_scale": 2.5, "expert_weights_norm": False}, {}),
        ("mistral4", {"expert_gating_func": 1, "rope.scaling.finetuned": False}, {}),
        (
            "mistral4",
            {"rope.scaling.type": "none"},
            {"rope.scaling.factor": 1.0, "rope.scaling.yarn_log_multiplier": 0.0},
        ),
        ("deepseek", {"expert_weights_norm": True, "expert_gating_func": 2}, {}),
        ("bailingmoe", {"leading_dense_block_count": 1, "expert_gating_func": 2}, {}),
        ("mellum", {"expert_weights_scale": 2.5, "expert_weights_norm": False}, {}),
        (
            "mellum",
            {"attention.sliding_window_pattern": [True, True, True, False, True], "rope.freq_base_swa": 10000.0},
            {},
        ),
        ("smallthinker", {"expert_weights_scale": 2.5}, {}),
        ("jamba", {"expert_weights_scale": 2.5, "expert_weights_norm": True, "expert_gating_func": 2}, {}),
        ("jamba", {"attention.scale": 0.5, "rope.freq_base": 100.0} | LINEAR, {}),
        ("maple", {"expert_weights_scale": 2.5, "expert_weights_norm": False, "expert_gating_func": 2}, {}),
        ("maple", {"swiglu_clamp_exp": 1e-6, "attention.scale": 0.5}, {"swiglu_clamp_exp": [0.0, 1e-7, 0.0]}),
        ("maple", {"rope.freq_base": 100.0, "rope.scaling.type": "none"}, {"rope.scaling.factor": 1.0}),
        ("hy_v3", {"expert_gating_func": 2, "leading_dense_block_count": 2, "expert_shared_count": 0}, {}),
        ("cohere2moe", {"attention.layer_norm_rms_epsilon": 0.0}, {}),
        ("kimi-linear", {"expert_weights_norm": False, "rope.scaling.type": "yarn", "rope.scaling.factor": 8.0}, {}),
        ("kimi-linear", {"attention.temperature_scale": 0.3, "attention.temperature_length": 8}, {}),
        ("kimi-k3", {"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "attention.scale": 0.5}, {}),
        ("kimi-k3", {"attention.temperature_scale": 0.3, "attention.temperature_length": 8}, {}),
        ("kimi-k3", {"expert_feed_forward_length": [64] * 5, "expert_shared_count": 1, "attention.key_length": 64}, {}),
        ("kimi-k3", {"attn_res.block_size": 5}, {"attn_res.block_size": 4096}),
        ("kimi-k3+plain", {"activation.situ_linear_beta": -1.5, "expert_latent_length": 0}, {}),
        ("exaone-moe", {"attention.sliding_window_pattern": [True, True, True, False, True]}, {}),
        ("step35", {"leading_dense_block_count": 3, "moe_every_n_layers": 2, "expert_gating_func": 2}, {}),
        (
            "step35",
            {"swiglu_clamp_exp": 1e-6, "swiglu_clamp_shexp": 0.0},
            {"swiglu_clamp_exp": 0.0, "swiglu_clamp_shexp": 1e-7},
        ),
        ("step35", {"rope.dimension_count_swa": 16}, {}),
        (
            "grok",
            {
                **{"embedding_scale": 78.38367176906169, "logit_scale": 0.5773502691896257},
                **{"attention.output_scale": 0.08838834764831845, "attn_logit_softcapping": 30.0},
                **{"final_logit_softcapping": 0.0, "router_logit_softcapping": 0.1},
            },
            {"expert_weights_scale": 2.5, "expert_weights_norm": False},
        ),
        (
            "grok+2",
            {"rope.scaling.original_context_length": 4096},
            {"rope.scaling.original_context_length": 4096, "rope.scaling.yarn_beta_fast": 8.0},
        ),
        ("glm-dsa", {"context_length": 1 << 20}, {"attention.indexer.types": [1, 1, 1, 0]}),
        ("glm-dsa", {"expert_gating_func": 0}, {"expert_gating_func": 2, "rope.scaling.yarn_log_multiplier": 0.1}),
        (
            "glm-dsa+shared",
            {"block_count": 6, "nextn_predict_layers": 1},
            {"attention.indexer.types": [True, False, False, True, False]},
        ),
        ("grovemoe", {"expert_weights_scale": 2.5, "expert_weights_norm": False, "expert_gating_func": 2}, {}),
        ("grovemoe", {"expert_chunk_feed_forward_length": 0, "expert_group_count": 1}, {}),
        (
            "dots3note",
            {"block_count": 5, "nextn_predict_layers": 1, "attention.head_count": [2, 4, 2, 2, 2]},
            {"rope.scaling.yarn_log_multiplier": 0.1, "attention.indexer.types": [0, 1, 0, 0]},
        ),
        ("deepseek4", {"rope.scaling.attn_factor": 2.0, "rope.scaling.yarn_log_multiplier": 0.3}, {}),
        ("deepseek4", {"attention.compress_ratios": [0, 4, 128, 4]}, {}),
        ("deepseek4", {"attention.compress_ratios": [0, 4, 128, 4, 8, 0, 1]}, {}),
        ("deepseek4", {"expert_weights_scale": 0.0, "swiglu_clamp_exp": 0.5}, {"expert_weights_scale": 1.0}),
        ("bailingmoe3", {"rope.dimension_sections": [1, 3, 0, 0]}, {}),
        ("bailingmoe3", {"rope.dimension_sections": [4, 0, 0, 0]}, {"rope.dimension_sections": [0, 0, 0, 0]}),
        ("bailingmoe3", {"attention.temperature_scale": 0.3, "attention.temperature_length": 8}, {}),
        ("bailingmoe3+text", {"kda.safe_gate": True, "swiglu_clamp_shexp": 0.0}, {}),
        (
            "bailingmoe3",
            {"block_count": 5, "nextn_predict_layers": 1, "attention.head_count_kv": [0, 0, 1, 0, 1]},
            {},
        ),
        ("glm5-next", {"rope.freq_base": 100.0, "rope.scaling.type": "yarn", "rope.scaling.factor": 8.0}, {}),
        ("glm5-next", {"expert_gating_func": 0, "attention.key_length": 64}, {}),
        ("glm5-next", {"attention.indexer.types": [False, True, False, False]}, {}),
        ("glm5-next+all", {"attention.indexer.types": [True] * 4, "attention.indexer.kpool_select_tail": True}, {}),
        ("glm5-next+all", {"swiglu_clamp_shexp": [0.5] * 4}, {}),
        (
            "glm5-next",
            {"block_count": 5, "nextn_predict_layers": 1, "attention.head_count_kv": [0, 1, 0, 1, 1]},
            {},
        ),
        ("minimax-m3", {"expert_weights_scale": 0.0, "attention.scale": 0.5}, {"expert_weights_scale": 1.0}),
        ("minimax-m3+all", {"block_count": 3, "nextn_predict_layers": 1}, {}),
        ("qwen4exp", {"attention.recurrent_layers": [True, True, True, False], "full_attention_interval": 9}, {}),
        ("qwen4exp", {"attention.compress_ratios": [4, 4, 4, 4], "ple.image_token_id": 9}, {}),
        ("qwen4exp", {"attention.compress_ratios": [0, 0, 0, 0]}, {"attention.indexer.top_k": 4096}),
        ("qwen4exp", {"block_count": 5, "nextn_predict_layers": 1, "attention.compress_ratios": [4] * 5}, {}),
        ("hy_v4", {"attention.indexer.types": [1, 0, 0, 1, 0]}, {}),
        ("hy_v4", {"attention.temperature_scale": 0.3, "attention.temperature_length": 8}, {"rope.dimension_count": 8}),
        ("hy_v4+full", {"block_count": 3, "nextn_predict_layers": 1}, {}),
        ("hy_v4+full", {"swiglu_clamp_exp": [0.0, 1e-7]}, {"rope.scaling.factor": 1.0, "rope.scaling.type": "yarn"}),
        ("laguna", {"attention.sliding_window_pattern": [False, True, True, True, False]}, {}),
        ("laguna", {"expert_gating_func": 2, "expert_shared_count": 1}, {}),
        ("laguna+full", {"attention.sliding_window": 0, "rope.freq_base_swa": 100.0}, {}),
        ("step35+plain", {"swiglu_clamp_exp": [0.5] * 4, "attention.head_count": [4] * 4}, {}),
        (
            "step35",
            {"block_count": 6, "nextn_predict_layers": 1, "swiglu_clamp_exp": [0.0, 0.3, 0.0, 0.3, 0.0]},
            {},
        ),
        (
            "exaone-moe",
            {
                "block_count": 6,
                "nextn_predict_layers": 1,
                "attention.sliding_window_pattern": [True, False, True, True, True],
            },
            {"attention.sliding_window_pattern": [True, False, True, True, True]},
        ),
    ],
)
def test_keys_mean_what_they_mean_to_llama_cpp(
    tmp_path: Path, architecture: str, told: dict[str, object], meant: dict[str, object]
) -> None:
    files = [write_model(tmp_path / f"{i}.gguf", architecture, metadata=m) for i, m in enumerate((told, meant))]
    with LLM.load(files[0], EXACT) as a, LLM.load(files[1], EXACT) as b:
        assert np.array_equal(a.logits(IDS), b.logits(IDS))


def test_layers_that_share_keys_keep_none(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", "gemma4+shared")
    with LLM.load(path, EXACT) as llm:
        window, full = 2 * (16 + 16), 1 * (32 + 32)
        assert [attn.kv_shape.nbytes("f16") for attn in llm.model.attn] == [2 * window, 2 * full] * 2 + [0]
        assert llm.model.kv_bytes_per_block(32, "f16") == 32 * token_bytes(llm.hparams)


def test_a_scale_of_one_is_no_scale(tmp_path: Path) -> None:
    """Of experts, of blocks: a file that has such tensors says what one without them says."""
    path, without = write_model(tmp_path / "a.gguf", "gemma4"), tmp_path / "b.gguf"
    scales = [f"blk.{n}.{name}" for n in range(4) for name in ("ffn_down_exps.scale", "layer_output_scale.weight")]
    with GGUFFile.open(path) as file:

        def ones(info: TensorInfo, tensor: QuantTensor) -> list[tuple[str, QuantTensor]]:
            data = np.ones(tensor.shape, np.float32).view(np.uint8)
            return [(info.name, QuantTensor(data, tensor.format, tensor.shape) if info.name in scales else tensor)]

        rewrite(file, tmp_path / "ones.gguf", ones)
        rewrite(file, without, lambda info, tensor: [] if info.name in scales else [(info.name, tensor)])
    with LLM.load(path, EXACT) as a, LLM.load(tmp_path / "ones.gguf", EXACT) as b, LLM.load(without, EXACT) as c:
        assert np.array_equal(b.logits(IDS), c.logits(IDS))
        assert not np.allclose(a.logits(IDS), c.logits(IDS), atol=0.1)


@pytest.mark.parametrize(
    ("architecture", "change", "what"),
    [
        ("gemma4", {"attention.sliding_window": 0}, "sliding_window_pattern: required by architecture gemma4, with"),
        (
            "gemma4",
            {"attention.shared_kv_layers": 3},
            "shared_kv_layers: block 1 cannot read the keys and values of block 0",
        ),
        ("gemma4", {"attention.shared_kv_layers": 4}, "attention.shared_kv_layers: 4 is outside 0 to 3"),
        ("gemma4", {"attention.head_count_kv": [2, 2, 2, 2]}, "attn_k.weight: has 32 outputs, the rest of the file"),
        (
            "gemma4",
            {"attention.key_length_swa": 8},
            "attn_q_norm.weight: has the shape [16], the rest of the file asks for [8]",
        ),
        ("gemma4+shared", {"attention.shared_kv_layers": 0}, "blk.4.attn_k_norm.weight: this tensor is required by"),
    ],
)
def test_blocks_of_gemma4_that_do_not_fit_are_refused(
    tmp_path: Path, architecture: str, change: dict[str, object], what: str
) -> None:
    path = write_model(tmp_path / "m.gguf", architecture, metadata=change)
    with pytest.raises(UnsupportedModel) as error:
        LLM.load(path)
    assert what in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "change", "what"),
    [
        ("smallthinker", {"attention.sliding_window": 8}, "attention.sliding_window: 8; only 4096 is supported"),
        ("smallthinker", {"expert_gating_func": 0}, "expert_gating_func: required by architecture smallthinker"),
        (
            "exaone-moe",
            {"attention.sliding_window": 0},
            "attention.sliding_window: required by architecture exaone-moe",
        ),
        (
            "cohere2moe",
            {"attention.sliding_window": 0},
            "attention.sliding_window: required by architecture cohere2moe",
        ),
        ("mistral4", {"rope.scaling.yarn_log_multiplier": 0.05}, "0.05 and yarn; only 0.1 and yarn are supported"),
        ("deepseek32", {"rope.scaling.yarn_log_multiplier": 0.05}, "0.05 and yarn; only 0.1 and yarn are supported"),
        ("deepseek32", {"expert_gating_func": 0}, "expert_gating_func: required by architecture deepseek32"),
        ("deepseek32", {"attention.q_lora_rank": 0}, "attention.q_lora_rank: required by its latent attention"),
        ("deepseek32", {"attention.key_length_mla": 0}, "key_length_mla: required by its latent attention"),
        ("deepseek32", {"attention.indexer.top_k": 0}, "attention.indexer.head_count: needed with key_length, as wide"),
        ("deepseek32", {"attention.indexer.types": [1, 0, 1]}, "attention.indexer.types: not known to gmoe"),
        ("grovemoe", {"experts_per_group": 3}, "experts_per_group: 3; must divide expert_count"),
        ("grovemoe", {"experts_per_group": 4}, "expert_used_count: 3; at most as many as chunks, 2, are"),
        ("grovemoe", {"experts_per_group": 1}, "gate_chexps.weight: has the shape [4, 16, 64], the rest of the file"),
        ("grovemoe", {"expert_group_count": 2}, "grovemoe.expert_group_count: 2; only 1 is supported"),
        ("grovemoe", {"rope.dimension_count": 8}, "rope.dimension_count: whole heads are rotated, and values as wide"),
        ("qwen3moe", {"experts_per_group": 2}, "qwen3moe.experts_per_group: not known to gmoe"),
        ("dots3note", {"attention.sliding_window": 0}, "sliding_window: required by architecture dots3note"),
        ("dots3note", {"expert_gating_func": 0}, "expert_gating_func: required by architecture dots3note"),
        ("dots3note", {"attention.indexer.types": [0, 1, 1, 0]}, "types: only blocks without a window have an index"),
        ("dots3note", {"attention.indexer.types": [0] * 4}, "types: only blocks without a window have an index"),
        ("dots3note", {"attention.kv_lora_rank_swa": 16}, "blk.0.attn_kv_a_mqa.weight: has 32 outputs, the rest"),
        ("dots3note", LINEAR, "rope.scaling.type: linear; only none is supported"),
        ("deepseek32", {"attention.kv_lora_rank_swa": 16}, "deepseek32.attention.kv_lora_rank_swa: not known to gmoe"),
        ("grok", {"attn_logit_softcapping": 0.0}, "grok.attn_logit_softcapping: 0.0 is outside 1e-06 to 1000000.0"),
        ("grok", LINEAR, "rope.scaling.type: linear; only none and yarn are supported"),
        ("grok", {"rope.dimension_count": 8}, "rope.dimension_count: whole heads are rotated, and values as wide as"),
        ("glm-dsa", {"attention.indexer.kpool": 4}, "attention.indexer.kpool: not known to gmoe"),
        ("glm-dsa", LINEAR, "rope.scaling.type: linear; only none is supported"),
        ("glm-dsa+shared", {"attention.indexer.types": [0, 1, 1, 1, 1]}, "first block needs an index of its own"),
        ("glm-dsa+shared", {"attention.indexer.types": [1, 1, 0, 1, 0]}, "blk.1.indexer.attn_q_b.weight: this tensor"),
        ("mistral4", {"rope.scaling.type": "linear"}, "0.1 and linear; only 0.1 and yarn are supported"),
        (
            "mellum",
            {"attention.sliding_window_pattern": [True] * 5, "attention.sliding_window": 0},
            "attention.sliding_window: required beside attention.sliding_window_pattern",
        ),
        ("mellum", {"rope.freq_base_swa": 500.0}, "freq_base_swa: 500; only that of the other blocks is supported"),
        ("jamba", {"ssm.conv_kernel": 1}, "jamba.ssm.conv_kernel: 1; at least 2 is supported"),
        ("jamba", {"ssm.inner_size": 0}, "jamba.ssm.inner_size: 0; at least 1 is supported"),
        (
            "jamba",
            {"ssm.state_size": 8},
            "blk.0.ssm_a: has the shape [128, 16], the rest of the file asks for [128, 8]",
        ),
        ("jamba", {"ssm.time_step_rank": 8}, "blk.0.ssm_x.weight: has 64 outputs, the rest of the file asks for 40"),
        ("jamba", {"ssm.group_count": 1}, "jamba.ssm.group_count: not known to gmoe"),
        ("jamba", {"attention.head_count_kv": [0, 0, 2, 2]}, "blk.3.attn_q.weight: this tensor is required by"),
        ("maple", {"attention.sliding_window": 0}, "maple.attention.sliding_window: required by architecture maple"),
        (
            "maple",
            LINEAR,
            "maple.rope.scaling.factor: 4; supported where rope.scaling.type is not none and there is no",
        ),
        ("maple", LINEAR | {"rope.scaling.type": "none"}, "maple.rope.scaling.factor: 4; supported where rope.scaling"),
        ("mimo2", {"attention.sliding_window": 0}, "sliding_window_pattern: required by architecture mimo2, with"),
        ("mimo2", {"attention.sliding_window_pattern": [2, 1, 1, 0]}, "has the wrong type (int, not bool)"),
        ("kimi-linear", {"expert_gating_func": 0}, "expert_gating_func: required by architecture kimi-linear"),
        ("kimi-linear", {"attention.key_length_mla": 0}, "key_length_mla: required by architecture kimi-linear"),
        ("kimi-linear", {"attention.q_lora_rank": 32}, "attention.q_lora_rank: 32; only 0 is supported"),
        ("kimi-linear", {"kda.head_dim": 0}, "kda.head_dim: required by architecture kimi-linear"),
        ("kimi-linear", {"ssm.conv_kernel": 1}, "ssm.conv_kernel: 1; at least 2 is supported"),
        ("kimi-linear", {"kda.safe_gate": True}, "kda.safe_gate: not known to gmoe"),
        (
            "kimi-linear",
            {"attention.head_count_kv": [0, 1, 1, 0]},
            "blk.1.attn_k_b.weight: this tensor is required by",
        ),
        ("kimi-k3", {"expert_gating_func": 0}, "kimi-k3.expert_gating_func: required by architecture kimi-k3"),
        ("kimi-k3", {"attention.value_length_mla": 0}, "value_length_mla: required by architecture kimi-k3"),
        ("kimi-k3", {"kda.gate_lower_bound": 0.0}, "gate_lower_bound: 0.0; only numbers below 0 are supported"),
        ("kimi-k3", {"kda.safe_gate": True}, "kda.safe_gate: not known to gmoe"),
        ("kimi-k3", {"activation.situ_beta": 0.0}, "activation.situ_beta: 0.0; only numbers above 0 are supported"),
        ("kimi-k3", {"attn_res.block_size": 0}, "output_res_score.weight: architecture kimi-k3 of gmoe does not use"),
        ("kimi-k3", {"expert_latent_length": 32}, "blk.1.ffn_up_exps.weight: has 48 inputs, the rest of the file asks"),
        ("kimi-k3", {"expert_latent_length": 0}, "blk.1.ffn_up_exps.weight: has 48 inputs, the rest of the file asks"),
        ("kimi-k3", {"attention.q_lora_rank": 0}, "blk.2.attn_q.weight: this tensor is required by architecture"),
        ("kimi-k3+plain", {"attn_res.block_size": 2}, "blk.0.attn_res_score.weight: this tensor is required by"),
        ("kimi-k3+plain", {"expert_latent_length": 64}, "blk.1.ffn_routed_down.weight: this tensor is required by"),
        ("bailingmoe3", {"rope.scaling.yarn_log_multiplier": 0.1}, "bailingmoe3.rope.scaling.yarn_log_multiplier: 0.1"),
        ("bailingmoe3", {"kda.safe_gate": False}, "kda.safe_gate: only true is supported"),
        ("bailingmoe3", {"kda.gate_lower_bound": 0.5}, "gate_lower_bound: 0.5; only numbers below 0 are supported"),
        ("bailingmoe3", {"expert_gating_func": 0}, "expert_gating_func: required by architecture bailingmoe3"),
        ("bailingmoe3", {"attention.key_length_mla": 0}, "key_length_mla: required by architecture bailingmoe3"),
        ("bailingmoe3", {"rope.dimension_sections": [2, 2]}, "dimension_sections: four whole numbers are supported"),
        ("hy_v4", {"rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier: 0.1; only 0 is supported"),
        ("hy_v4", {"expert_gating_func": 0}, "expert_gating_func: required by architecture hy_v4"),
        ("hy_v4", {"attention.q_lora_rank": 0}, "attention.q_lora_rank: required by architecture hy_v4"),
        ("hy_v4", {"attention.value_length_mla": 0}, "attention.value_length_mla: required by architecture hy_v4"),
        ("hy_v4", {"attention.indexer.top_k": 0}, "attention.indexer.head_count: needed with key_length, as wide"),
        ("hy_v4", {"attention.indexer.types": [0, 1, 1, 1, 1]}, "types: the first block needs an index of its own"),
        ("hy_v4", {"attention.indexer.types": [1, 1, 0, 1, 0]}, "blk.1.indexer.attn_q_b.weight: this tensor"),
        ("hy_v4", {"attention.indexer.types": [1, 0, 0, 0, 0]}, "blk.3.indexer.k_norm.weight: architecture hy_v4"),
        ("hy_v4", {"swiglu_clamp_shexp": 0.5}, "swiglu_clamp_shexp: not known to gmoe"),
        ("hy_v4", {"hyper_connection.count": 17}, "hyper_connection.count: 17 is outside 1 to 16"),
        ("hy_v4+full", {"attention.indexer.top_k": 12}, "attention.indexer.head_count: required by architecture hy_v4"),
        ("glm5-next", {"rope.dimension_count": 8}, "rope.dimension_count: 8; only 0 is supported"),
        ("glm5-next", {"attention.q_lora_rank": 0}, "q_lora_rank: required by architecture glm5-next"),
        ("glm5-next", {"attention.value_length_mla": 0}, "value_length_mla: required by architecture glm5-next"),
        ("glm5-next", {"kda.gate_lower_bound": 0.0}, "gate_lower_bound: 0.0; only numbers below 0 are supported"),
        ("glm5-next", {"attention.indexer.kpool": 3, "attention.indexer.top_k": 18}, "kpool: 3; a power of two from 2"),
        ("glm5-next", {"attention.indexer.top_k": 18}, "kpool: 4; a power of two from 2 to 1024 that divides top_k"),
        ("glm5-next", {"attention.indexer.kpool": 8}, "ape.weight: has the shape [4, 16], the rest of the file asks"),
        ("glm5-next", {"attention.indexer.kpool_select_tail": False}, "kpool_select_tail: only true is supported: "),
        ("glm5-next", {"attention.indexer.types": [False] * 4}, "types: the first block with latent attention needs"),
        ("glm5-next+all", {"kda.safe_gate": True}, "kda.safe_gate: not known to gmoe"),
        ("minimax-m3", {"expert_gating_func": 0}, "expert_gating_func: required by architecture minimax-m3"),
        ("minimax-m3", {"attention.indexer.head_count": 4}, "head_count: 4; as many as heads of keys, 2, are needed"),
        ("minimax-m3", {"attention.indexer.key_length": 6}, "indexer.key_length: 6 is less than the 8 that turn"),
        ("minimax-m3", {"attention.indexer.block_size": 24}, "block_size: 24; a power of two is supported"),
        ("minimax-m3", {"attention.indexer.block_size": 0}, "block_size: 0; a power of two is supported"),
        ("minimax-m3", {"attention.indexer.top_k": 0}, "top_k: 0; at least one, and no fewer than local_blocks, are"),
        ("minimax-m3", {"attention.indexer.local_blocks": 9}, "top_k: 8; at least one, and no fewer than local_blocks"),
        ("minimax-m3", {"attention.indexer.kpool": 4}, "attention.indexer.kpool: not known to gmoe"),
        ("minimax-m3", {"leading_dense_block_count": 0}, "blk.0.indexer.q_proj.weight: this tensor is required by"),
        ("kimi-linear", {"kda.gate_lower_bound": -5.0}, "kda.gate_lower_bound: not known to gmoe"),
        (
            "laguna+full",
            {"attention.sliding_window": 8},
            "laguna.rope.freq_base_swa: required beside attention.sliding",
        ),
        (
            "laguna+full",
            {"attention.sliding_window_pattern": [True, True]},
            "window_pattern: supported beside attention",
        ),
        ("laguna", {"rope.scaling.attn_factor": 1.5}, "laguna.rope.scaling.attn_factor: 1.5; only 1 is supported"),
        ("step35", {"attention.sliding_window": 0}, "sliding_window_pattern: required by architecture step35, with"),
        ("step35", {"attention.key_length_swa": 8}, "step35.attention.key_length_swa: not known to gmoe and may"),
        ("step35", {"rope.dimension_count_swa": 8}, "rope_freqs.weight: 8 factors for 8 rotated dimensions"),
        ("step35", {"expert_feed_forward_length": [8, 8, 8, 8, 16]}, "a value that differs by layer is not supported"),
    ],
)
def test_what_an_architecture_cannot_do_without_is_named(
    tmp_path: Path, architecture: str, change: dict[str, object], what: str
) -> None:
    path = write_model(tmp_path / "m.gguf", architecture, metadata=change)
    with pytest.raises(UnsupportedModel) as error:
        LLM.load(path)
    assert what in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("name", ["attn_k.bias", "attn_qkv.bias"])
def test_a_bias_before_the_convolutions_of_kimi_linear_is_refused(tmp_path: Path, name: str) -> None:
    """llama.cpp reads it and leaves it out, which is hardly what the file means."""

    def biased(info: TensorInfo, tensor: QuantTensor) -> list[tuple[str, QuantTensor]]:
        bias = QuantTensor(np.zeros(256, np.uint8), FORMATS["F32"], (64,))
        return [(info.name, tensor), *([(f"blk.1.{name}", bias)] if info.name == "blk.1.ssm_a" else [])]

    with GGUFFile.open(write_model(tmp_path / "m.gguf", "kimi-linear")) as file:
        rewrite(file, tmp_path / "biased.gguf", biased)
    with pytest.raises(UnsupportedModel, match=rf"blk.1.{name}: before a short convolution a bias is not supported"):
        LLM.load(tmp_path / "biased.gguf")


def test_beside_one_map_of_queries_keys_and_values_all_have_biases(tmp_path: Path) -> None:
    with GGUFFile.open(write_model(tmp_path / "m.gguf", "qwen2moe+fused")) as file:
        rewrite(
            file, tmp_path / "some.gguf", lambda info, tensor: [(info.name, tensor)] * ("1.attn_k.b" not in info.name)
        )
    with pytest.raises(UnsupportedModel, match="blk.1.attn_k.bias: required beside attn_qkv with the biases of others"):
        LLM.load(tmp_path / "some.gguf")


def test_a_temperature_needs_its_length(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", "deepseek2", metadata={"attention.temperature_scale": 0.1})
    with pytest.raises(UnsupportedModel, match="temperature_length: required beside attention.temperature_scale"):
        LLM.load(path)


def test_glm_4_7_flash_without_a_gating_function_is_sigmoid() -> None:
    assert own_gating(47, 154_880) is Gating.SIGMOID
    assert own_gating(47, 102_400) is own_gating(27, 154_880) is Gating.SOFTMAX


@pytest.mark.parametrize("with_keys", [True, False])
def test_an_unknown_architecture_is_named(tmp_path: Path, with_keys: bool) -> None:
    path = write_model(tmp_path / "m.gguf", "qwen3moe")
    path.write_bytes(path.read_bytes().replace(b"qwen3moe", b"qwen9moe", -1 if with_keys else 1))
    with pytest.raises(UnsupportedModel, match="'qwen9moe'; supported: afmoe, .*qwen3moe"):
        LLM.load(path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"attention.compress_ratios": [0, 8, 128, 4]}, "compress_ratios: 8; 0, 4 and 128 are supported"),
        ({"attention.compress_ratios": [0, 4]}, "compress_ratios: has 2 entries for 4 blocks"),
        ({"attention.head_count_kv": 2}, "head_count_kv: one head of keys is supported, as wide as values and"),
        ({"attention.sliding_window": 0}, "one head of keys is supported, as wide as values and"),
        ({"attention.output_group_count": 3}, "output_group_count: 3 must divide attention.head_count"),
        ({"attention.output_group_count": 4}, "blk.0.attn_output_a.weight: has the shape [32, 32], the rest of the"),
        ({"attention.indexer.top_k": 0}, "attention.indexer.head_count: needed with key_length, as wide as"),
        ({"hyper_connection.count": 0}, "hyper_connection.count: 0 is outside 1 to 16"),
        ({"hyper_connection.count": 3}, "blk.0.hc_attn_fn.weight: has 256 inputs, the rest of the file asks for 192"),
        ({"hash_layer_count": 0}, "blk.0.exp_probs_b.bias: this tensor is required by architecture deepseek4"),
        ({"hash_layer_count": 2}, "blk.1.ffn_gate_tid2eid.weight: this tensor is required by architecture deepseek4"),
        ({"expert_gating_func": 2}, "expert_gating_func: 2; only 4 is supported"),
        ({"nextn_predict_layers": 1}, "blk.3.nextn.eh_proj.weight: this tensor is required by architecture"),
        ({"attention.indexer.kpool": 2}, "attention.indexer.kpool: not known to gmoe"),
    ],
)
def test_what_deepseek4_does_not_have_is_refused(tmp_path: Path, change: dict[str, object], what: str) -> None:
    path = write_model(tmp_path / "m.gguf", "deepseek4", metadata=change)
    with pytest.raises(UnsupportedModel) as error:
        LLM.load(path)
    assert what in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"hyper_connection.count": 1}, "hyper_connection.count: 1; at least 2, with low_rank, is supported"),
        ({"hyper_connection.low_rank": 0}, "hyper_connection.count: 4; at least 2, with low_rank, is supported"),
        ({"hyper_connection.low_rank": 8}, "hc_attn_down.weight: has 12 outputs, the rest of the file asks for 8"),
        (
            {"hyper_connection.count": 3},
            "hc_attn_norm.weight: has the shape [256], the rest of the file asks for [192]",
        ),
        ({"hyper_connection.epsilon": 1e-6}, "hyper_connection.epsilon: not known to gmoe"),
        ({"attention.compress_ratios": [0, 0, 0, 3]}, "attention.compress_ratios: 3; a power of two up to 64 that"),
        ({"attention.compress_ratios": [128] * 4}, "attention.compress_ratios: 128; a power of two up to 64 that"),
        ({"attention.indexer.top_k": 66}, "compress_ratios: 4; a power of two up to 64 that divides indexer.top_k is"),
        ({"attention.indexer.head_count": 0}, "attention.indexer.head_count: needed with key_length, as wide as"),
        ({"attention.indexer.top_k": 0}, "attention.indexer.head_count: needed with key_length, as wide as"),
        ({"attention.indexer.key_length": 4}, "attention.indexer.head_count: needed with key_length, as wide as"),
        ({"ple.layers": [1, 2]}, "ple.layers: [1, 2]; one block without full attention is supported"),
        ({"ple.layers": [3]}, "ple.layers: [3]; one block without full attention is supported"),
        ({"ple.layers": [4]}, "ple.layers: [4]; one block without full attention is supported"),
        ({"ple.layers": [2]}, "blk.2.ple_key.weight: this tensor is required by architecture qwen4exp"),
        ({"ple.layers": [-1]}, "ple.layers: must be an array of whole numbers that are not below zero"),
        ({"ple.ngram_size": 1}, "ple.ngram_size: 1 is outside 2 to 8"),
        ({"ple.ngram_size": 4}, "ple.heads_per_ngram: 6 rows of 16 numbers in all; at most 64 as wide as the model"),
        ({"ple.conv_kernel": 7}, "ple.conv_kernel: 7; at least 2, which look back at most 15 tokens, is supported"),
        ({"ple.conv_kernel": 1}, "ple.conv_kernel: 1; at least 2, which look back at most 15 tokens, is supported"),
        ({"ple.conv_kernel": 3}, "blk.1.ple_conv1d.weight: has the shape [256, 4], the rest of the file asks for [256"),
        ({"ple.layer_multipliers": [1, 3]}, "ple.layer_multipliers: has 2 entries, 3 are needed"),
        ({"ple.head_offsets": [0, 20, 40]}, "ple.head_offsets: has 3 entries, 4 are needed"),
        ({"ple.head_offsets": [0, 20, 40, 67]}, "head_vocab_sizes: name rows that are none of the table's 85"),
        ({"ple.head_vocab_sizes": [17, 0, 13, 19]}, "head_vocab_sizes: name rows that are none of the table's 85"),
    ],
)
def test_what_qwen4exp_does_not_have_is_refused(tmp_path: Path, change: dict[str, object], what: str) -> None:
    path = write_model(tmp_path / "m.gguf", "qwen4exp", metadata=change)
    with pytest.raises(UnsupportedModel) as error:
        LLM.load(path)
    assert what in str(error.value) and str(path) in str(error.value)


def test_qwen4exp_as_other_files_have_it(tmp_path: Path) -> None:
    """Norms of streams may be rows, and a file without n-grams has none; with them it must say what ends texts."""
    path, deep, endless = (tmp_path / f"{name}.gguf" for name in "abc")
    write_model(path, "qwen4exp")
    with GGUFFile.open(path) as file:

        def rows(info: TensorInfo, tensor: QuantTensor) -> list[tuple[str, QuantTensor]]:
            streams = "hc_" in info.name or "ple_" in info.name
            shape = (4, 64) if streams and len(tensor.shape) == 1 else tensor.shape
            return [(info.name, QuantTensor(tensor.data.reshape(shape[0], -1), tensor.format, shape))]

        def plain(info: TensorInfo, tensor: QuantTensor) -> list[tuple[str, QuantTensor]]:
            return [] if "ple_" in info.name or "per_layer" in info.name else [(info.name, tensor)]

        rewrite(file, deep, rows)
        rewrite(file, endless, lambda info, tensor: [(info.name, tensor)], {"qwen4exp.ple.eos_token_id": None})
        rewrite(file, tmp_path / "d.gguf", plain, {"qwen4exp.ple.layers": None})
    with LLM.load(path, EXACT) as a, LLM.load(deep, EXACT) as b, LLM.load(tmp_path / "d.gguf", EXACT) as c:
        assert np.array_equal(a.logits(IDS), b.logits(IDS))
        assert not c.model.memories and not np.allclose(a.logits(IDS), c.logits(IDS), atol=0.1)  # type: ignore
    with pytest.raises(UnsupportedModel, match="qwen4exp.ple.eos_token_id: required beside ple.layers"):
        LLM.load(endless)


def test_the_table_of_ngrams_stays_in_the_file(tmp_path: Path) -> None:
    """It counts for nothing that must be in memory, and a token that ends texts hides what is before it."""
    with LLM.load(write_model(tmp_path / "m.gguf", "qwen4exp"), EXACT) as llm:
        assert "per_layer_token_embd.weight" not in fixed_tensors(llm.file, llm.store.layout)
        (memory,) = llm.model.memories  # type: ignore
        rows = memory.ngrams(np.array([5, 5, 5, 5, 8]), np.array([[9, 4], [8, 4], [8, 3], [-1, -1], [9, 4]]))
    assert torch.equal(rows[1], rows[2]) and torch.equal(rows[1], rows[3])
    assert not torch.equal(rows[0], rows[1]) and not torch.equal(rows[4], rows[0])


def test_deepseek4_as_other_files_have_it(tmp_path: Path) -> None:
    """A map of groups with a size for these; a missing bound of shared experts, which is that of the others."""
    path, deep, bare = (tmp_path / f"{name}.gguf" for name in "abc")
    write_model(path, "deepseek4", metadata={"swiglu_clamp_shexp": [0.5] * 4})
    with GGUFFile.open(path) as file:

        def split(info: TensorInfo, tensor: QuantTensor) -> list[tuple[str, QuantTensor]]:
            shape = (2, 16, tensor.shape[1]) if "attn_output_a" in info.name else tensor.shape
            return [(info.name, QuantTensor(tensor.data, tensor.format, shape))]

        rewrite(file, deep, split)
        rewrite(file, bare, lambda info, tensor: [(info.name, tensor)], {"deepseek4.swiglu_clamp_shexp": None})

        def named(info: TensorInfo, tensor: QuantTensor) -> list[tuple[str, QuantTensor]]:
            data = tensor.data + np.uint8(0 if "tid2eid" not in info.name else 1)
            return [(info.name, QuantTensor(data, tensor.format, tensor.shape))]

        rewrite(file, tmp_path / "d.gguf", named)
    with LLM.load(path, EXACT) as a, LLM.load(deep, EXACT) as b, LLM.load(bare, EXACT) as c:
        assert np.array_equal(a.logits(IDS), b.logits(IDS)) and np.array_equal(a.logits(IDS), c.logits(IDS))
    with pytest.raises(UnsupportedModel, match="blk.0.ffn_gate_tid2eid.weight: names experts that are none of the 8"):
        LLM.load(tmp_path / "d.gguf")


@pytest.mark.parametrize(
    ("architecture", "key"),
    [
        ("glm5-next", "hyper_connection.epsilon"),
        ("bailingmoe3", "kda.gate_lower_bound"),
        ("maple", "swiglu_clamp_exp"),
        ("maple", "attention.sliding_window_pattern"),
        ("grovemoe", "expert_group_scale"),
        ("dots3note", "rope.freq_base_swa"),
        ("kimi-k3", "attn_res.block_size"),
        ("kimi-k3", "activation.situ_linear_beta"),
        ("hy_v4", "hyper_connection.magnitude"),
        ("hy_v4", "attention.indexer.types"),
    ],
)
def test_a_key_that_has_no_default_is_named(tmp_path: Path, architecture: str, key: str) -> None:
    with GGUFFile.open(write_model(tmp_path / "m.gguf", architecture)) as file:
        rewrite(file, tmp_path / "bare.gguf", lambda info, t: [(info.name, t)], {f"{architecture}.{key}": None})
    with pytest.raises(UnsupportedModel, match=f"{architecture}.{key}: required by architecture {architecture}$"):
        LLM.load(tmp_path / "bare.gguf")


def test_a_block_may_have_an_index_that_it_does_not_use(tmp_path: Path) -> None:
    path, bare = tmp_path / "m.gguf", tmp_path / "bare.gguf"
    write_model(path, "glm5-next+all", metadata={"attention.indexer.types": [True, True, True, False]})
    with GGUFFile.open(path) as file:

        def used(info: TensorInfo, tensor: QuantTensor) -> list[tuple[str, QuantTensor]]:
            return [] if info.name.startswith("blk.3.indexer") else [(info.name, tensor)]

        rewrite(file, bare, used)
    with LLM.load(path, EXACT) as a, LLM.load(bare, EXACT) as b:
        assert np.array_equal(a.logits(IDS), b.logits(IDS))


def test_architectures_are_told_by_the_names_that_files_have() -> None:
    assert architectures() == sorted({name.split("+")[0] for name in ARCHITECTURES})
