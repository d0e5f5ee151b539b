"""What a block adds to its streams of n-grams: gated by how they meet each stream, and convolved (Qwen3.8-Flash)."""

import torch
from torch import Tensor

from gmoe.kernels.ops import dequantize
from gmoe.kernels.recurrent import ShortConv, StateShape
from gmoe.layers.batch import Batch
from gmoe.layers.hyper_connections import streams
from gmoe.layers.linear import beside
from gmoe.layers.low_rank_streams import StreamNorm, sigmoid
from gmoe.layers.ngrams import Ngrams, tokens_before
from gmoe.layers.weights import Weights

NGRAM_KEYS = frozenset(
    f"ple.{key}"
    for key in (
        *("layers", "ngram_size", "heads_per_ngram", "conv_kernel", "eos_token_id", "image_token_id"),
        *("layer_multipliers", "head_offsets", "head_vocab_sizes"),
    )
) | {"embedding_length_per_layer_input"}
MOST_TAPS = 15  # of the convolution's kernel


class NgramMemory:
    """Of a sequence the state has the inputs of the convolution, which looks back n tokens a step, and those tokens."""

    def __init__(self, weights: Weights, layer: int):
        hp, self.n, self.layer = weights.hparams, streams(weights), layer
        self.place = hp.n_layer  # of its state, behind those of blocks
        if len(hp.ngram_layers) > 1 or layer >= hp.n_layer or not hp.is_recurrent(layer):
            why = f"{list(hp.ngram_layers)}; one block without full attention is supported"
            weights.refuse(f"{hp.architecture}.ple.layers", why)
        self.ngrams, w, wide = Ngrams(weights), weights.block(layer), self.n * hp.n_embd
        taps = (hp.ngram_conv - 1) * hp.ngram
        if hp.ngram_conv < 2 or taps > MOST_TAPS:
            why = f"{hp.ngram_conv}; at least 2, which look back at most {MOST_TAPS} tokens, is supported"
            w.refuse(f"{hp.architecture}.ple.conv_kernel", why)
        self.inputs = beside(w.linear("ple_key", hp.n_embd, wide), w.linear("ple_value", hp.n_embd, hp.n_embd))
        self.key, self.query, self.before = (StreamNorm(w, f"ple_norm_{part}") for part in ("key", "query", "conv"))
        conv = torch.zeros(wide, taps + 1)
        conv[:, :: hp.ngram] = dequantize(w.quant("ple_conv1d", shape=(wide, hp.ngram_conv)))
        self.conv, self.scale = ShortConv(conv), hp.n_embd**-0.5
        self.state_shape = StateShape(taps, wide + 1)

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """Streams, side by side, [T, n * D] -> what they are given [T, n * D]; the state is at the last rows then."""
        assert batch.states is not None
        state = batch.states.layers[self.place]
        kept = state.inputs.view(torch.int32)[:, :, -1].numpy()  # the tokens, as the whole numbers that they are
        before = tokens_before(batch, kept, self.ngrams.n - 1)
        key, value = self.inputs(self.ngrams(batch.numbers[0], before))
        meets = (self.key(key) * self.query(x)).sum(-1) * self.scale  # [T, n]
        gates = sigmoid(meets.sign() * meets.abs().clamp(min=1e-6).sqrt())
        given = value[:, None] * gates[:, :, None]
        line = self.before(given).flatten(1)
        return self.conv(line, state.part(0, line.shape[1]), batch.routes, silu=True).add_(given.flatten(1))


class Beside:
    """What connects the streams, all of them side by side, to a part that gives each something of its own."""

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Streams [T, n, D] -> [T, n * D], and nothing for `write`, [T, 0]."""
        return x.flatten(1), x.new_empty(len(x), 0)

    def write(self, x: Tensor, y: Tensor, mixes: Tensor) -> Tensor:
        """Streams [T, n, D] and what they are given [T, n * D] -> [T, n, D]."""
        return x + y.view(x.shape)
