"""DeepSeek-V4's attention: a latent row a token is key and value of all heads; before a window, compressed rows."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gmoe.kernels.formats import QuantTensor
from gmoe.kernels.kv import KvShape
from gmoe.kernels.ops import HeadMaps, Rotation, attention, lay, store
from gmoe.layers.attention import sliding
from gmoe.layers.batch import Batch
from gmoe.layers.compressor import OVERLAPPING, Compressor, join
from gmoe.layers.kv_cache import KeepsBeside
from gmoe.layers.linear import QuantLinear, beside
from gmoe.layers.norm import RMSNorm
from gmoe.layers.picked_rows import Picked, PickedRows, floats, sequences, slots
from gmoe.layers.recurrent_cache import RecurrentLayer, StateShape
from gmoe.layers.rope import rope
from gmoe.layers.row_index import RowIndex
from gmoe.layers.weights import Weights

COMPRESSED_KEYS = frozenset(
    f"attention.{key}"
    for key in (
        *("compress_ratios", "compress_rope_freq_base", "output_group_count", "output_lora_rank"),
        *("indexer.head_count", "indexer.key_length", "indexer.top_k"),
    )
)


class WindowMLA:
    """Queries of low rank, each normed; a row a token, in a window; sinks; an output of low rank by groups of heads.

    The last numbers of queries and rows turn with their positions, and those of what the heads give turn back.
    """

    def __init__(self, w: Weights):
        hp = w.hparams
        self.turn, self.back = w.shared(("turns", hp.compress_ratio > 0), lambda: _turns(w))
        self.layer, self.mask = w.layer, sliding(hp.n_swa)
        self.n_head, self.width, self.n_rot = hp.n_head, hp.n_head_k, 2 * len(self.turn.frequencies)
        if hp.n_kv != 1 or hp.n_head_v != self.width or self.n_rot > self.width or not hp.n_swa:
            why = "one head of keys is supported, as wide as values and rope.dimension_count at least, and a window"
            w.refuse(f"{hp.architecture}.attention.head_count_kv", why)
        self.scale, self.sinks = self.width**-0.5, w.vector("attn_sinks", hp.n_head)
        low = w.linear("attn_q_a", hp.n_embd, hp.q_lora_rank)
        self.inputs = beside(low, w.linear("attn_kv", hp.n_embd, self.width), *self.more_inputs(w))
        self.low_norm, self.row_norm = w.norm("attn_q_a_norm", n=len(low)), w.norm("attn_kv_a_norm", n=self.width)
        self.q, self.q_norm = w.linear("attn_q_b", len(low), hp.n_head * self.width), RMSNorm(None, w.eps)
        self.groups = HeadMaps(_groups(w, hp.n_head * self.width), w.activations)
        self.output = w.linear("attn_output_b", hp.n_output_group * hp.output_lora_rank, hp.n_embd)
        self.kv_shape = KvShape(1, self.width, self.width)

    def more_inputs(self, w: Weights) -> list[QuantLinear]:
        """Maps of the block's input beside those to queries and rows."""
        return []

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """x [T, D] -> [T, D]; this step's rows are in the cache afterwards."""
        low, row, *more = self.inputs(x)
        low = self.low_norm(low)
        q = self.turned(self.q_norm(self.q(low).view(-1, self.n_head, self.width)), batch.positions)
        row = self.turned(self.row_norm(row)[:, None], batch.positions)
        y = self.turned(self.mixed(q, row, low, more, batch), batch.positions, self.back)
        return self.output(self.groups(y.view(len(x), len(self.groups.maps), -1)).flatten(1))

    def mixed(self, q: Tensor, row: Tensor, low: Tensor, more: list[Tensor], batch: Batch) -> Tensor:
        """What queries [T, H, d] see of the past and of these rows [T, 1, d]: -> [T, H, d]."""
        batch.kv.write(self.layer, batch.slot_mapping, row, row)
        return attention(q, batch.kv.layers[self.layer], batch.turns, self.scale, self.mask, self.sinks)

    def turned(self, x: Tensor, positions: Tensor, turn: Rotation | None = None) -> Tensor:
        """Heads [T, H, n], in their memory, with their last numbers turned."""
        last = x[..., x.shape[2] - self.n_rot :]
        lay((turn or self.turn)(lay(last), positions), last)
        return x


class CompressedMLA(WindowMLA, RecurrentLayer, KeepsBeside):
    """Before its window it sees the compressed rows of all tokens, or, where there is an index, the best of them.

    Of a sequence it keeps the inputs of tokens whose row is not complete; beside its rows, in the cache, compressed
    ones, each with its index key.
    """

    def __init__(self, w: Weights):
        hp = w.hparams
        self.rows = Compressor(w, "attn_compressor", hp.n_head_k)
        self.compressors, self.index = [self.rows], None
        if hp.compress_ratio == OVERLAPPING:
            self.index = RowIndex(w, hp.index_top_k)
            self.compressors.append(Compressor(w, "indexer_compressor", self.index.width))
        super().__init__(w)
        self.attend = w.shared("picked rows", PickedRows)
        self.ratio, self.n_swa = hp.compress_ratio, hp.n_swa
        self.kv_shape = KvShape(1, 0, self.width)
        self.beside_shape = KvShape(1, 0, sum(part.width for part in self.compressors), self.ratio)
        self.state_shape = StateShape(self.rows.turns * self.ratio, sum(2 * part.channels for part in self.compressors))

    def more_inputs(self, w: Weights) -> list[QuantLinear]:
        """Those of compressors and of the index."""
        return [*(m for part in self.compressors for m in part.maps), *([self.index.weights] if self.index else [])]

    def mixed(self, q: Tensor, row: Tensor, low: Tensor, more: list[Tensor], batch: Batch) -> Tensor:
        """What queries [T, H, d] see of the past and of these rows [T, 1, d]: -> [T, H, d]."""
        own, compressed = batch.kv.layers[self.layer], batch.kv.beside[self.layer]
        batch.kv.write(self.layer, batch.slot_mapping, row[..., :0], row)
        self._compress(more, batch)
        positions, of = batch.positions, sequences(batch)
        first = (positions - self.n_swa + 1).clamp(min=0)
        counts = positions - first + 1
        near = torch.minimum(first[:, None] + torch.arange(int(counts.max())), positions[:, None])
        ends = (positions + 1) // self.ratio
        some = ends if self.index is None else ends.clamp(max=self.index.most)
        far = self._far(low, more, ends, int(some.max()), batch)
        picks = [Picked(compressed, self._rows(far, of, batch), some), Picked(own, slots(near, of, batch), counts)]
        return self.attend(q, picks, self.scale, self.sinks)

    def _compress(self, more: list[Tensor], batch: Batch) -> None:
        """Write the rows that this step completes."""
        assert batch.states is not None
        pairs = zip(self.compressors, more[::2], more[1::2], strict=False)
        rows = torch.cat([part.rows(values, gates, batch.positions) for part, values, gates in pairs], 1)
        spans = join(batch, batch.states.layers[self.layer], rows, self.ratio)
        if not len(spans.begins):
            return
        tokens = torch.split(spans.tokens, [2 * part.channels for part in self.compressors], 2)
        parts = zip(self.compressors, tokens, strict=True)
        made = [self.turned(part(its, spans.there)[:, None], spans.begins) for part, its in parts]
        values = torch.cat(made, 2)
        store(batch.kv.beside[self.layer], self.beside_shape.row(spans.slots), values[..., :0], values)

    def _far(self, low: Tensor, more: list[Tensor], ends: Tensor, most: int, batch: Batch) -> Tensor:
        """Which compressed rows, by number, each token attends to: [T, most], of which those before its end count."""
        far = torch.arange(most).expand(len(ends), -1)
        if self.index is None or int(ends.max()) <= self.index.most:
            return far
        far, layer = far.clone(), batch.kv.beside[self.layer]
        q = self.turned(self.index.queries(low).view(-1, self.index.n_head, self.index.width), batch.positions)
        for seq, (at, end) in enumerate(pairwise(batch.begins)):
            if (n := int(ends[end - 1])) > self.index.most:
                rows = self._rows(torch.arange(n)[None], torch.tensor([seq]), batch)[0]
                its = q[at:end], more[-1][at:end], floats(layer, rows, self.width, layer.shape.dv), ends[at:end]
                far[at:end] = self.index.best(*its)
        return far

    def _rows(self, numbers: Tensor, of: Tensor, batch: Batch) -> Tensor:
        """Where the layer has a sequence's compressed rows: numbers [T, n] of sequences [T] -> [T, n]."""
        last = torch.from_numpy(np.array(batch.lengths))[of, None] // self.ratio - 1
        numbers = torch.minimum(numbers, last.clamp(min=0))
        return self.beside_shape.row(slots(numbers * self.ratio + self.ratio - 1, of, batch))


def _turns(w: Weights) -> tuple[Rotation, Rotation]:
    """There and back; only what is compressed knows of a scaling, and no magnitude grows with it."""
    far = w.hparams.compress_ratio > 0
    frequencies = rope(w.compressed() if far else w, "norm", factors="none", scaled=far).frequencies
    return Rotation(frequencies, 1.0, False), Rotation(-frequencies, 1.0, False)


def _groups(w: Weights, n_in: int) -> list[QuantTensor]:
    """The maps of groups of heads to low rank, which may lie one behind the other or in one matrix."""
    hp = w.hparams
    n, rank = hp.n_output_group, hp.output_lora_rank
    if not n or hp.n_head % n:
        w.refuse(f"{hp.architecture}.attention.output_group_count", f"{n} must divide attention.head_count")
    tensor = w.quant("attn_output_a")
    if tensor.shape not in ((n * rank, n_in // n), (n, rank, n_in // n)):
        have, want = list(tensor.shape), [n * rank, n_in // n]
        w.refuse(f"{w.prefix}attn_output_a.weight", f"has the shape {have}, the rest of the file asks for {want}")
    data = tensor.data.reshape(n, rank, -1)
    return [QuantTensor(data[group], tensor.format, (rank, n_in // n)) for group in range(n)]
