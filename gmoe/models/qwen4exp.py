"""Qwen3.8-Flash-Next: as Qwen3.5-MoE between streams; full attention to the best blocks; n-grams before one block."""

from functools import cached_property

from gmoe.layers.block_attention import BlockGQA
from gmoe.layers.block_index import BLOCK_KEYS, BLOCK_TENSORS
from gmoe.layers.delta_net import SigmoidDeltaNet
from gmoe.layers.ffn import ExpertDispatch
from gmoe.layers.low_rank_streams import LOW_RANK_KEYS, LowRankConnection, StreamMix
from gmoe.layers.ngram_memory import NGRAM_KEYS, Beside, NgramMemory
from gmoe.layers.norm import Bare, RMSNorm
from gmoe.layers.rope import rope
from gmoe.layers.weights import Weights
from gmoe.models import qwen35moe
from gmoe.models.decoder import Attention, Connection, Part, Streamed


class Model(Streamed, qwen35moe.Model):
    """`qwen4exp`."""

    keys = qwen35moe.Model.keys | LOW_RANK_KEYS | BLOCK_KEYS | NGRAM_KEYS
    recurrent_layer = SigmoidDeltaNet

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        super().__init__(weights, dispatch)
        self.gathered = StreamMix(weights, "output_hc")
        self.memories = [NgramMemory(weights, layer) for layer in weights.hparams.ngram_layers]
        for memory in self.memories:
            self._states[memory.place] = memory.state_shape
            self.connections.insert(2 * memory.layer, Beside())

    @cached_property
    def parts(self) -> list[Part]:
        """Also what a block is given of n-grams, before the rest of it."""
        parts = super().parts
        for memory in self.memories:
            parts.insert(2 * memory.layer, Part(memory.layer, Bare(), memory, True))
        return parts

    def connection(self, w: Weights, part: str) -> Connection:
        """Of low rank."""
        return LowRankConnection(w, part)

    def first_norm(self, w: Weights) -> RMSNorm:
        """Connections have norms of their own."""
        return Bare(w.on)

    second_norm = last_norm = first_norm

    def attention(self, w: Weights, layer: int) -> Attention:
        """The file says which blocks are recurrent, and which of the others choose."""
        if w.hparams.compress_ratio and not w.hparams.is_recurrent(layer):
            return BlockGQA(w, rope(w, "neox"))
        w.skip(*BLOCK_TENSORS)
        return super().attention(w, layer)
