"""DeepSeek-V4: streams; a window behind compressed rows, of which an index picks; first blocks routed by token ids."""

from functools import cached_property

from gmoe.layers.compressed_attention import COMPRESSED_KEYS, CompressedMLA, WindowMLA
from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN, under
from gmoe.layers.hashed import HashedFFN
from gmoe.layers.hyper_connections import HYPER_KEYS, HyperConnection, StreamSum
from gmoe.layers.router import Gating, stated
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Connection, FeedForward, Part, Streamed

RATIOS = (4, 128)
SHARED_BOUND = "swiglu_clamp_shexp"
REQUIRED = HYPER_KEYS | COMPRESSED_KEYS | {"hash_layer_count", "swiglu_clamp_exp"}


class Model(Streamed):
    """`deepseek4`."""

    keys = REQUIRED | {SHARED_BOUND}

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        hp = weights.hparams
        for key in sorted(REQUIRED - {*hp.special}):
            weights.refuse(f"deepseek4.{key}", "required by architecture deepseek4")
        if hp.gating is not Gating.SQRT_SOFTPLUS:
            weights.refuse("deepseek4.expert_gating_func", f"{hp.gating.value}; only 4 is supported")
        if hp.n_layer_nextn:  # to llama.cpp a block without this tensor is one like the others
            weights.block(hp.n_layer).need("nextn.eh_proj.weight")
        super().__init__(weights, dispatch)
        self.gathered = StreamSum(weights)

    def connection(self, w: Weights, part: str) -> Connection:
        """By Sinkhorn's matrices."""
        return HyperConnection(w, part)

    @cached_property
    def parts(self) -> list[Part]:
        """A block that goes by token ids is told whose rows it has."""
        return [part._replace(mixes=True) if isinstance(part.work, HashedFFN) else part for part in super().parts]

    def attention(self, w: Weights, layer: int) -> Attention:
        """By the block's ratio."""
        ratio = w.hparams.compress_ratio
        if ratio and ratio not in RATIOS:
            w.refuse("deepseek4.attention.compress_ratios", f"{ratio}; 0, 4 and 128 are supported")
        return CompressedMLA(w) if ratio else WindowMLA(w)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Shared experts have the bound of the others where the file states none for them."""
        hp, route = w.hparams, stated(w, Gating.SQRT_SOFTPLUS)
        w.skip("exp_probs_b_vl.bias")  # for tokens of images
        bound = hp.clamp_dense if SHARED_BOUND in hp.special else hp.clamp_experts
        given = {"shared": DenseFFN(w, "_shexp", under(bound)), "activation": under(hp.clamp_experts)}
        if layer < hp.n_layer_hashed:
            return HashedFFN(w, route, self.dispatch, self.n_vocab, **given)
        w.need("exp_probs_b.bias")
        return MoEFFN(w, route, self.dispatch, **given)
