"""gpt-oss: attention sinks, every other block in a window; biased experts, clamped SwiGLU, softmax after top-k."""

from gmoe.layers.attention import GQA, causal, sliding
from gmoe.layers.ffn import MoEFFN
from gmoe.layers.rope import rope
from gmoe.layers.router import Gating, topk
from gmoe.layers.weights import Weights
from gmoe.models.decoder import Attention, Decoder, FeedForward


class Model(Decoder):
    """`gpt-oss`."""

    def attention(self, w: Weights, layer: int) -> Attention:
        """The even blocks see a window only; sinks and biases are required."""
        maps = ("attn_qkv",) if w.has("attn_qkv") else ("attn_q", "attn_k", "attn_v")
        w.need("attn_sinks.weight", *(f"{name}.bias" for name in (*maps, "attn_output")))
        mask = sliding(w.hparams.n_swa) if layer % 2 == 0 and w.hparams.n_swa else causal
        return GQA(w, rope(w, "neox"), mask=mask, sinks=w.get("attn_sinks", n=w.hparams.n_head))

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """Router and experts have biases; the chosen logits alone make the weights."""
        maps = ("gate_up",) if w.has("ffn_gate_up_exps") else ("gate", "up")
        w.need("ffn_gate_inp.bias", *(f"ffn_{name}_exps.bias" for name in (*maps, "down")))
        route = topk(w, Gating.SOFTMAX_WEIGHT, renormalize=False)
        return MoEFFN(w, route, self.dispatch, activation="swiglu_oai")
