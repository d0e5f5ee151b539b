"""Shapes of real models: the metadata and tensors of a GGUF file, without their values."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Tensors = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Shape:
    """One model; the defaults are those of no model in particular."""

    architecture: str
    embd: int
    head: int
    head_kv: int
    layer: int
    expert: int
    used: int
    ff_exp: int
    vocab: int
    head_dim: int = 128
    ff: int = 0  # of dense blocks
    ff_shared: int = 0
    lead: int = 0  # dense blocks at the beginning
    context: int = 32768
    keys: dict[str, Any] = field(default_factory=dict)  # more metadata below the architecture's name
    mla: tuple[int, int, int, int] = (0, 0, 0, 0)  # latent width, not rotated, rotated, value
    every: int = 1  # so many blocks, of which the last has experts and the others are dense
    kinds: str = "A"  # of the blocks, again and again: attention, delta net, Mamba-2 or 1 (S); E has experts alone
    delta: tuple[int, int, int] = (0, 0, 0)  # heads of keys and of values, and their width
    mamba: tuple[int, int, int, int] = (0, 0, 0, 0)  # heads, their width, width of a state, groups
    channels: tuple[int, int, int] = (0, 0, 0)  # of Mamba-1, width of a state, rank of the steps
    bias: str = ""  # which of q, k, v, o have one
    norm: str = ""  # of q and k: "", "head", "full"
    extra: Callable[["Shape"], Tensors] = lambda s: iter(())  # of a block


def _oss(s: Shape) -> Tensors:
    yield "attn_sinks.weight", (s.head,)
    yield "ffn_gate_inp.bias", (s.expert,)
    for name, rows in (("gate", s.ff_exp), ("up", s.ff_exp), ("down", s.embd)):
        yield f"ffn_{name}_exps.bias", (s.expert, rows)


def _yarn(factor: float, original: int, **more: Any) -> dict[str, Any]:
    scaling = {"type": "yarn", "factor": factor, "original_context_length": original, **more}
    return {f"rope.scaling.{name}": value for name, value in scaling.items()}


GATED_SHARED = ("qwen2moe", "qwen35moe")  # whose shared expert is behind a gate
SHARED_WIDTH = (*GATED_SHARED, "granitehybrid", "nemotron_h_moe")  # which state the shared expert's width
SHAPES: dict[str, Shape] = {
    "qwen3-30b-a3b": Shape(
        "qwen3moe", 2048, 32, 4, 48, 128, 8, 768, 151936, norm="head", ff=6144, keys={"rope.freq_base": 1e6}
    ),
    "mixtral-8x7b": Shape("llama", 4096, 32, 8, 32, 8, 2, 14336, 32000, ff=14336, keys={"rope.freq_base": 1e6}),
    "olmoe-1b-7b": Shape("olmoe", 2048, 16, 16, 16, 64, 8, 1024, 50304, norm="full", ff=1024, context=4096),
    "qwen1.5-moe-a2.7b": Shape(
        "qwen2moe", 2048, 16, 16, 24, 60, 4, 1408, 151936, bias="qkv", ff=5632, ff_shared=5632, context=8192,
        keys={"rope.freq_base": 1e6},
    ),
    "gpt-oss-20b": Shape(
        "gpt-oss", 2880, 64, 8, 24, 32, 4, 2880, 201088, head_dim=64, bias="qkvo", ff=2880, context=131072, extra=_oss,
        keys={"rope.freq_base": 150000.0, "attention.sliding_window": 128} | _yarn(32.0, 4096),
    ),
    "deepseek-v2-lite": Shape(
        "deepseek2", 2048, 16, 1, 27, 64, 6, 1408, 102400, mla=(512, 128, 64, 128), ff=10944, ff_shared=2816, lead=1,
        keys={"expert_shared_count": 2, "expert_weights_scale": 1.0} | _yarn(40.0, 4096, yarn_log_multiplier=0.0707),
    ),
    "qwen3.6-35b-a3b": Shape(
        "qwen35moe", 2048, 16, 2, 40, 256, 8, 512, 248320, head_dim=256, norm="head", ff_shared=512, context=262144,
        kinds="DDDA", delta=(16, 32, 128),
        keys={"rope.freq_base": 1e7, "rope.dimension_count": 64, "rope.dimension_sections": [11, 11, 10, 0]},
    ),
    "granite-4.0-h-tiny": Shape(
        "granitehybrid", 1536, 12, 4, 40, 64, 6, 512, 100352, ff=512, ff_shared=1024, context=131072,
        kinds="MMMMMAMMMM", mamba=(48, 64, 128, 1),
        keys={
            "attention.scale": 0.0078125, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 6.0,
            "rope.scaling.finetuned": False,
        },
    ),
    "nemotron-3-nano-30b-a3b": Shape(
        "nemotron_h_moe", 2688, 32, 2, 52, 128, 6, 1856, 131072, ff_shared=3712, context=262144,
        kinds="MEMEMAE", mamba=(64, 64, 128, 8),
        keys={
            "expert_weights_norm": True, "expert_weights_scale": 2.5, "expert_shared_count": 1,
            "attention.layer_norm_epsilon": 1e-5,
        },
    ),
    "jamba-v0.1": Shape(
        "jamba", 4096, 32, 8, 32, 16, 2, 14336, 65536, ff=14336, context=262144, kinds="SSSSASSS", every=2,
        channels=(8192, 16, 256),
    ),
}  # fmt: skip


def metadata(s: Shape) -> dict[str, Any]:
    """Keys below the architecture's name."""
    latent, nope, rot, value = s.mla
    keys = {
        "block_count": s.layer,
        "context_length": s.context,
        "embedding_length": s.embd,
        "feed_forward_length": s.ff,
        "attention.head_count": s.head,
        "attention.head_count_kv": s.head_kv,
        "attention.key_length": latent + rot if latent else s.head_dim,
        "attention.value_length": latent or s.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 10000.0,
        "rope.dimension_count": rot or s.head_dim,
        "expert_count": s.expert,
        "expert_used_count": s.used,
        "expert_feed_forward_length": s.ff_exp,
        "vocab_size": s.vocab,
    }
    if s.architecture in SHARED_WIDTH:
        keys["expert_shared_feed_forward_length"] = s.ff_shared
    n_key, n_value, width = s.delta
    heads, head, state, groups = s.mamba
    if n_value or heads:
        keys |= {
            "ssm.conv_kernel": 4,
            "ssm.inner_size": n_value * width or heads * head,
            "ssm.state_size": width or state,
            "ssm.time_step_rank": n_value or heads,
            "ssm.group_count": n_key or groups,
        }
    channels, state, rank = s.channels
    if channels:
        sizes = {"conv_kernel": 4, "inner_size": channels, "state_size": state, "time_step_rank": rank}
        keys |= {f"ssm.{name}": size for name, size in sizes.items()}
    if heads or channels:
        keys["attention.head_count_kv"] = [s.head_kv * (kind(s, n) == "A") for n in range(s.layer)]
    if "E" in s.kinds:
        keys["feed_forward_length"] = [s.ff_exp * (kind(s, n) == "E") for n in range(s.layer)]
    if latent:
        keys |= {
            "attention.q_lora_rank": 0,
            "leading_dense_block_count": s.lead,
            "attention.kv_lora_rank": latent,
            "attention.key_length_mla": nope + rot,
            "attention.value_length_mla": value,
        }
    return keys | s.keys


def tensors(s: Shape) -> Tensors:
    """Names and row-major shapes, in the order of the file."""
    yield "token_embd.weight", (s.vocab, s.embd)
    for layer in range(s.layer):
        for name, shape in _block(s, layer):
            yield f"blk.{layer}.{name}", shape
    yield "output_norm.weight", (s.embd,)
    yield "output.weight", (s.vocab, s.embd)


def kind(s: Shape, layer: int) -> str:
    """Which letter of `kinds` a block is."""
    return s.kinds[layer % len(s.kinds)]


def _block(s: Shape, layer: int) -> Tensors:
    yield "attn_norm.weight", (s.embd,)
    of = kind(s, layer)
    if of != "E":
        mixing = {"D": _delta, "M": _mamba, "S": _channels}.get(of, _latent if s.mla[0] else _grouped)
        yield from mixing(s)
        if "E" in s.kinds:
            return
        yield (
            ("post_attention_norm.weight" if s.architecture in ("gpt-oss", "qwen35moe") else "ffn_norm.weight"),
            (s.embd,),
        )
    if layer < s.lead or (layer + 1) % s.every:
        yield from _dense(s, "", s.ff)
        return
    gates = "E" not in s.kinds
    yield "ffn_gate_inp.weight", (s.expert, s.embd)
    if gates:
        yield "ffn_gate_exps.weight", (s.expert, s.ff_exp, s.embd)
    else:
        yield "exp_probs_b.bias", (s.expert,)
    yield "ffn_up_exps.weight", (s.expert, s.ff_exp, s.embd)
    yield "ffn_down_exps.weight", (s.expert, s.embd, s.ff_exp)
    yield from s.extra(s)
    if s.ff_shared:
        yield from _dense(s, "_shexp", s.ff_shared, gates)
    if s.architecture in GATED_SHARED:
        yield "ffn_gate_inp_shexp.weight", (s.embd,)


def _grouped(s: Shape) -> Tensors:
    q, kv = s.head * s.head_dim, s.head_kv * s.head_dim
    gated = 1 + bool(s.delta[0])  # a gate lies beside each query
    for name, shape in (("q", (gated * q, s.embd)), ("k", (kv, s.embd)), ("v", (kv, s.embd)), ("output", (s.embd, q))):
        yield f"attn_{name}.weight", shape
        if name[0] in s.bias:
            yield f"attn_{name}.bias", shape[:1]
    if s.norm:
        yield "attn_q_norm.weight", (s.head_dim if s.norm == "head" else q,)
        yield "attn_k_norm.weight", (s.head_dim if s.norm == "head" else kv,)


def _delta(s: Shape) -> Tensors:
    n_key, n_value, width = s.delta
    rows = (2 * n_key + n_value) * width
    yield "attn_qkv.weight", (rows, s.embd)
    yield "attn_gate.weight", (n_value * width, s.embd)
    yield "ssm_alpha.weight", (n_value, s.embd)
    yield "ssm_beta.weight", (n_value, s.embd)
    yield "ssm_conv1d.weight", (rows, 4)
    yield "ssm_dt.bias", (n_value,)
    yield "ssm_a", (n_value,)
    yield "ssm_norm.weight", (width,)
    yield "ssm_out.weight", (s.embd, n_value * width)


def _mamba(s: Shape) -> Tensors:
    heads, head, state, groups = s.mamba
    wide, rows = heads * head, heads * head + 2 * groups * state
    yield "ssm_in.weight", (wide + rows + heads, s.embd)
    yield "ssm_conv1d.weight", (rows, 4)
    yield "ssm_conv1d.bias", (rows,)
    yield "ssm_dt.bias", (heads,)
    yield "ssm_a", (heads, 1)
    yield "ssm_d", (heads, 1)
    yield "ssm_norm.weight", (groups, wide // groups)
    yield "ssm_out.weight", (s.embd, wide)


def _channels(s: Shape) -> Tensors:
    wide, state, rank = s.channels
    yield "ssm_in.weight", (2 * wide, s.embd)
    yield "ssm_conv1d.weight", (wide, 4)
    yield "ssm_conv1d.bias", (wide,)
    yield "ssm_x.weight", (rank + 2 * state, wide)
    yield "ssm_dt_norm.weight", (rank,)
    yield "ssm_b_norm.weight", (state,)
    yield "ssm_c_norm.weight", (state,)
    yield "ssm_dt.weight", (wide, rank)
    yield "ssm_dt.bias", (wide,)
    yield "ssm_a", (wide, state)
    yield "ssm_d", (wide,)
    yield "ssm_out.weight", (s.embd, wide)


def _latent(s: Shape) -> Tensors:
    latent, nope, rot, value = s.mla
    yield "attn_q.weight", (s.head * (nope + rot), s.embd)
    yield "attn_kv_a_mqa.weight", (latent + rot, s.embd)
    yield "attn_kv_a_norm.weight", (latent,)
    yield "attn_k_b.weight", (s.head, latent, nope)
    yield "attn_v_b.weight", (s.head, value, latent)
    yield "attn_output.weight", (s.embd, s.head * value)


def _dense(s: Shape, suffix: str, width: int, gate: bool = True) -> Tensors:
    if gate:
        yield f"ffn_gate{suffix}.weight", (width, s.embd)
    yield f"ffn_up{suffix}.weight", (width, s.embd)
    yield f"ffn_down{suffix}.weight", (s.embd, width)
