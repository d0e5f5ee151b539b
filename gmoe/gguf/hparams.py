"""Hparams: the hyperparameters of a GGUF model, one row a key, named as llama.cpp names them."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any

from gmoe.gguf.file import UnsupportedModel
from gmoe.gguf.values import DIFFERS, is_array, one_a_block, plain, scalar, whole_numbers

REQUIRED = object()
MOST_INT, MOST_FLOAT = (1 << 31) - 1, 1e20  # of any hyperparameter
UNKNOWN = "not known to gmoe and may change the arithmetic"

# Keys that say something about the file or about images, not about the arithmetic of text.
DESCRIPTIVE = frozenset(
    {
        "vocab_size",
        "embedding_length_out",
        "tensor_data_layout",
        "features_length",
        "rope.dimension_sections",
        "n_deepstack_layers",
    }
)

# What first files of an architecture left out, where it is not what others leave out.
LEFT_OUT: Mapping[str, Mapping[str, float]] = {
    "grok": {"embedding_scale": 6144**0.5, "logit_scale": 3**-0.5, "rope.scaling.yarn_beta_fast": 8.0},
}


class Gating(IntEnum):
    """The file format's `expert_gating_func`."""

    NONE = 0
    SOFTMAX = 1
    SIGMOID = 2
    SOFTMAX_WEIGHT = 3  # softmax over the chosen logits only
    SQRT_SOFTPLUS = 4


def key(name: str, default: Any = REQUIRED, *, by_layer: bool = False, rare: bool = False, spare: bool = False) -> Any:
    """A field read from the metadata key `<architecture>.<name>`.

    Its value may differ `by_layer`, with `spare` entries for blocks that the file does not have; a `rare` key is one
    that not every architecture knows.
    """
    return field(metadata={"key": name, "default": default, "by_layer": by_layer, "rare": rare, "spare": spare})


@dataclass(frozen=True, kw_only=True)
class Hparams:
    """Frozen hyperparameters; a missing required key, or an unknown one of the architecture, is an error naming it.

    A value that differs by layer is here the largest of them; `of_layer` has each block's own.
    """

    file: str
    architecture: str
    differing: Mapping[str, Sequence[Any]] = field(default_factory=dict, hash=False)  # by field, one a block
    special: Mapping[str, str] = field(default_factory=dict, hash=False)  # by key, why not every architecture takes it
    _layers: dict[int, "Hparams"] = field(default_factory=dict, init=False, repr=False, compare=False)
    n_block: int = key("block_count")
    n_ctx_train: int = key("context_length")
    n_embd: int = key("embedding_length")
    n_ff: int = key("feed_forward_length", 0, by_layer=True)
    n_head: int = key("attention.head_count", by_layer=True)
    n_head_kv: int = key("attention.head_count_kv", None, by_layer=True)
    key_length: int | None = key("attention.key_length", None)
    value_length: int | None = key("attention.value_length", None)
    rms_eps: float = key("attention.layer_norm_rms_epsilon", None)
    norm_eps: float = key("attention.layer_norm_epsilon", None)
    attention_scale: float = key("attention.scale", 0.0)
    attn_output_scale: float = key("attention.output_scale", 128**-0.5, rare=True)
    attn_softcapping: float = key("attn_logit_softcapping", 30.0, rare=True)
    router_softcapping: float = key("router_logit_softcapping", 30.0, rare=True)
    attn_temperature_scale: float = key("attention.temperature_scale", 0.0)
    attn_temperature_length: int = key("attention.temperature_length", 0)
    n_swa: int = key("attention.sliding_window", 0)
    swa: bool = key("attention.sliding_window_pattern", False, by_layer=True, rare=True)  # the block sees a window
    key_length_swa: int | None = key("attention.key_length_swa", None, rare=True)
    value_length_swa: int | None = key("attention.value_length_swa", None, rare=True)
    n_layer_kv_shared: int = key("attention.shared_kv_layers", 0, rare=True)
    n_chunk: int = key("attention.chunk_size", 8192)
    causal: bool = key("attention.causal", True)
    clamp_kqv: float = key("attention.clamp_kqv", 0.0, rare=True)
    value_scale: float = key("attention.value_scale", 0.0, rare=True)

    q_lora_rank: int = key("attention.q_lora_rank", 0)
    kv_lora_rank: int = key("attention.kv_lora_rank", 0)
    n_index_head: int = key("attention.indexer.head_count", 0, rare=True)
    n_index: int = key("attention.indexer.key_length", 0, rare=True)
    index_top_k: int = key("attention.indexer.top_k", 0, rare=True)
    index_pool: int = key("attention.indexer.kpool", 0, rare=True)
    index_tail: bool = key("attention.indexer.kpool_select_tail", True, rare=True)
    index_block: int = key("attention.indexer.block_size", 0, rare=True)
    index_local: int = key("attention.indexer.local_blocks", 0, rare=True)
    indexed: bool = key("attention.indexer.types", True, by_layer=True, rare=True)  # the block has an index of its own
    compress_ratio: int = key("attention.compress_ratios", 0, by_layer=True, rare=True, spare=True)
    compress_freq_base: float = key("attention.compress_rope_freq_base", 10000.0, rare=True)
    n_output_group: int = key("attention.output_group_count", 0, rare=True)
    output_lora_rank: int = key("attention.output_lora_rank", 0, rare=True)
    key_length_mla: int | None = key("attention.key_length_mla", None)
    value_length_mla: int | None = key("attention.value_length_mla", None)
    kv_lora_rank_swa: int = key("attention.kv_lora_rank_swa", 0, rare=True)
    key_length_mla_swa: int | None = key("attention.key_length_mla_swa", None, rare=True)
    value_length_mla_swa: int | None = key("attention.value_length_mla_swa", None, rare=True)

    rope_freq_base: float = key("rope.freq_base", 10000.0)
    rope_dimension_count: int | None = key("rope.dimension_count", None)
    rope_freq_base_swa: float = key("rope.freq_base_swa", None, rare=True)
    rope_dimension_count_swa: int | None = key("rope.dimension_count_swa", None, rare=True)
    rope_scaling_type: str = key("rope.scaling.type", "linear")  # older files state a factor only
    rope_scaling_factor: float = key("rope.scaling.factor", 0.0)
    rope_scale_linear: float = key("rope.scale_linear", 0.0)
    rope_finetuned: bool = key("rope.scaling.finetuned", True)
    rope_attn_factor: float = key("rope.scaling.attn_factor", 1.0)
    n_ctx_orig: int | None = key("rope.scaling.original_context_length", None)
    yarn_log_multiplier: float = key("rope.scaling.yarn_log_multiplier", 0.0)
    yarn_ext_factor: float = key("rope.scaling.yarn_ext_factor", 1.0)
    yarn_attn_factor: float = key("rope.scaling.yarn_attn_factor", 1.0)
    yarn_beta_fast: float = key("rope.scaling.yarn_beta_fast", 32.0)
    yarn_beta_slow: float = key("rope.scaling.yarn_beta_slow", 1.0)

    n_expert: int = key("expert_count", 0)
    n_expert_used: int = key("expert_used_count", 0)
    n_expert_shared: int = key("expert_shared_count", 0)
    n_expert_groups: int = key("expert_group_count", 0)
    n_group_used: int = key("expert_group_used_count", 0)
    n_ff_exp: int = key("expert_feed_forward_length", 0)
    n_ff_shexp: int = key("expert_shared_feed_forward_length", 0)
    n_ff_chunk: int = key("expert_chunk_feed_forward_length", 0, rare=True)
    n_chunk_expert: int = key("experts_per_group", 0, rare=True)  # experts that have one of a chunk's in common
    chunk_scale: float = key("expert_group_scale", 0.0, rare=True)
    n_latent: int = key("expert_latent_length", 0, rare=True)  # what routed experts read and give; 0: as wide as others
    expert_weights_scale: float = key("expert_weights_scale", 0.0)
    expert_weights_norm: bool = key("expert_weights_norm", False)
    gating: Gating = key("expert_gating_func", Gating.NONE)
    n_layer_dense_lead: int = key("leading_dense_block_count", 0)
    moe_layer_step: int = key("interleave_moe_layer_step", 1)
    moe_every: int = key("moe_every_n_layers", 1, rare=True)
    clamp_experts: float = key("swiglu_clamp_exp", 0.0, by_layer=True, rare=True)
    clamp_dense: float = key("swiglu_clamp_shexp", 0.0, by_layer=True, rare=True)  # shared experts and dense blocks
    situ_bound: float = key("activation.situ_beta", 0.0, rare=True)
    situ_bound_up: float = key("activation.situ_linear_beta", 0.0, rare=True)
    n_layer_hashed: int = key("hash_layer_count", 0, rare=True)
    n_layer_nextn: int = key("nextn_predict_layers", 0)

    n_layer_kept: int = key("attn_res.block_size", 0, rare=True)  # blocks whose sum is kept before it begins anew
    n_streams: int = key("hyper_connection.count", 0, rare=True)
    hc_sinkhorn: int = key("hyper_connection.sinkhorn_iterations", 0, rare=True)
    hc_epsilon: float = key("hyper_connection.epsilon", 0.0, rare=True)
    hc_low_rank: int = key("hyper_connection.low_rank", 0, rare=True)
    hc_magnitude: float = key("hyper_connection.magnitude", 0.0, rare=True)

    n_embd_per_layer: int = key("embedding_length_per_layer_input", 0, rare=True)
    ngram_layers: Sequence[int] = key("ple.layers", (), rare=True)
    ngram: int = key("ple.ngram_size", 0, rare=True)
    n_ngram_head: int = key("ple.heads_per_ngram", 0, rare=True)
    ngram_conv: int = key("ple.conv_kernel", 0, rare=True)
    ngram_end: int | None = key("ple.eos_token_id", None, rare=True)
    ngram_image: int = key("ple.image_token_id", 0, rare=True)  # in the place of what no text has
    ngram_multipliers: Sequence[int] = key("ple.layer_multipliers", (), rare=True)
    ngram_offsets: Sequence[int] = key("ple.head_offsets", (), rare=True)
    ngram_sizes: Sequence[int] = key("ple.head_vocab_sizes", (), rare=True)
    logit_softcapping: float = key("final_logit_softcapping", 0.0, rare=True)

    recurrent: bool = key("attention.recurrent_layers", None, by_layer=True, rare=True)
    full_attention_interval: int = key("full_attention_interval", 4, rare=True)  # where that is not said
    ssm_d_conv: int = key("ssm.conv_kernel", 0, rare=True)
    ssm_d_inner: int = key("ssm.inner_size", 0, rare=True)
    ssm_d_state: int = key("ssm.state_size", 0, rare=True)
    ssm_dt_rank: int = key("ssm.time_step_rank", 0, rare=True)
    ssm_n_group: int = key("ssm.group_count", 0, rare=True)
    kda_head_dim: int = key("kda.head_dim", 0, rare=True)  # of Kimi's delta attention
    kda_safe_gate: bool = key("kda.safe_gate", True, rare=True)
    kda_floor: float = key("kda.gate_lower_bound", None, rare=True)
    n_shortconv: int = key("shortconv.l_cache", 0, rare=True)

    embedding_scale: float = key("embedding_scale", 1.0)
    residual_scale: float = key("residual_scale", 1.0)
    logit_scale: float = key("logit_scale", 1.0)

    @property
    def n_layer(self) -> int:
        """Blocks that a forward pass runs; `block_count` also counts next-token-prediction blocks at the end."""
        return self.n_block - self.n_layer_nextn

    @property
    def n_ctx_reach(self) -> int:
        """Tokens up to which positions were trained, or are scaled to what was."""
        if self.rope_scaling_type not in ("linear", "yarn"):
            return self.n_ctx_train
        factor = self.rope_scaling_factor or self.rope_scale_linear
        return max(self.n_ctx_train, int((self.n_ctx_orig or self.n_ctx_train) * factor))

    @property
    def n_head_k(self) -> int:
        """Width of a head's query and key."""
        return self.key_length if self.key_length is not None else self.n_embd // self.n_head

    @property
    def n_head_v(self) -> int:
        """Width of a head's value."""
        return self.value_length if self.value_length is not None else self.n_embd // self.n_head

    @property
    def n_kv(self) -> int:
        """Key and value heads."""
        return self.n_head_kv if self.n_head_kv is not None else self.n_head

    def of_layer(self, layer: int) -> "Hparams":
        """What holds in one block of a model: its own values, and those of a window where the file says it is one."""
        if layer not in self._layers:
            own = replace(self, **{name: entries[layer] for name, entries in self.differing.items()})
            self._layers[layer] = own.of_window() if own.swa else own if self.differing else self
        return self._layers[layer]

    def of_compressed(self) -> "Hparams":
        """What holds in a block that compresses: rotations with a base of their own."""
        return replace(self, rope_freq_base=self.compress_freq_base)

    def of_window(self) -> "Hparams":
        """What holds in a window: the values of the keys that end in `_swa`, where there are any."""
        own = self
        if own.rope_freq_base_swa is not None:
            own = replace(own, rope_freq_base=own.rope_freq_base_swa, rope_scaling_factor=1.0)
        return replace(
            own,
            key_length=own.key_length if own.key_length_swa is None else own.key_length_swa,
            value_length=own.value_length if own.value_length_swa is None else own.value_length_swa,
            kv_lora_rank=own.kv_lora_rank_swa or own.kv_lora_rank,
            key_length_mla=own.key_length_mla_swa or own.key_length_mla,
            value_length_mla=own.value_length_mla_swa or own.value_length_mla,
            rope_dimension_count=own.rope_dimension_count_swa or own.rope_dimension_count,
        )

    def is_recurrent(self, layer: int) -> bool:
        """Whether this block of a hybrid model keeps a state instead of keys and values."""
        own = self.of_layer(layer)
        if own.recurrent is not None:
            return own.recurrent
        if not own.n_kv:
            return "n_ff" not in self.differing or not own.n_ff
        by_interval = bool(self.ssm_dt_rank) and "n_head_kv" not in self.differing
        return by_interval and (layer + 1) % self.full_attention_interval != 0

    def is_indexed(self, layer: int) -> bool:
        """Whether this block's attention has an index of its own, where the architecture has them.

        Where a GLM of a million tokens does not say, the first two blocks do, and of the other 76 every fourth.
        """
        stated = "attention.indexer.types" in self.special
        if stated or self.architecture != "glm-dsa" or self.n_ctx_train < 1 << 20:
            return self.of_layer(layer).indexed
        return layer < 2 or (layer < 78 and layer % 4 == 2)

    @property
    def n_indexed(self) -> int:
        """Blocks with an index of their own."""
        return sum(self.is_indexed(layer) for layer in range(self.n_layer))

    def known_to(self, keys: Container[str]) -> None:
        """Raise `UnsupportedModel` if the file has a rare key, or one whose value differs by layer, but for `keys`."""
        for name, why in self.special.items():
            if name not in keys:
                raise UnsupportedModel(self.file, f"{self.architecture}.{name}", why)

    def gating_or(self, default: Gating) -> Gating:
        """The gating function that the file states, else the architecture's own."""
        return self.gating or default

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], file: str = "model") -> "Hparams":
        """Read the keys of `general.architecture`; raises `UnsupportedModel` naming the file and the key."""
        if "general.architecture" not in metadata:
            raise UnsupportedModel(file, "general.architecture", "required in every GGUF model")
        architecture = metadata["general.architecture"]
        if not isinstance(architecture, str):
            raise UnsupportedModel(file, "general.architecture", "must be text")
        prefix = architecture + "."
        rows = {f.metadata["key"]: f for f in fields(cls) if "key" in f.metadata}
        differing, special, values = dict[str, Sequence[Any]](), dict[str, str](), dict[str, Any]()
        values |= {"file": file, "architecture": architecture, "differing": differing, "special": special}
        for name, row in rows.items():
            if prefix + name in metadata:
                nextn = metadata.get(prefix + "nextn_predict_layers", 0)
                given = metadata[prefix + name]
                if row.metadata["rare"]:
                    special[name] = UNKNOWN
                if row.type == Sequence[int]:
                    values[row.name] = whole_numbers(given, file, prefix + name)
                    continue
                if row.metadata["spare"] and is_array(given):
                    given = given[: values["n_block"]]
                given = one_a_block(given, values.get("n_block"), nextn, file, prefix + name)
                if row.metadata["by_layer"] and is_array(given) and len({*plain(given)}) > 1:
                    special[name] = special.get(name, DIFFERS)
                    differing[row.name] = [scalar([v], row.type, file, prefix + name) for v in given]
                    given = max(differing[row.name])
                values[row.name] = scalar(given, row.type, file, prefix + name)
            elif row.metadata["default"] is REQUIRED:
                raise UnsupportedModel(file, prefix + name, f"required by architecture {architecture}")
            else:
                values[row.name] = LEFT_OUT.get(architecture, {}).get(name, row.metadata["default"])
        for name in metadata:
            if name.startswith(prefix) and name[len(prefix) :] not in rows and name[len(prefix) :] not in DESCRIPTIVE:
                raise UnsupportedModel(file, name, UNKNOWN)
        whole = cls(**values)._checked()
        for own in map(whole.of_layer, range(whole.n_block if special else 1)):
            own._checked()
            if own.n_kv and own.n_head % own.n_kv:
                raise UnsupportedModel(file, prefix + "attention.head_count_kv", "must divide attention.head_count")
        if "n_head" in differing and None in (whole.key_length, whole.value_length):
            why = "required, with attention.value_length, where attention.head_count differs by layer"
            raise UnsupportedModel(file, prefix + "attention.key_length", why)
        return whole

    def _checked(self) -> "Hparams":
        prefix = self.architecture + "."
        for row in fields(self):
            value = getattr(self, row.name)
            low, high = (0, MOST_INT) if isinstance(value, int) else (-MOST_FLOAT, MOST_FLOAT)
            if isinstance(value, int | float) and not low <= value <= high:
                raise UnsupportedModel(self.file, prefix + row.metadata["key"], f"{value} is outside {low} to {high}")
        for name, value, low, high in (
            ("block_count", self.n_block, 1, 10_000),
            ("nextn_predict_layers", self.n_layer_nextn, 0, self.n_block - 1),
            ("attention.shared_kv_layers", self.n_layer_kv_shared, 0, self.n_layer - 1),
            ("context_length", self.n_ctx_train, 1, MOST_INT),
            ("embedding_length", self.n_embd, 1, 1 << 20),
            ("attention.head_count", self.n_head, 1, 1 << 16),
            ("attention.head_count_kv", self.n_kv, 0 if "n_head_kv" in self.differing else 1, self.n_head),
            ("attention.key_length", 1 if self.key_length is None else self.key_length, 1, 1 << 16),
            ("attention.value_length", 1 if self.value_length is None else self.value_length, 1, 1 << 16),
            ("attention.layer_norm_rms_epsilon", self.rms_eps or 0.0, 0, 1),
            ("attention.layer_norm_epsilon", self.norm_eps or 0.0, 0, 1),
            ("rope.dimension_count", self.rope_dimension_count or 0, 0, 1 << 16),
            ("rope.freq_base", self.rope_freq_base, 2, MOST_FLOAT),
            ("attention.compress_rope_freq_base", self.compress_freq_base, 2, MOST_FLOAT),
            ("rope.scaling.factor", self.rope_scaling_factor, 0, 1e6),
            ("rope.scaling.yarn_beta_fast", self.yarn_beta_fast, 1e-3, 1e6),
            ("rope.scaling.yarn_beta_slow", self.yarn_beta_slow, 1e-3, 1e6),
            ("logit_scale", self.logit_scale, 1e-6, 1e6),
            ("attention.output_scale", self.attn_output_scale, 1e-6, 1e6),
            ("attn_logit_softcapping", self.attn_softcapping, 1e-6, 1e6),
            ("full_attention_interval", self.full_attention_interval, 1, MOST_INT),
            ("ssm.conv_kernel", self.ssm_d_conv, 0, 64),
            ("kda.head_dim", self.kda_head_dim, 0, 1 << 16),
            ("shortconv.l_cache", self.n_shortconv, 0, 64),
            ("interleave_moe_layer_step", self.moe_layer_step, 1, MOST_INT),
            ("expert_count", self.n_expert, 0, 1 << 16),
            ("expert_used_count", self.n_expert_used, 1 if self.n_expert else 0, self.n_expert),
        ):
            if not low <= value <= high:
                raise UnsupportedModel(self.file, prefix + name, f"{value} is outside {low} to {high}")
        if not self.causal:
            raise UnsupportedModel(self.file, prefix + "attention.causal", "only causal attention is supported")
        return self
