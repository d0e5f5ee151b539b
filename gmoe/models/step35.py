"""Step-3.5-Flash: windows with heads and rope of their own, a gate for each head, bounded SwiGLU, sigmoid router."""

from gmoe.layers.attention import GQA, GatedGQA, causal, sliding
from gmoe.layers.ffn import DenseFFN, ExpertDispatch, MoEFFN, within
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, stated
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward

PATTERN, BASE = "attention.sliding_window_pattern", "rope.freq_base_swa"
BOUNDS = "swiglu_clamp_exp", "swiglu_clamp_shexp"
HEADS = "attention.head_count", "attention.head_count_kv"


def turned(w: Weights) -> int:
    """Numbers of a head that turn: in a full block half of what the file states."""
    n_rot = w.hparams.rope_dimension_count or w.hparams.n_head_k
    return n_rot if w.hparams.swa else n_rot // 2


class Model(Decoder):
    """`step35`."""

    keys = frozenset({PATTERN, BASE, *HEADS, *BOUNDS, "rope.dimension_count_swa", "moe_every_n_layers"})

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        if not {PATTERN, BASE} <= {*weights.hparams.special} or not weights.hparams.n_swa:
            why = f"required by architecture step35, with attention.sliding_window, {BASE}"
            weights.refuse(f"step35.{PATTERN}", why)
        self.n_factors = max(turned(weights.block(layer)) for layer in range(weights.hparams.n_layer)) // 2
        super().__init__(weights, dispatch)

    def attention(self, w: Weights, layer: int) -> Attention:
        """Factors are those of full blocks; a block has gates where the file has them."""
        near = w.hparams.swa
        turn = rope(w, "neox", turned(w), factors="none" if near else "some", n_factors=self.n_factors)
        mask = sliding(w.hparams.n_swa) if near else causal
        return GatedGQA(w, turn, mask=mask, by_head=True) if w.has("attn_gate") else GQA(w, turn, mask=mask)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Experts where the block has a router; the bound of shared experts is that of dense blocks too."""
        hp = w.hparams
        bounded = within(hp.clamp_dense)
        if not w.has("ffn_gate_inp"):
            return DenseFFN(w, activation=bounded)
        route, shared = stated(w, Gating.SIGMOID), DenseFFN(w, "_shexp", bounded)
        return MoEFFN(w, route, self.dispatch, shared=shared, activation=within(hp.clamp_experts))
