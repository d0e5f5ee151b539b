"""Tiny GGUF files of any architecture and quant type, written with `GGUFWriter`: random weights, a real tokenizer."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "Ġ t", "i n", "o n", "he r", "Ġt he", "a n", "an d", "Ġ and", "Ġ w", "o r", "l d"]


def byte_characters() -> list[str]:
    """The printable stand-ins of the 256 bytes in byte-level BPE."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(other)) for b in range(256)]


EXACT = ("ffn_gate_inp", "conv", "tid2eid")  # tensors that converters leave as they are
VOCAB = byte_characters() + [m.replace(" ", "") for m in MERGES] + SPECIALS


@dataclass(frozen=True)
class Shape:
    """The sizes of a tiny model; `embd` of 256 lets K-quants apply."""

    embd: int = 64
    head: int = 4
    head_kv: int = 2
    head_dim: int = 16
    ff: int = 96
    ff_exp: int = 32
    expert: int = 8
    used: int = 2
    layer: int = 2


Tensors = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Architecture:
    """What differs between architectures: metadata below `<arch>.` and the tensors of a block."""

    block: Callable[[Shape, int], Tensors]
    keys: Callable[[Shape], dict[str, Any]]
    shape: Shape = field(default_factory=Shape)
    extra: Callable[[Shape], Tensors] = lambda s: iter(())
    rope_style: str = "neox"
    last_norm: str | None = "output_norm"
    unscaled: bool = False  # attention has no scale of its own: the norm of the queries makes them small


def gqa(s: Shape, *, bias: str = "", norm: str = "", fused: bool = False) -> Tensors:
    """Attention tensors; `bias` lists which of q, k, v, o have one, `norm` is "", "head" or "full"."""
    q, kv = s.head * s.head_dim, s.head_kv * s.head_dim
    yield "attn_norm.weight", (s.embd,)
    if fused:
        yield "attn_qkv.weight", (q + 2 * kv, s.embd)
    for name, rows in (("q", q), ("k", kv), ("v", kv)):
        if not fused:
            yield f"attn_{name}.weight", (rows, s.embd)
        if name in bias:
            yield f"attn_{name}.bias", (rows,)
    yield "attn_output.weight", (s.embd, q)
    if "o" in bias:
        yield "attn_output.bias", (s.embd,)
    if norm:
        yield "attn_q_norm.weight", (s.head_dim if norm == "head" else q,)
        yield "attn_k_norm.weight", (s.head_dim if norm == "head" else kv,)


def dense(s: Shape, suffix: str = "", ff: int = 0) -> Tensors:
    """A dense feed-forward block, or with `suffix` a shared expert."""
    yield f"ffn_gate{suffix}.weight", (ff or s.ff, s.embd)
    yield f"ffn_up{suffix}.weight", (ff or s.ff, s.embd)
    yield f"ffn_down{suffix}.weight", (s.embd, ff or s.ff)


def routed(s: Shape, *, bias: bool = False, selection_bias: bool = False, fused: bool = False) -> Tensors:
    """Router and experts."""
    yield "ffn_gate_inp.weight", (s.expert, s.embd)
    if fused:
        yield "ffn_gate_up_exps.weight", (s.expert, 2 * s.ff_exp, s.embd)
    else:
        yield "ffn_gate_exps.weight", (s.expert, s.ff_exp, s.embd)
        yield "ffn_up_exps.weight", (s.expert, s.ff_exp, s.embd)
    yield "ffn_down_exps.weight", (s.expert, s.embd, s.ff_exp)
    if bias:
        yield "ffn_gate_inp.bias", (s.expert,)
        yield "ffn_gate_exps.bias", (s.expert, s.ff_exp)
        yield "ffn_up_exps.bias", (s.expert, s.ff_exp)
        yield "ffn_down_exps.bias", (s.expert, s.embd)
    if selection_bias:
        yield "exp_probs_b.bias", (s.expert,)


def mla(s: Shape, *, q_lora: bool, legacy: bool) -> Tensors:
    """Latent attention: 24 = 16 + 8 rotated per head, values of 16, a latent row of 32."""
    yield "attn_norm.weight", (s.embd,)
    if q_lora:
        yield "attn_q_a.weight", (32, s.embd)
        yield "attn_q_a_norm.weight", (32,)
        yield "attn_q_b.weight", (s.head * 40, 32)
    else:
        yield "attn_q.weight", (s.head * 40, s.embd)
    yield "attn_kv_a_mqa.weight", (32 + 8, s.embd)
    yield "attn_kv_a_norm.weight", (32,)
    if legacy:
        yield "attn_kv_b.weight", (s.head * (32 + 16), 32)
    else:
        yield "attn_k_b.weight", (s.head, 32, 32)
        yield "attn_v_b.weight", (s.head, 16, 32)
    yield "attn_output.weight", (s.embd, s.head * 16)


def ffn_norm(s: Shape, name: str = "ffn_norm", bias: bool = False) -> Tensors:
    """The norm before the feed-forward part."""
    yield f"{name}.weight", (s.embd,)
    if bias:
        yield f"{name}.bias", (s.embd,)


def _llama(s: Shape, layer: int) -> Tensors:
    yield from gqa(s)
    yield from ffn_norm(s)
    yield from routed(s) if s.expert else dense(s)


def _plain(norm: str = "", bias: str = "", fused_experts: bool = False) -> Callable[[Shape, int], Tensors]:
    def block(s: Shape, layer: int) -> Tensors:
        yield from gqa(s, norm=norm, bias=bias)
        yield from ffn_norm(s)
        yield from routed(s, fused=fused_experts) if s.expert else dense(s)

    return block


def _qwen2moe(fused: bool = False) -> Callable[[Shape, int], Tensors]:
    def block(s: Shape, layer: int) -> Tensors:
        yield from gqa(s, bias="qkv", fused=fused)
        yield from ffn_norm(s)
        yield from routed(s)
        yield "ffn_gate_inp_shexp.weight", (s.embd,)
        yield from dense(s, "_shexp", 64)

    return block


def _granitemoe(s: Shape, layer: int) -> Tensors:
    yield from gqa(s)
    yield from ffn_norm(s)
    yield from routed(s)
    yield from dense(s, "_shexp", 64)


def _deepseek2(
    q_lora: bool, legacy: bool, selection_bias: bool, fused: bool = False
) -> Callable[[Shape, int], Tensors]:
    def block(s: Shape, layer: int) -> Tensors:
        yield from mla(s, q_lora=q_lora, legacy=legacy)
        yield from ffn_norm(s)
        if layer == 0:
            yield from dense(s)
        else:
            yield from routed(s, selection_bias=selection_bias, fused=fused)
            yield from dense(s, "_shexp", s.ff_exp)

    return block


def _grok(dense_too: bool, last: str) -> Callable[[Shape, int], Tensors]:
    def block(s: Shape, layer: int) -> Tensors:
        yield from gqa(s)
        yield from ffn_norm(s, "attn_output_norm")
        yield from ffn_norm(s)
        yield from routed(s)
        if dense_too:
            yield from dense(s)
        yield from ffn_norm(s, last)

    return block


def _sparse(s: Shape, layer: int) -> Tensors:
    """The same behind a lightning indexer."""
    heads, index = 16, 64  # of so many heads one says more than nothing
    yield from _deepseek2(True, False, True)(s, layer)
    yield "indexer.k_norm.weight", (index,)
    yield "indexer.k_norm.bias", (index,)
    yield "indexer.proj.weight", (heads, s.embd)
    yield "indexer.attn_k.weight", (index, s.embd)
    yield "indexer.attn_q_b.weight", (heads * index, 32)


def _shared(s: Shape, layer: int) -> Tensors:
    """Routed experts beside a shared one."""
    yield from gqa(s)
    yield from ffn_norm(s)
    yield from routed(s)
    yield from dense(s, "_shexp", s.ff_exp)


def dense_first(s: Shape, layer: int, shared: int) -> Tensors:
    """The first block is dense; the others are routed with a selection bias, beside an expert of `shared` numbers."""
    if layer == 0:
        yield from dense(s)
    else:
        yield from routed(s, selection_bias=True)
        yield from dense(s, "_shexp", shared)


def _led(
    norm: str = "head", bias: str = "", fused: bool = False, before: str = "ffn_norm"
) -> Callable[[Shape, int], Tensors]:
    """First block dense, then routed with a selection bias and a shared expert."""

    def block(s: Shape, layer: int) -> Tensors:
        yield from gqa(s, norm=norm, bias=bias, fused=fused)
        yield from ffn_norm(s, before)
        yield from dense_first(s, layer, s.ff_exp)

    return block


def _afmoe(s: Shape, layer: int) -> Tensors:
    yield from _led()(s, layer)
    yield "attn_gate.weight", (s.head * s.head_dim, s.embd)
    yield from ffn_norm(s, "post_attention_norm")
    yield from ffn_norm(s, "post_ffw_norm")


def _ernie(s: Shape, layer: int) -> Tensors:
    yield from gqa(s)
    yield from ffn_norm(s)
    yield from dense_first(s, layer, 64)


def _hunyuan(s: Shape, layer: int) -> Tensors:
    yield from gqa(s, norm="head")
    yield from ffn_norm(s)
    yield from routed(s)
    yield from dense(s, "_shexp", 64)


def _minimax(s: Shape, layer: int) -> Tensors:
    yield from gqa(s, norm="full")
    yield from ffn_norm(s)
    yield from routed(s, selection_bias=True)


def _minimax_m3(lead: int) -> Callable[[Shape, int], Tensors]:
    """Behind `lead` dense blocks an index, with a query for each head of keys."""

    def block(s: Shape, layer: int) -> Tensors:
        yield from gqa(s, norm="head", fused=not lead)
        yield from ffn_norm(s)
        yield from dense_first(s, layer + 1 - lead, s.ff_exp * (2 - lead))
        if layer >= lead:
            width = _minimax_m3_index(s, lead)
            yield "indexer.q_proj.weight", (s.head_kv * width, s.embd)
            yield "indexer.k_proj.weight", (width, s.embd)
            yield "indexer.q_norm.weight", (width,)
            yield "indexer.k_norm.weight", (width,)

    return block


def _minimax_m3_index(s: Shape, lead: int) -> int:
    return s.head_dim if lead else s.head_dim + 8


def _minimax_m3_keys(s: Shape, lead: int) -> dict[str, Any]:
    """With a dense block there is no choice among 64 tokens."""
    index = {"head_count": s.head_kv, "key_length": _minimax_m3_index(s, lead)}
    sizes = (8, 8, 1) if lead else (5, 4, 2)
    index |= zip(("top_k", "block_size", "local_blocks"), sizes, strict=True)
    keys = _moe(s, expert_gating_func=2, rope__dimension_count=s.head_dim // 2) | LED
    if not lead:
        keys |= {key: value for key, value in YARN.items() if "log" not in key}
        keys |= {"leading_dense_block_count": 0, "expert_shared_count": 2, "expert_weights_norm": False}
    return keys | {f"attention.indexer.{name}": value for name, value in index.items()}


def _grovemoe(s: Shape, layer: int) -> Tensors:
    """A small expert for every two."""
    yield from _plain("head")(s, layer)
    chunks, ff = s.expert // 2, s.head_dim
    yield "ffn_gate_chexps.weight", (chunks, ff, s.embd)
    yield "ffn_up_chexps.weight", (chunks, ff, s.embd)
    yield "ffn_down_chexps.weight", (chunks, s.embd, ff)


def _phimoe(s: Shape, layer: int) -> Tensors:
    yield "attn_norm.bias", (s.embd,)
    yield from gqa(s, bias="qkvo")
    yield from ffn_norm(s, bias=True)
    yield from routed(s)


def _gpt_oss(s: Shape, layer: int) -> Tensors:
    yield from gqa(s, bias="qkvo")
    yield "attn_sinks.weight", (s.head,)
    yield from ffn_norm(s, "post_attention_norm")
    yield from routed(s, bias=True)


def _llama4(s: Shape, layer: int) -> Tensors:
    yield from gqa(s)
    yield from ffn_norm(s)
    if layer % 2 == 0:
        yield from dense(s)
    else:
        yield from routed(s)
        yield from dense(s, "_shexp", s.ff_exp)


def _delta_net(s: Shape, layout: str) -> Tensors:
    """A gated delta net, `head_kv` heads of keys and `head` of values; maps apart, or as Qwen3-Next has or had them."""
    qk, v = s.head_kv * s.head_dim, s.head * s.head_dim
    yield "attn_norm.weight", (s.embd,)
    if layout == "old":
        yield "ssm_in.weight", (2 * qk + 2 * v, s.embd)
    else:
        yield "attn_qkv.weight", (2 * qk + v, s.embd)
        yield "attn_gate.weight", (v, s.embd)
    if layout == "apart":
        yield "ssm_alpha.weight", (s.head, s.embd)
        yield "ssm_beta.weight", (s.head, s.embd)
    else:
        yield "ssm_ba.weight", (2 * s.head, s.embd)
    yield "ssm_conv1d.weight", (2 * qk + v, 4)
    yield "ssm_dt.bias", (s.head,)
    yield "ssm_a", (s.head,)
    yield "ssm_norm.weight", (s.head_dim,)
    yield "ssm_out.weight", (s.embd, v)


def _hybrid(layout: str, fused: bool = False) -> Callable[[Shape, int], Tensors]:
    """Every fourth block has attention, whose queries have gates beside them."""

    def block(s: Shape, layer: int) -> Tensors:
        if (layer + 1) % 4:
            yield from _delta_net(s, layout)
        else:
            for name, dims in gqa(s, norm="head"):
                yield name, (2 * dims[0], s.embd) if name == "attn_q.weight" else dims
        yield from ffn_norm(s, "post_attention_norm")
        yield from routed(s, fused=fused)
        yield "ffn_gate_inp_shexp.weight", (s.embd,)
        yield from dense(s, "_shexp", 64)

    return block


NGRAM_ROWS = 20  # that a head of a length of n-grams has; the tables of files have more behind the last


def _qwen4exp(s: Shape, layer: int) -> Tensors:
    """The same between four streams, with an index in the blocks of attention, and n-grams before the second block."""
    wide, low = 4 * s.embd, 12
    for name, dims in _hybrid("apart")(s, layer):
        if name not in ("attn_norm.weight", "post_attention_norm.weight"):
            yield name, dims
    for part in ("attn", "ffn"):
        yield f"hc_{part}_norm.weight", (wide,)
        yield f"hc_{part}_down.weight", (low, wide)
        yield f"hc_{part}_up.weight", (wide, low)
        yield f"hc_{part}_inject.weight", (4, wide)
    if (layer + 1) % 4 == 0:
        yield "indexer.q_proj.weight", (8 * s.head_dim, s.embd)
        yield "indexer.k_proj.weight", (s.head_dim, s.embd)
        yield "indexer.q_norm.weight", (s.head_dim,)
        yield "indexer.k_norm.weight", (s.head_dim,)
    if layer == 1:
        yield "ple_key.weight", (wide, s.embd)
        yield "ple_value.weight", (s.embd, s.embd)
        for part in ("key", "query", "conv"):
            yield f"ple_norm_{part}.weight", (wide,)
        yield "ple_conv1d.weight", (wide, 4)


def _qwen4exp_keys(s: Shape) -> dict[str, Any]:
    return _delta_keys(s) | {
        "rope.dimension_sections": [2, 1, 1, 0],
        "hyper_connection.count": 4,
        "hyper_connection.low_rank": 12,
        "attention.indexer.head_count": 8,
        "attention.indexer.key_length": s.head_dim,
        "attention.indexer.top_k": 64,
        "attention.compress_ratios": [4 * ((layer + 1) % 4 == 0) for layer in range(s.layer)],
        "embedding_length_per_layer_input": s.embd // 4,
        "ple.layers": [1],
        "ple.ngram_size": 3,
        "ple.heads_per_ngram": 2,
        "ple.conv_kernel": 4,
        "ple.eos_token_id": 8,
        "ple.image_token_id": 5,
        "ple.layer_multipliers": np.array([3 + (1 << 44), 7919 + (1 << 60), 104729 + (1 << 50)], np.uint64),
        "ple.head_offsets": np.arange(4, dtype=np.uint64) * NGRAM_ROWS,
        "ple.head_vocab_sizes": np.array([17, 20, 13, 19], np.uint64),
    }


def _qwen4exp_more(s: Shape) -> Tensors:
    yield "output_hc_norm.weight", (4 * s.embd,)
    yield "output_hc_down.weight", (12, 4 * s.embd)
    yield "output_hc_up.weight", (4 * s.embd, 12)
    yield "per_layer_token_embd.weight", (4 * NGRAM_ROWS + 5, s.embd // 4)


def _ssm(s: Shape, wide: int) -> dict[str, Any]:
    return {
        "ssm.conv_kernel": 4,
        "ssm.inner_size": wide,
        "ssm.state_size": s.head_dim,
        "ssm.time_step_rank": s.head,
        "ssm.group_count": s.head_kv,
    }


def _delta_keys(s: Shape) -> dict[str, Any]:
    keys = _moe(s, expert_shared_feed_forward_length=64, rope__dimension_count=s.head_dim // 2)
    return keys | _ssm(s, s.head * s.head_dim)


def _mamba2(s: Shape) -> Tensors:
    """`head` heads over twice the model's width in `head_kv` groups, states of `head_dim`."""
    wide, narrow = 2 * s.embd, 2 * s.head_kv * s.head_dim
    yield "attn_norm.weight", (s.embd,)
    yield "ssm_in.weight", (2 * wide + narrow + s.head, s.embd)
    yield "ssm_conv1d.weight", (wide + narrow, 4)
    yield "ssm_conv1d.bias", (wide + narrow,)
    yield "ssm_dt.bias", (s.head,)
    yield "ssm_a", (s.head, 1)
    yield "ssm_d", (s.head, 1)
    yield "ssm_norm.weight", (s.head_kv, wide // s.head_kv)
    yield "ssm_out.weight", (s.embd, wide)


def _granitehybrid(s: Shape, layer: int) -> Tensors:
    """Every third block has attention."""
    yield from gqa(s) if layer % 3 == 2 else _mamba2(s)
    yield from ffn_norm(s)
    yield from routed(s)
    yield from dense(s, "_shexp", 64)


def _jamba(s: Shape, layer: int) -> Tensors:
    """Every third block has attention, every other one experts."""
    wide, dk, rank = 2 * s.embd, s.head_dim, 2 * s.head_dim
    if layer % 3 == 2:
        yield from gqa(s)
    else:
        yield "attn_norm.weight", (s.embd,)
        yield "ssm_in.weight", (2 * wide, s.embd)
        yield "ssm_conv1d.weight", (wide, 4)
        yield "ssm_conv1d.bias", (wide,)
        yield "ssm_x.weight", (rank + 2 * dk, wide)
        for part, n in (("dt", rank), ("b", dk), ("c", dk)):
            yield f"ssm_{part}_norm.weight", (n,)
        yield "ssm_dt.weight", (wide, rank)
        yield "ssm_dt.bias", (wide,)
        yield "ssm_a", (wide, dk)
        yield "ssm_d", (wide,)
        yield "ssm_out.weight", (s.embd, wide)
    yield from ffn_norm(s)
    yield from routed(s) if layer % 2 else dense(s)


def _jamba_keys(s: Shape) -> dict[str, Any]:
    return _moe(s) | {
        "attention.head_count_kv": [s.head_kv * (layer % 3 == 2) for layer in range(s.layer)],
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 2 * s.embd,
        "ssm.state_size": s.head_dim,
        "ssm.time_step_rank": 2 * s.head_dim,
    }


def _nemotron(s: Shape, layer: int) -> Tensors:
    """Mamba-2, experts, attention, experts, and again."""
    if layer % 2 == 0:
        yield from gqa(s) if layer % 4 == 2 else _mamba2(s)
        return
    yield "attn_norm.weight", (s.embd,)
    for name, dims in routed(s, selection_bias=True):
        if "gate_exps" not in name:
            yield name, dims
    yield "ffn_up_shexp.weight", (64, s.embd)
    yield "ffn_down_shexp.weight", (s.embd, 64)


def _nemotron_keys(s: Shape) -> dict[str, Any]:
    keys = _moe(s, expert_shared_feed_forward_length=64, expert_weights_norm=True, expert_weights_scale=2.5)
    return (
        keys
        | _ssm(s, 2 * s.embd)
        | {
            "attention.layer_norm_epsilon": 1e-5,
            "expert_shared_count": 1,
            "attention.head_count_kv": [s.head_kv * (n % 4 == 2) for n in range(s.layer)],
            "feed_forward_length": [s.ff_exp * (n % 2) for n in range(s.layer)],
        }
    )


def _granite_keys(s: Shape) -> dict[str, Any]:
    return _moe(
        s,
        expert_shared_feed_forward_length=64,
        attention__scale=0.2,
        embedding_scale=3.0,
        residual_scale=0.4,
        logit_scale=4.0,
        vocab_size=len(VOCAB),
    )


def _lfm2moe(s: Shape, layer: int) -> Tensors:
    """Short convolutions but in every third block; the first dense."""
    if layer % 3 == 2:
        yield from gqa(s, norm="head")
    else:
        yield "attn_norm.weight", (s.embd,)
        yield "shortconv.conv.weight", (s.embd, 3)
        yield "shortconv.in_proj.weight", (3 * s.embd, s.embd)
        yield "shortconv.out_proj.weight", (s.embd, s.embd)
    yield from ffn_norm(s)
    yield from routed(s, selection_bias=True) if layer else dense(s)


def _of_full(s: Shape, layer: int) -> Shape:
    """A block's own sizes in gemma4: every other one is full, with one key of twice the width."""
    return replace(s, head_kv=1, head_dim=2 * s.head_dim) if layer % 2 else s


def _gemma4(s: Shape, layer: int) -> Tensors:
    """Full blocks have no `attn_v`."""
    yield from (row for row in gqa(_of_full(s, layer), norm="head") if layer % 2 == 0 or row[0] != "attn_v.weight")
    yield from dense(s)
    yield from routed(s, fused=True)
    yield "ffn_down_exps.scale", (s.expert,)
    yield from _gemma4_norms(s)


def _gemma4_shared(s: Shape, layer: int) -> Tensors:
    """Experts unfused and without a scale, none in the first block; no keys in the last blocks."""
    keyless = layer >= _gemma4_own(s)
    fused = gqa(_of_full(s, layer), norm="head", fused=layer % 3 == 1)
    yield from (row for row in fused if not keyless or row[0][:6] not in ("attn_k", "attn_v"))
    yield from dense(s)
    if layer:
        yield from routed(s)
        yield from _gemma4_norms(s)
    else:
        yield from ffn_norm(s)
        yield from ffn_norm(s, "post_attention_norm")
        yield from ffn_norm(s, "post_ffw_norm")


def _gemma4_norms(s: Shape) -> Tensors:
    yield "ffn_gate_inp.scale", (s.embd,)
    yield "layer_output_scale.weight", (1,)
    for name in ("ffn_norm", "post_attention_norm", "post_ffw_norm", "post_ffw_norm_1", "pre_ffw_norm_2"):
        yield from ffn_norm(s, name)
    yield from ffn_norm(s, "post_ffw_norm_2")


def _gemma4_own(s: Shape) -> int:
    """Blocks that have keys and values of their own where others share them."""
    return 2 if s.layer < 5 else 4


def _dbrx(s: Shape, layer: int) -> Tensors:
    yield from gqa(s, fused=True)
    yield from ffn_norm(s, "attn_output_norm")
    yield from routed(s)


def _arctic(s: Shape, layer: int) -> Tensors:
    yield from gqa(s)
    yield from ffn_norm(s)
    yield from dense(s, ff=s.embd)
    yield from routed(s)
    yield from ffn_norm(s, "ffn_norm_exps")


def _mimo2(s: Shape, layer: int) -> Tensors:
    """Full blocks, every third from the first, have half of the keys and no sinks; values are narrower than keys."""
    kv, value = _mimo2_kv(s, layer), s.head_dim // 2
    narrow = {"attn_v.weight": (kv * value, s.embd), "attn_output.weight": (s.embd, s.head * value)}
    yield from ((name, narrow.get(name, dims)) for name, dims in gqa(replace(s, head_kv=kv)))
    if layer % 3:
        yield "attn_sinks.weight", (s.head,)
    yield from ffn_norm(s)
    yield from routed(s, selection_bias=True) if layer else dense(s)


def _mimo2_kv(s: Shape, layer: int) -> int:
    return s.head_kv if layer % 3 else 1


def _mimo2_keys(s: Shape) -> dict[str, Any]:
    return _moe(s) | {
        "attention.head_count_kv": [_mimo2_kv(s, layer) for layer in range(s.layer)],
        "attention.value_length": s.head_dim // 2,
        "attention.value_scale": 0.7,
        "attention.sliding_window": 8,
        "attention.sliding_window_pattern": [int(layer % 3 > 0) for layer in range(s.layer)],
        "rope.dimension_count": s.head_dim // 4 * 2,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
    }


def _step35_heads(s: Shape, layer: int) -> Shape:
    """Full blocks, every fourth from the first, have as many heads as windows have keys, and one key."""
    return s if layer % 4 else replace(s, head=s.head_kv, head_kv=1)


def _step35(s: Shape, layer: int) -> Tensors:
    """The first block dense."""
    own = _step35_heads(s, layer)
    yield from gqa(own, norm="head")
    yield "attn_gate.weight", (own.head, s.embd)
    yield from ffn_norm(s)
    yield from dense_first(s, layer, 64)


def _step35_plain(s: Shape, layer: int) -> Tensors:
    """Without gates, norms of heads and selection bias; all experts."""
    yield from gqa(s, bias="qkv", fused=True)
    yield from ffn_norm(s)
    yield from routed(s)
    yield from dense(s, "_shexp", 64)


def _step35_keys(s: Shape, plain: bool = False) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "attention.sliding_window": 8,
        "attention.sliding_window_pattern": [layer % 4 > 0 for layer in range(s.layer)],
        "expert_shared_feed_forward_length": 64,
        "leading_dense_block_count": 1 - plain,
        "moe_every_n_layers": 1,
        "rope.freq_base": 5e6,
        "rope.freq_base_swa": 1e4,
    }
    if plain:
        return _moe(s) | keys | {"swiglu_clamp_exp": 0.5, "rope.dimension_count_swa": s.head_dim // 4 * 2}
    heads = [_step35_heads(s, layer) for layer in range(s.layer)]
    return (
        _moe(s, expert_weights_scale=3.0, expert_weights_norm=True)
        | keys
        | {
            "attention.head_count": [its.head for its in heads],
            "attention.head_count_kv": [its.head_kv for its in heads],
            "swiglu_clamp_exp": [0.3 * (layer % 2) for layer in range(s.layer)],
            "swiglu_clamp_shexp": [0.5 * (layer % 3 == 0) for layer in range(s.layer)],
        }
    )


def _laguna_heads(s: Shape, layer: int) -> Shape:
    """Full blocks, every fourth from the first, have as many heads as keys."""
    return s if layer % 4 else replace(s, head=s.head_kv)


def _laguna(s: Shape, layer: int) -> Tensors:
    own = _laguna_heads(s, layer)
    yield from _led()(own, layer)
    yield "attn_gate.weight", (own.head, s.embd)


def _laguna_full(s: Shape, layer: int) -> Tensors:
    """Gates for elements; all experts."""
    yield from _led(fused=True)(s, layer + 1)
    yield "attn_gate.weight", (s.head * s.head_dim, s.embd)


def _laguna_keys(s: Shape) -> dict[str, Any]:
    return (
        _moe(s, leading_dense_block_count=1, expert_weights_scale=2.5, expert_weights_norm=True)
        | {key: value for key, value in YARN.items() if "log" not in key}
        | {
            "attention.head_count": [_laguna_heads(s, layer).head for layer in range(s.layer)],
            "attention.sliding_window": 8,
            "expert_shared_feed_forward_length": s.ff_exp,
            "rope.dimension_count": s.head_dim // 4 * 2,
            "rope.dimension_count_swa": s.head_dim,
            "rope.freq_base": 5e5,
            "rope.freq_base_swa": 1e4,
        }
    )


def _hy_v3(s: Shape, layer: int) -> Tensors:
    """The first block dense; the others' experts fused, and the name of their bias without a suffix."""
    yield from gqa(s, norm="head")
    yield from ffn_norm(s)
    if layer == 0:
        yield from dense(s)
    else:
        yield from routed(s, fused=True)
        yield "exp_probs_b", (s.expert,)
        yield from dense(s, "_shexp", 64)


def _cohere2moe(s: Shape, layer: int) -> Tensors:
    """No second norm."""
    yield from (row for row in _led(norm="")(s, layer) if row[0] not in ("ffn_norm.weight", "exp_probs_b.bias"))


def _cohere_keys(s: Shape) -> dict[str, Any]:
    keys = _moe(s, attention__layer_norm_epsilon=1e-5, logit_scale=0.25, attention__sliding_window=8) | LED
    return {name: value for name, value in keys.items() if "rms" not in name}


def _kimi_linear(fused: bool = False) -> Callable[[Shape, int], Tensors]:
    """Every third block has latent attention; the sizes of 1 are a converter's, or what quantizing leaves of them."""

    def block(s: Shape, layer: int) -> Tensors:
        if layer % 3 == 2:
            yield from mla(s, q_lora=False, legacy=False)
        else:
            yield from _kimi_delta(s, fused)
        yield from ffn_norm(s)
        yield from dense_first(s, layer, s.ff_exp)

    return block


def _kimi_delta(s: Shape, fused: bool) -> Tensors:
    d, wide = s.head_dim, s.head * s.head_dim
    yield "attn_norm.weight", (s.embd,)
    if fused:
        yield "attn_qkv.weight", (3 * wide, s.embd)
    for part in "qkv":
        if not fused:
            yield f"attn_{part}.weight", (wide, s.embd)
        yield f"ssm_conv1d_{part}.weight", (wide, 1, 4) if fused else (1, wide, 1, 4)
    for part in "fg":
        yield f"ssm_{part}_a.weight", (d, s.embd)
        yield f"ssm_{part}_b.weight", (wide, d)
    yield "ssm_beta.weight", (s.head, s.embd)
    yield "ssm_a", (s.head, 1) if fused else (1, 1, s.head, 1)
    yield "ssm_dt.bias", (wide,)
    yield "ssm_norm.weight", (d,)
    yield "attn_output.weight", (s.embd, wide)


def _kimi_keys(s: Shape) -> dict[str, Any]:
    return _mla_keys(s, False, False) | {
        "attention.head_count_kv": [int(layer % 3 == 2) for layer in range(s.layer)],
        "expert_gating_func": 2,
        "kda.head_dim": s.head_dim,
        "ssm.conv_kernel": 4,
    }


def _kimi_k3(whole: bool) -> Callable[[Shape, int], Tensors]:
    """The same with gates and scores of sums, and experts of `LATENT` numbers; or with as little as a file may have."""

    def block(s: Shape, layer: int) -> Tensors:
        wide = s.head * s.head_dim
        if layer % 3 == 2:
            yield from mla(s, q_lora=whole, legacy=False)
            if whole:
                yield "attn_gate.weight", (s.head * 16, s.embd)
        else:
            for name, dims in _kimi_delta(s, fused=False):
                rows = {"ssm_g_a.weight": ("ssm_g.weight", (wide, s.embd)), "ssm_a": (name, (s.head,))}
                if name != "ssm_g_b.weight":
                    yield rows.get(name, (name, dims if whole or "conv" not in name else dims[1:]))
        if whole:
            yield "attn_res_score.weight", (s.embd,)
            yield "ffn_res_score.weight", (s.embd,)
        yield from ffn_norm(s)
        narrow = replace(s, embd=LATENT) if whole else s
        experts = {name: dims for name, dims in routed(narrow) if "_exps" in name}
        for name, dims in dense_first(s, layer, 2 * s.ff_exp):
            if whole or "shexp" not in name:
                yield name, experts.get(name, dims)
        if whole and layer:
            yield "ffn_routed_down.weight", (LATENT, s.embd)
            yield "ffn_routed_up.weight", (s.embd, LATENT)
            yield "ffn_routed_norm.weight", (LATENT,)

    return block


LATENT = 48  # numbers that routed experts read


def _kimi_k3_keys(s: Shape, whole: bool) -> dict[str, Any]:
    keys = _kimi_keys(s) | {
        "attention.q_lora_rank": 32 * whole,
        "attn_res.block_size": 2 * whole,
        "activation.situ_beta": 0.8,
        "activation.situ_linear_beta": 1.5 * whole,
        "expert_shared_count": 2 * whole,
    }
    return keys | ({"expert_latent_length": LATENT, "kda.gate_lower_bound": -1.0} if whole else {})


def _last_score(s: Shape) -> Tensors:
    yield "output_res_score.weight", (s.embd,)


def _glm5_next(pool: int, all_indexed: bool) -> Callable[[Shape, int], Tensors]:
    """Every other block has latent attention; every other of these an index, or all."""

    def block(s: Shape, layer: int) -> Tensors:
        if layer % 2 == 0:
            for name, dims in _kimi_delta(s, fused=False):
                yield name, (s.head,) if name == "ssm_a" else dims
        else:
            for name, dims in mla(s, q_lora=True, legacy=False):  # no positions: a key is 32 = 40 - 8 wide
                yield name, {"attn_q_b.weight": (s.head * 32, 32), "attn_kv_a_mqa.weight": (32, s.embd)}.get(name, dims)
        if layer % 2 and (all_indexed or _indexed(layer)):
            yield "indexer.k_norm.weight", (16,)
            yield "indexer.k_norm.bias", (16,)
            yield "indexer.proj.weight", (16, s.embd)
            yield "indexer.attn_k.weight", (16, s.embd)
            yield "indexer.attn_q_b.weight", (16 * 16, 32)
            yield "indexer_compressor_gate.weight", (16, s.embd)
            yield "indexer_compressor_ape.weight", (pool, 16)
        yield from _connections(s)
        yield from ffn_norm(s)
        yield from dense_first(s, layer, s.ff_exp)

    return block


def _indexed(layer: int) -> bool:
    return layer % 4 != 3


def _glm5_keys(s: Shape, pool: int, all_indexed: bool) -> dict[str, Any]:
    keys = _kimi_keys(s) | {
        "attention.head_count_kv": [layer % 2 for layer in range(s.layer)],
        "attention.q_lora_rank": 32,
        "attention.key_length": 32,
        "attention.key_length_mla": 32,
        "attention.layer_norm_epsilon": 1e-6,
        "attention.indexer.head_count": 16,
        "attention.indexer.key_length": 16,
        "attention.indexer.top_k": 16,
        "attention.indexer.kpool": pool,
        "rope.dimension_count": 0,
        "hyper_connection.count": 4,
        "hyper_connection.sinkhorn_iterations": 3,
        "hyper_connection.epsilon": 1e-3,
        "swiglu_clamp_exp": [0.5] * s.layer,
    }
    if not all_indexed:
        keys |= {
            "attention.indexer.kpool_select_tail": True,
            "attention.indexer.types": [_indexed(layer) for layer in range(s.layer)],
            "kda.gate_lower_bound": -5.0,
            "swiglu_clamp_shexp": [0.7] * s.layer,
        }
    return keys


def _connections(s: Shape) -> Tensors:
    """Those of four streams."""
    for part in ("attn", "ffn"):
        yield f"hc_{part}_fn.weight", ((2 + 4) * 4, 4 * s.embd)
        yield f"hc_{part}_base.weight", ((2 + 4) * 4,)
        yield f"hc_{part}_scale.weight", (3,)


def _hy_v4(indexed: bool) -> Callable[[Shape, int], Tensors]:
    """Four streams; latent attention, in every third block with an index, or in none."""

    def block(s: Shape, layer: int) -> Tensors:
        yield from _sparse(s, layer) if indexed and not layer % 3 else _deepseek2(True, False, indexed)(s, layer)
        yield "attn_gate.weight", (s.head * 16, s.embd)
        yield "attn_sinks.weight", (s.head,)
        for part in ("attn", "ffn"):
            yield f"hc_{part}_fn.weight", (2 * 4, 4 * s.embd)
            yield f"hc_{part}_base.weight", (2 * 4,)
            yield f"hc_{part}_scale.weight", (2,)

    return block


def _hy4_keys(s: Shape) -> dict[str, Any]:
    streams = {"count": 4, "epsilon": 1e-3, "magnitude": 2.0}
    return _mla_keys(s, True, False, expert_gating_func=2) | {f"hyper_connection.{k}": v for k, v in streams.items()}


def _bailingmoe3(q_lora: bool) -> Callable[[Shape, int], Tensors]:
    """Every third block has latent attention, with a gate for each head."""

    def block(s: Shape, layer: int) -> Tensors:
        wide = s.head * s.head_dim
        if layer % 3 == 2:
            yield from mla(s, q_lora=q_lora, legacy=False)
            yield "attn_gate.weight", (s.head, s.embd)
        else:
            for name, dims in _kimi_delta(s, fused=False):
                if not name.endswith("_b.weight"):
                    yield name, {"ssm_f_a.weight": (wide, s.embd), "ssm_g_a.weight": (wide, s.embd)}.get(name, dims)
        yield from ffn_norm(s)
        yield from dense_first(s, layer, 64)

    return block


def _bailing3_keys(s: Shape, q_lora: bool) -> dict[str, Any]:
    return _kimi_keys(s) | {
        "attention.q_lora_rank": 32 * q_lora,
        "expert_group_count": 4,
        "expert_group_used_count": 2,
        "expert_shared_feed_forward_length": 64,
        "kda.gate_lower_bound": -5.0,
    }


def _dbrx_keys(s: Shape) -> dict[str, Any]:
    keys = _moe(s, attention__layer_norm_epsilon=1e-5, attention__clamp_kqv=0.5)
    return {name: value for name, value in keys.items() if "rms" not in name}


def _base(s: Shape) -> dict[str, Any]:
    return {
        "block_count": s.layer,
        "context_length": 512,
        "embedding_length": s.embd,
        "feed_forward_length": s.ff,
        "attention.head_count": s.head,
        "attention.head_count_kv": s.head_kv,
        "attention.key_length": s.head_dim,
        "attention.value_length": s.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
        "rope.dimension_count": s.head_dim,
    }


def _moe(s: Shape, **more: Any) -> dict[str, Any]:
    keys = _base(s)
    if s.expert:
        keys |= {"expert_count": s.expert, "expert_used_count": s.used, "expert_feed_forward_length": s.ff_exp}
    return keys | {name.replace("__", "."): value for name, value in more.items()}


def _deepseek4(s: Shape, layer: int) -> Tensors:
    d, low, heads, index = s.head_dim, 32, 16, 64  # of so many heads one says more than nothing
    ratio = _ratios(s)[layer]
    yield "attn_norm.weight", (s.embd,)
    yield "attn_sinks.weight", (s.head,)
    yield "attn_q_a.weight", (low, s.embd)
    yield "attn_q_a_norm.weight", (low,)
    yield "attn_q_b.weight", (s.head * d, low)
    yield "attn_kv.weight", (d, s.embd)
    yield "attn_kv_a_norm.weight", (d,)
    groups = _groups(s)
    yield "attn_output_a.weight", (groups * 16, s.head * d // groups)
    yield "attn_output_b.weight", (s.embd, groups * 16)
    yield from _connections(s)
    compressors = {"attn_compressor": d} if ratio else {}
    if ratio == 4:
        compressors["indexer_compressor"] = index
        yield "indexer.proj.weight", (heads, s.embd)
        yield "indexer.attn_q_b.weight", (heads * index, low)
    for name, width in compressors.items():
        channels = width * (2 if ratio == 4 else 1)
        yield f"{name}_kv.weight", (channels, s.embd)
        yield f"{name}_gate.weight", (channels, s.embd)
        yield f"{name}_ape.weight", (ratio, channels)
        yield f"{name}_norm.weight", (width,)
    yield from ffn_norm(s)
    yield from routed(s, selection_bias=layer >= 1)
    if layer < 1:
        yield "ffn_gate_tid2eid.weight", (len(VOCAB), s.used)
    yield from dense(s, "_shexp", s.ff_exp)


def _groups(s: Shape) -> int:
    return 1 if s.head % 2 else 2  # of heads, whose results have low rank together


def _ratios(s: Shape) -> list[int]:
    return [(0, 4, 128, 4)[layer % 4] for layer in range(s.layer)]


def _deepseek4_keys(s: Shape) -> dict[str, Any]:
    return _moe(s, expert_shared_count=1, expert_weights_scale=1.5, expert_weights_norm=True, expert_gating_func=4) | {
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": 32,
        "attention.sliding_window": 8,
        "attention.indexer.head_count": 16,
        "attention.indexer.key_length": 64,
        "attention.indexer.top_k": 6,
        "attention.output_group_count": _groups(s),
        "attention.output_lora_rank": 16,
        "attention.compress_ratios": [*_ratios(s), 0],
        "attention.compress_rope_freq_base": 40000.0,
        "rope.dimension_count": 8,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 64,
        "hyper_connection.count": 4,
        "hyper_connection.sinkhorn_iterations": 3,
        "hyper_connection.epsilon": 1e-3,
        "hash_layer_count": 1,
        "swiglu_clamp_exp": [0.5] * s.layer,
        "swiglu_clamp_shexp": [0.7] * s.layer,
        "embedding_length_out": 4 * s.embd,
    }


def _deepseek4_head(s: Shape) -> Tensors:
    yield "output_hc_fn.weight", (4, 4 * s.embd)
    yield "output_hc_base.weight", (4,)
    yield "output_hc_scale.weight", (1,)


def _dots3_window(s: Shape, layer: int) -> bool:
    return layer % 3 != 1


def _dots3note(s: Shape, layer: int) -> Tensors:
    """Every third block, from the second, has an index; windows have half the heads, narrower keys and wider values."""
    window = _dots3_window(s, layer)
    heads = max(1, s.head // 2) if window else s.head
    latent, wide, value = (24, 32, 20) if window else (32, 40, 16)
    own = {
        "attn_q_b.weight": (heads * wide, 32),
        "attn_kv_a_mqa.weight": (latent + 8, s.embd),
        "attn_kv_a_norm.weight": (latent,),
        "attn_k_b.weight": (heads, latent, wide - 8),
        "attn_v_b.weight": (heads, value, latent),
        "attn_output.weight": (s.embd, heads * value),
    }
    for name, dims in _sparse(s, layer):
        if not window or "indexer" not in name:
            yield name, own.get(name, dims)
    yield "attn_k_norm.weight", (8,)
    yield "attn_gate.weight", (heads, s.embd)


def _dots3_keys(s: Shape) -> dict[str, Any]:
    windows = [_dots3_window(s, layer) for layer in range(s.layer)]
    return _sparse_keys(s) | {
        "attention.head_count": [max(1, s.head // 2) if window else s.head for window in windows],
        "attention.indexer.types": [not window for window in windows],
        "attention.key_length_mla_swa": 32,
        "attention.value_length_mla_swa": 20,
        "attention.kv_lora_rank_swa": 24,
        "attention.key_length_swa": 32,
        "attention.value_length_swa": 24,
        "attention.sliding_window": 8,
        "attention.sliding_window_pattern": windows,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
    }


LED = {
    "leading_dense_block_count": 1,
    "expert_shared_count": 1,
    "expert_weights_scale": 2.5,
    "expert_weights_norm": True,
}
YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 8.0,
    "rope.scaling.original_context_length": 64,
    "rope.scaling.yarn_log_multiplier": 0.0707,
}


def _mla_keys(s: Shape, q_lora: bool, legacy: bool, **more: Any) -> dict[str, Any]:
    keys = _moe(s) | {"attention.kv_lora_rank": 32, "rope.dimension_count": 8, "attention.q_lora_rank": 32 * q_lora}
    if legacy:
        keys |= {"attention.head_count_kv": s.head, "attention.key_length": 40, "attention.value_length": 16}
    else:
        keys |= {
            "attention.head_count_kv": 1,
            "attention.key_length": 40,
            "attention.value_length": 32,
            "attention.key_length_mla": 40,
            "attention.value_length_mla": 16,
        }
    return keys | LED | more


def _sparse_keys(s: Shape) -> dict[str, Any]:
    index = {"head_count": 16, "key_length": 64, "top_k": 12}
    return _mla_keys(s, True, False, expert_gating_func=2) | {f"attention.indexer.{k}": n for k, n in index.items()}


def _gemma4_keys(s: Shape, shared: int = 0) -> dict[str, Any]:
    kinds = [_of_full(s, layer) for layer in range(s.layer)]
    return _moe(s) | {
        "attention.head_count_kv": [kind.head_kv for kind in kinds],
        "attention.key_length": 2 * s.head_dim,
        "attention.value_length": 2 * s.head_dim,
        "attention.key_length_swa": s.head_dim,
        "attention.value_length_swa": s.head_dim,
        "attention.shared_kv_layers": shared,
        "attention.sliding_window": 8,
        "attention.sliding_window_pattern": [kind is s for kind in kinds],
        "embedding_length_per_layer_input": 0,
        "final_logit_softcapping": 4.0,
        "rope.dimension_count": 2 * s.head_dim,
        "rope.dimension_count_swa": s.head_dim,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
    }


def _sections(s: Shape) -> list[int]:
    """Pairs of a head that time, height and width turn, in turns: the first have one more where they are no thirds."""
    return [*((s.head_dim // 2 + rest) // 3 for rest in (2, 1, 0)), 0]


def _stretched(s: Shape) -> Tensors:
    yield "rope_freqs.weight", (s.head_dim,)


def _half_stretched(s: Shape) -> Tensors:
    yield "rope_freqs.weight", (s.head_dim // 2,)


def _factors(s: Shape) -> Tensors:
    yield "output.bias", (len(VOCAB),)
    yield "output_norm.bias", (s.embd,)


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(_llama, lambda s: _base(s) | {"vocab_size": len(VOCAB)}, Shape(expert=0)),
    "llama+mixtral": Architecture(_llama, lambda s: _moe(s, vocab_size=len(VOCAB), feed_forward_length=32)),
    "qwen3": Architecture(_plain("head"), _base, Shape(expert=0)),
    "qwen2moe": Architecture(_qwen2moe(), lambda s: _moe(s, expert_shared_feed_forward_length=64)),
    "qwen2moe+fused": Architecture(_qwen2moe(fused=True), lambda s: _moe(s, expert_shared_feed_forward_length=64)),
    "qwen3moe": Architecture(_plain("head"), _moe, Shape(used=3)),
    "qwen3moe+fused": Architecture(_plain("head", fused_experts=True), _moe),
    "qwen3vlmoe": Architecture(
        _plain("head"), lambda s: _moe(s) | {"rope.dimension_sections": _sections(s), "n_deepstack_layers": 1}
    ),
    "olmoe": Architecture(_plain("full"), _moe, Shape(head_kv=4, ff=32)),
    "granitemoe": Architecture(
        _granitemoe,
        _granite_keys,
        Shape(ff=32),
    ),
    "deepseek2": Architecture(
        _deepseek2(True, False, True),
        lambda s: (
            _mla_keys(s, True, False)
            | YARN
            | {"expert_gating_func": 2, "expert_group_count": 4, "expert_group_used_count": 2}
        ),
        Shape(layer=3),
    ),
    "deepseek2+temperature": Architecture(
        _deepseek2(True, False, False),
        lambda s: (
            _mla_keys(s, True, False) | YARN | {"attention.temperature_scale": 0.3, "attention.temperature_length": 8}
        ),
    ),
    "deepseek2+lite": Architecture(
        _deepseek2(False, False, False),
        lambda s: _mla_keys(s, False, False, expert_weights_norm=False) | {"expert_group_count": 1},
    ),
    "deepseek2+legacy": Architecture(
        _deepseek2(True, True, False), lambda s: _mla_keys(s, True, True) | YARN | {"expert_gating_func": 2}
    ),
    "deepseek": Architecture(
        lambda s, layer: (row for row in _led(norm="")(s, layer) if row[0] != "exp_probs_b.bias"),
        lambda s: _moe(s, leading_dense_block_count=1, expert_shared_count=1, expert_weights_scale=1.5),
        Shape(layer=3),
    ),
    "mistral4": Architecture(
        _deepseek2(True, False, False, fused=True),
        lambda s: (
            _mla_keys(s, True, False)
            | YARN
            | {
                "rope.scaling.yarn_log_multiplier": 0.1,
                "attention.temperature_scale": 0.1,
                "attention.temperature_length": 8,
            }
        ),
    ),
    "deepseek32": Architecture(
        _sparse, lambda s: _sparse_keys(s) | YARN | {"rope.scaling.yarn_log_multiplier": 0.1}, Shape(layer=3)
    ),
    "glm-dsa": Architecture(_sparse, _sparse_keys, Shape(layer=4)),
    "glm-dsa+shared": Architecture(
        lambda s, layer: (row for row in _sparse(s, layer) if not layer % 3 or "indexer" not in row[0]),
        lambda s: _sparse_keys(s) | {"attention.indexer.types": [int(not layer % 3) for layer in range(s.layer)]},
        Shape(layer=5),
    ),
    "dots3note": Architecture(_dots3note, _dots3_keys, Shape(layer=4)),
    "grok": Architecture(_grok(False, "layer_output_norm"), _moe),
    "grok+2": Architecture(
        _grok(True, "post_ffw_norm"),
        lambda s: (
            _moe(s, embedding_scale=3.0, logit_scale=1.5, attention__output_scale=0.4)
            | {f"{of}_logit_softcapping": most for of, most in (("attn", 2.0), ("router", 3.0), ("final", 4.0))}
            | {k: v for k, v in YARN.items() if "log" not in k}
            | {"rope.scaling.yarn_ext_factor": 1.0, "rope.scaling.yarn_attn_factor": 1.0}
            | {"rope.scaling.yarn_beta_slow": 1.0, "attention.temperature_length": 1024}
        ),
    ),
    "gpt-oss": Architecture(
        _gpt_oss,
        lambda s: _moe(s) | {k: v for k, v in YARN.items() if "log" not in k} | {"attention.sliding_window": 8},
        Shape(layer=3),
    ),
    "glm4moe": Architecture(
        _led(bias="qkv", before="post_attention_norm"),
        lambda s: (
            _moe(s)
            | LED
            | {
                "expert_gating_func": 2,
                "rope.dimension_count": 8,
                "expert_group_count": 1,
                "expert_group_used_count": 1,
            }
        ),
    ),
    "dots1": Architecture(_led(), lambda s: _moe(s) | LED | {"expert_gating_func": 2}, Shape(head_kv=4)),
    "bailingmoe2": Architecture(
        _led(fused=True),
        lambda s: (
            _moe(s)
            | LED
            | {
                "expert_gating_func": 2,
                "rope.dimension_count": 8,
                "expert_group_count": 4,
                "expert_group_used_count": 2,
                "expert_shared_feed_forward_length": 32,
            }
        ),
    ),
    "bailingmoe": Architecture(
        _shared,
        lambda s: _moe(s, expert_shared_count=1, expert_weights_scale=1.5, expert_weights_norm=True),
        Shape(head_dim=24),
    ),
    "mellum": Architecture(
        _plain("head"),
        lambda s: (
            _moe(s) | {key: value for key, value in YARN.items() if "log" not in key} | {"attention.sliding_window": 8}
        ),
        Shape(layer=5),
    ),
    "afmoe": Architecture(_afmoe, lambda s: _moe(s) | LED | {"attention.sliding_window": 8}, Shape(layer=4)),
    "qwen3next": Architecture(_hybrid("together"), _delta_keys, Shape(layer=4)),
    "qwen3next+old": Architecture(
        _hybrid("old"), lambda s: _delta_keys(s) | {"full_attention_interval": 4}, Shape(layer=4)
    ),
    "qwen35moe": Architecture(
        _hybrid("apart", fused=True),
        lambda s: _delta_keys(s) | {"rope.dimension_sections": [2, 1, 1, 0]},
        Shape(layer=5),
    ),
    "qwen4exp": Architecture(_qwen4exp, _qwen4exp_keys, Shape(layer=4), extra=_qwen4exp_more, last_norm=None),
    "granitehybrid": Architecture(
        _granitehybrid,
        lambda s: (
            _granite_keys(s)
            | _ssm(s, 2 * s.embd)
            | {"attention.head_count_kv": [s.head_kv * (layer % 3 == 2) for layer in range(s.layer)]}
        ),
        Shape(ff=32, layer=4),
    ),
    "jamba": Architecture(_jamba, _jamba_keys, Shape(ff=32, layer=4)),
    "nemotron_h_moe": Architecture(_nemotron, _nemotron_keys, Shape(layer=5)),
    "kimi-linear": Architecture(_kimi_linear(), _kimi_keys, Shape(layer=4)),
    "kimi-linear+fused": Architecture(_kimi_linear(fused=True), _kimi_keys, Shape(layer=4)),
    "kimi-k3": Architecture(
        _kimi_k3(True), lambda s: _kimi_k3_keys(s, True), Shape(head_kv=1, ff_exp=64, layer=5), extra=_last_score
    ),
    "kimi-k3+plain": Architecture(_kimi_k3(False), lambda s: _kimi_k3_keys(s, False), Shape(layer=4)),
    "glm5-next": Architecture(_glm5_next(4, False), lambda s: _glm5_keys(s, 4, False), Shape(layer=4)),
    "glm5-next+all": Architecture(_glm5_next(2, True), lambda s: _glm5_keys(s, 2, True), Shape(layer=4)),
    "bailingmoe3": Architecture(
        _bailingmoe3(True),
        lambda s: (
            _bailing3_keys(s, True)
            | {
                "kda.safe_gate": True,
                "rope.dimension_sections": [2, 1, 1, 0],
                "swiglu_clamp_exp": [0.5] * s.layer,
                "swiglu_clamp_shexp": [0.7] * s.layer,
            }
        ),
        Shape(layer=4),
    ),
    "bailingmoe3+text": Architecture(_bailingmoe3(False), lambda s: _bailing3_keys(s, False), Shape(layer=4)),
    "lfm2moe": Architecture(
        _lfm2moe,
        lambda s: (
            _moe(s, leading_dense_block_count=1, expert_gating_func=2, shortconv__l_cache=3)
            | {"attention.head_count_kv": [s.head_kv * (layer % 3 == 2) for layer in range(s.layer)]}
        ),
        Shape(layer=4),
        last_norm="token_embd_norm",
    ),
    "ernie4_5-moe": Architecture(
        _ernie,
        lambda s: _moe(
            s,
            leading_dense_block_count=1,
            interleave_moe_layer_step=1,
            expert_shared_feed_forward_length=64,
            expert_shared_count=2,
        ),
    ),
    "hunyuan-moe": Architecture(
        _hunyuan, lambda s: _moe(s, expert_shared_feed_forward_length=64, expert_shared_count=2), Shape(ff=32)
    ),
    "minimax-m2": Architecture(
        _minimax, lambda s: _moe(s) | {"expert_gating_func": 2, "rope.dimension_count": 8}, Shape(ff=32)
    ),
    "minimax-m3": Architecture(_minimax_m3(1), lambda s: _minimax_m3_keys(s, 1), Shape(layer=4)),
    "minimax-m3+all": Architecture(_minimax_m3(0), lambda s: _minimax_m3_keys(s, 0), Shape(head=6, head_kv=3, layer=2)),
    "grovemoe": Architecture(
        _grovemoe,
        lambda s: _moe(s, experts_per_group=2, expert_group_scale=0.7, expert_chunk_feed_forward_length=s.head_dim),
        Shape(used=3),
    ),
    "phimoe": Architecture(_phimoe, _moe, Shape(ff=32), extra=_factors),
    "gemma4": Architecture(_gemma4, _gemma4_keys, Shape(layer=4), extra=_stretched, unscaled=True),
    "gemma4+shared": Architecture(
        _gemma4_shared,
        lambda s: _gemma4_keys(s, s.layer - _gemma4_own(s)),
        Shape(layer=5),
        extra=_stretched,
        unscaled=True,
    ),
    "smallthinker": Architecture(
        _plain(),
        lambda s: _moe(s, expert_gating_func=2) | {"attention.sliding_window": 4096},
        Shape(ff=32, layer=5),
    ),
    "dbrx": Architecture(_dbrx, _dbrx_keys, Shape(ff=32)),
    "exaone-moe": Architecture(
        _led(),
        lambda s: _moe(s) | LED | {"expert_gating_func": 2, "attention.sliding_window": 8},
        Shape(head_kv=1, layer=5),
    ),
    "maple": Architecture(
        _plain("head"),
        lambda s: (
            _moe(s)
            | {
                "attention.sliding_window": 8,
                "attention.sliding_window_pattern": [layer % 3 != 2 for layer in range(s.layer)],
                "rope.freq_base_swa": 1000.0,
                "swiglu_clamp_exp": [0.5 + layer for layer in range(s.layer)],
            }
        ),
        Shape(layer=3),
    ),
    "mimo2": Architecture(_mimo2, _mimo2_keys, Shape(layer=4)),
    "step35": Architecture(_step35, _step35_keys, Shape(layer=5), extra=_half_stretched),
    "step35+plain": Architecture(_step35_plain, lambda s: _step35_keys(s, plain=True), Shape(layer=4)),
    "deepseek4": Architecture(_deepseek4, _deepseek4_keys, Shape(head_kv=1, layer=4), extra=_deepseek4_head),
    "laguna": Architecture(_laguna, _laguna_keys, Shape(layer=5)),
    "laguna+full": Architecture(
        _laguna_full,
        lambda s: _moe(s, leading_dense_block_count=0, expert_shared_feed_forward_length=s.ff_exp),
    ),
    "hy_v3": Architecture(
        _hy_v3,
        lambda s: _moe(s, expert_shared_feed_forward_length=64, expert_weights_scale=2.5, expert_weights_norm=True),
    ),
    "hy_v4": Architecture(
        _hy_v4(True),
        lambda s: (
            _sparse_keys(s)
            | _hy4_keys(s)
            | {key: value for key, value in YARN.items() if "log" not in key}
            | {"attention.indexer.types": [not layer % 3 for layer in range(s.layer)]}
            | {"swiglu_clamp_exp": [0.5] * s.layer}
        ),
        Shape(layer=5),
        extra=_deepseek4_head,
    ),
    "hy_v4+full": Architecture(_hy_v4(False), _hy4_keys, extra=_deepseek4_head),
    "cohere2moe": Architecture(_cohere2moe, _cohere_keys, Shape(layer=5)),
    "arctic": Architecture(_arctic, _moe, Shape(ff=32)),
    "llama4": Architecture(_llama4, lambda s: _moe(s, interleave_moe_layer_step=2), Shape(used=1, layer=4)),
}

# which compute with torch between the kernels
BY_TORCH = [
    *("deepseek4", "deepseek32", "glm-dsa", "glm-dsa+shared", "glm5-next", "glm5-next+all", "qwen4exp"),
    *("minimax-m3", "minimax-m3+all", "kimi-k3", "kimi-k3+plain", "hy_v4", "hy_v4+full", "dots3note"),
]
CPU_ALONE = [*BY_TORCH, "jamba"]  # on no device yet
ON_DEVICES = [name for name in ARCHITECTURES if name not in CPU_ALONE]


def add_tokenizer(writer: gguf.GGUFWriter, template: str | None = CHATML) -> None:
    """A byte-level BPE of 272 tokens, ChatML."""
    types = [gguf.TokenType.NORMAL] * (len(VOCAB) - len(SPECIALS)) + [gguf.TokenType.CONTROL] * len(SPECIALS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(VOCAB)
    writer.add_token_types(types)
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(VOCAB.index("<|im_end|>"))
    writer.add_bos_token_id(VOCAB.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)


def write_model(
    path: Path,
    architecture: str = "qwen3moe",
    *,
    quant: str = "F32",
    shape: Shape | None = None,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
    template: str | None = CHATML,
) -> Path:
    """Write a tiny model; `architecture` is a row of ARCHITECTURES, `quant` any type that `gguf.quantize` writes."""
    row = ARCHITECTURES[architecture]
    s = shape or row.shape
    name = architecture.split("+")[0]
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), name)
    writer.add_name(f"tiny {architecture}")
    for key, value in (row.keys(s) | (metadata or {})).items():
        _add(writer, f"{name}.{key}", value)
    add_tokenizer(writer, template)
    tensors = [("token_embd.weight", (len(VOCAB), s.embd))]
    tensors += [(f"{row.last_norm}.weight", (s.embd,))] if row.last_norm else []
    tensors += [("output.weight", (len(VOCAB), s.embd)), *row.extra(s)]
    for layer in range(s.layer):
        tensors += [(f"blk.{layer}.{tensor}", dims) for tensor, dims in row.block(s, layer)]
    for tensor, dims in tensors:
        data = random_weights(rng, tensor, dims)
        if "tid2eid" in tensor:
            data = rng.permuted(np.tile(np.arange(s.expert, dtype=np.int32), (dims[0], 1)), axis=1)[:, : dims[1]].copy()
        if row.unscaled and tensor.endswith("attn_q_norm.weight"):
            data /= np.sqrt(dims[0], dtype=np.float32)
        kind = gguf.GGMLQuantizationType[quant]
        matrix = len(dims) > 1 and tensor.endswith(".weight") and not any(n in tensor for n in EXACT)
        if matrix and kind != gguf.GGMLQuantizationType.F32 and dims[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            writer.add_tensor(tensor, gguf.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_weights(rng: np.random.Generator, tensor: str, dims: tuple[int, ...]) -> np.ndarray:
    """Norms near one, biases small, matrices of a size that keeps activations near one."""
    noise = rng.standard_normal(dims).astype(np.float32)
    if "norm" in tensor and tensor.endswith(".weight"):
        return 1.0 + 0.2 * noise
    if tensor.endswith("ssm_a"):
        return -np.exp(noise)
    if tensor == "rope_freqs.weight":  # a quarter of the pairs turn
        return np.where(np.arange(*dims) < dims[0] // 4, 1.0, 1e30).astype(np.float32)
    if "scale" in tensor:
        return (1.0 + 0.2 * noise) * (np.sqrt(dims[0], dtype=np.float32) if "gate_inp" in tensor else np.float32(1.0))
    if len(dims) == 1 or tensor.endswith(".bias"):
        return 0.2 * noise
    return (
        noise
        * (2.0 if "token_embd" in tensor or "ffn_gate_inp" in tensor else 1.0)
        / np.sqrt(dims[-1], dtype=np.float32)
    )


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, np.ndarray):  # of numbers wider than the writer would take them for
        writer.add_key_value(key, value.tolist(), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT64)
        return
    kinds = {
        list: writer.add_array,
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    kinds[type(value)](key, value)


if __name__ == "__main__":
    for each in ARCHITECTURES:
        write_model(Path(sys.argv[1]) / f"{each}.gguf", each)
