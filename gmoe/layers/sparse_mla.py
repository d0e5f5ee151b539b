"""Latent attention to the tokens that an index chooses: its own, or that of an earlier block (DeepSeek-V3.2, GLM-5)."""

from typing import Protocol

from torch import Tensor

from gmoe.kernels.ops import Rotation
from gmoe.layers.batch import Batch
from gmoe.layers.kv_cache import KeepsBeside
from gmoe.layers.lightning_index import LightningIndex
from gmoe.layers.mla import MLA
from gmoe.layers.rope import Style, rope
from gmoe.layers.sparse_attention import Chosen, attend
from gmoe.layers.weights import Weights


class Index(Protocol):
    """What chooses for a block, and for those that go by it."""

    chosen: Chosen | None  # in this step; None: every token before it is seen


class SparseMLA(MLA):
    """Sees what the index of an earlier block chose; where that is all, it is latent attention as any other."""

    def __init__(self, w: Weights, turn: Rotation | None, index: Index):
        w.need("attn_k_b.weight", "attn_v_b.weight")
        super().__init__(w, turn)
        self.index = index

    def mixed(self, query: Tensor, batch: Batch) -> Tensor:
        """What queries [T, H, n_lora + n_rot] see of the latent rows: -> [T, H, n_lora]."""
        chosen = self.index.chosen
        if chosen is None:
            return super().mixed(query, batch)
        return attend(query, batch.kv.layers[self.layer], chosen, self.scale, self.sinks)


class IndexedMLA(SparseMLA, KeepsBeside):
    """The same, with an index of its own, whose keys the cache has beside the latent rows."""

    def __init__(self, w: Weights, style: Style):
        if w.on is not None:
            w.refuse("general.architecture", "runs on the CPU, not on a device yet; say --device cpu")
        hp = w.hparams
        widths = {"q_lora_rank": hp.q_lora_rank, "key_length_mla": hp.key_length_mla}
        for name, width in (widths | {"value_length_mla": hp.value_length_mla}).items():
            if not width:
                w.refuse(f"{hp.architecture}.attention.{name}", "required by its latent attention")
        self.lightning = LightningIndex(w, rope(w, style))
        super().__init__(w, rope(w, "norm"), self.lightning)
        self.beside_shape = self.lightning.shape

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """x [T, D] -> [T, D], on the CPU in the memory of x; this step's latent rows and keys are in the cache then."""
        low = self.low(x)
        self.lightning.choose(x, low, batch, batch.kv.beside[self.layer])
        return self.attend(x, low, batch)
