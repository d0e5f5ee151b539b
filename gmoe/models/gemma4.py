"""Gemma 4: windows with heads of their own, full blocks with stretched rope; an MLP beside experts; norms all over."""

from torch import Tensor

from gmoe.layers.attention import causal, sliding
from gmoe.layers.ffn import ExpertDispatch
from gmoe.layers.norm import NoNorm, RMSNorm, ScaledNorm
from gmoe.layers.normed_attention import BorrowedKV, NormedGQA
from gmoe.layers.parallel import NormedDense, ParallelFFN, block_scale, last_norm
from gmoe.layers.rope import rope
from gmoe.layers.rows import Cap
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward

PATTERN, SHARED = "attention.sliding_window_pattern", "attention.shared_kv_layers"
SWA = "attention.key_length_swa", "attention.value_length_swa", "rope.freq_base_swa", "rope.dimension_count_swa"
VARIED = "attention.head_count_kv", "feed_forward_length"


class Model(Decoder):
    """`gemma4`, but for the dense ones with embeddings for each layer."""

    keys = frozenset({PATTERN, SHARED, *SWA, *VARIED, "embedding_length_per_layer_input", "final_logit_softcapping"})

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        if not {PATTERN, SWA[2]} <= {*(hp := weights.hparams).special} or (hp.swa and not hp.n_swa):
            weights.refuse(f"gemma4.{PATTERN}", f"required by architecture gemma4, with its window and {SWA[2]}")
        super().__init__(weights, dispatch)
        self.cap = Cap(hp.logit_softcapping, self.device, self.on)
        scales = (block_scale(weights.block(layer)) for layer in range(hp.n_layer))
        behind = zip([*self.attn_norm[1:], self.output_norm], scales, strict=True)
        *self.attn_norm[1:], self.output_norm = (ScaledNorm(norm, scale) for norm, scale in behind)

    def attention(self, w: Weights, layer: int) -> Attention:
        """The last blocks read the keys and values of the last window, or full block, that has its own."""
        hp, own = w.hparams, w.hparams.n_layer - w.hparams.n_layer_kv_shared
        turn, mask = rope(w, "neox", factors="none" if hp.swa else "one"), sliding(hp.n_swa) if hp.swa else causal
        if layer < own:
            return NormedGQA(w, turn, mask=mask, scale=1.0)
        of = own - (2 if hp.swa else 1)
        its = self.hparams.of_layer(of)
        if of < 0 or (its.swa, its.n_kv) != (hp.swa, hp.n_kv):
            w.refuse(f"gemma4.{SHARED}", f"block {layer} cannot read the keys and values of block {of}")
        return BorrowedKV(w, turn, of, mask=mask, scale=1.0)

    def second_norm(self, w: Weights) -> RMSNorm:
        """MLP, experts and router have their own."""
        return NoNorm(w.on)

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Experts where the block has a router."""
        return ParallelFFN(w, self.dispatch) if w.has("ffn_gate_inp") else NormedDense(w, last_norm(w))

    def embedding_scale(self, w: Weights) -> float:
        """The root of their width."""
        return float(w.hparams.n_embd**0.5)

    def logits(self, x: Tensor) -> Tensor:
        """Capped softly."""
        return self.cap(super().logits(x))
