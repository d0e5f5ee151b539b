"""Decoder: the one skeleton of all architectures; embed, blocks, norm, logits."""

from collections.abc import Callable
from functools import cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from gmoe.layers.batch import Batch
from gmoe.layers.ffn import ExpertDispatch, Hidden
from gmoe.layers.kv_cache import KeepsBeside, KvShape, KvType, PagedKVCache, bytes_per_slot
from gmoe.layers.norm import Bare, RMSNorm, Whole
from gmoe.layers.recurrent_cache import RecurrentCache, RecurrentLayer
from gmoe.layers.weights import Weights


class Attention(Protocol):
    """What a block needs of its attention, or of the `RecurrentLayer` in its place."""

    kv_shape: KvShape  # what it keeps of a token

    def __call__(self, x: Tensor, batch: Batch) -> Tensor: ...  # [T, D], perhaps in the memory of x


FeedForward = Callable[[Tensor], Tensor]


class Absent:
    """In the place of the part that a block does not have."""

    kv_shape = KvShape(0, 0, 0)

    def __call__(self, x: Tensor, batch: Batch | None = None) -> Tensor:
        raise NotImplementedError


class Connection(Protocol):
    """Between several residual streams and one part of a block."""

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Streams [T, n, D] -> what the part's norm reads [T, D], and rows [T, m], which `write` needs."""
        ...

    def write(self, x: Tensor, y: Tensor, mixes: Tensor) -> Tensor:
        """Streams [T, n, D], what the part gave for them [T, D], and those rows -> the streams behind it."""
        ...


class Part(NamedTuple):
    """What adds to a block's rows: the norm before it and itself; `mixes`: the rows of a sequence meet in it."""

    layer: int
    norm: RMSNorm
    work: Callable[..., Tensor]
    mixes: bool

    def __call__(self, normed: Tensor, batch: Batch) -> Tensor:
        """Normed rows [T, D] -> what it adds [T, D], perhaps in their memory."""
        return self.work(normed, batch) if self.mixes else self.work(normed)


class Decoder:
    """A model: an architecture gives `attention` and `feed_forward` of each block, and overrides what else differs."""

    keys: frozenset[str] = frozenset()  # it reads these, which others do not know, or whose values differ by layer

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        self.hparams = hp = weights.hparams
        hp.known_to(self.keys)
        self.dispatch = dispatch
        self.device, self.on = weights.device, weights.on
        self.token_embd = weights.embedding("token_embd", self.embedding_scale(weights))
        self.n_vocab = len(self.token_embd)
        scopes = [weights.block(layer) for layer in range(hp.n_layer)]
        self.attn_norm = [self.first_norm(w) for w in scopes]
        self.attn: list[Attention] = [self.attention(w, w.layer) for w in scopes]
        self._states = {n: its.state_shape for n, its in enumerate(self.attn) if isinstance(its, RecurrentLayer)}
        self._beside = {n: its.beside_shape for n, its in enumerate(self.attn) if isinstance(its, KeepsBeside)}
        self.ffn_norm = [self.second_norm(w) for w in scopes]
        self.ffn: list[FeedForward] = [self.feed_forward(w, w.layer) for w in scopes]
        self.output_norm = self.last_norm(weights)
        self.output = weights.linear("output" if weights.has("output") else "token_embd", hp.n_embd, self.n_vocab)

    @cached_property
    def parts(self) -> list[Part]:
        """All that its blocks have, in order."""
        mixing = [Part(n, *part, True) for n, part in enumerate(zip(self.attn_norm, self.attn, strict=True))]
        others = [Part(n, *part, False) for n, part in enumerate(zip(self.ffn_norm, self.ffn, strict=True))]
        both = chain.from_iterable(zip(mixing, others, strict=True))
        return [part for part in both if not isinstance(part.work, Absent)]

    @cached_property
    def norms(self) -> list[RMSNorm]:
        """What is behind each part: the next one's norm, and at last `output_norm`."""
        return [*(part.norm for part in self.parts[1:]), self.output_norm]

    def embedding_scale(self, w: Weights) -> float:
        """What token rows are multiplied with."""
        return 1.0

    def attention(self, w: Weights, layer: int) -> Attention:
        """The attention of a block."""
        raise NotImplementedError

    def feed_forward(self, w: Weights, layer: int) -> FeedForward:
        """The feed-forward part of a block."""
        raise NotImplementedError

    def first_norm(self, w: Weights) -> RMSNorm:
        """What the attention of a block reads through."""
        return w.norm("attn_norm")

    def second_norm(self, w: Weights) -> RMSNorm:
        """What the feed-forward part of a block reads through."""
        return w.norm("ffn_norm", "post_attention_norm")

    def last_norm(self, w: Weights) -> RMSNorm:
        """What the map to the vocabulary reads through."""
        return w.norm("output_norm", "token_embd_norm")

    def embed(self, batch: Batch) -> Tensor:
        """Token rows [T, D]."""
        return self.token_embd(batch.token_ids)

    def logits(self, x: Tensor) -> Tensor:
        """Normed rows [R, D] -> [R, n_vocab]."""
        return self.output(x)

    def __call__(self, batch: Batch) -> Tensor:
        """Logits [R, n_vocab] float32 of `batch.output_rows`; the cache has this step's rows afterwards."""
        with torch.inference_mode():
            return self.logits(self.hidden(batch))

    def hidden(self, batch: Batch) -> Tensor:
        """Normed rows [R, D] of `batch.output_rows`, from which the logits follow."""
        with torch.inference_mode():
            batch = batch.on(self.device)
            return self.through(self.embed(batch), batch)

    def through(self, x: Tensor, batch: Batch) -> Tensor:
        """All blocks, pre-norm and residual, and the last norm: embedded rows [T, D] -> normed rows [R, D]."""
        scale, parts, last = self.hparams.residual_scale, self.parts, self.last_whole
        normed = parts[0].norm(x)
        for n, (part, norm) in enumerate(zip(parts, self.norms, strict=True)):
            y = part(normed, batch)
            if n == last:
                x, y = batch.wanted(x), batch.wanted(y)
            x, normed = norm.after(x, y, scale)
        return normed

    @property
    def last_whole(self) -> int:
        """The part behind which only rows count whose logits are wanted."""
        last = len(self.parts) - 1
        if self.dispatch.listened:  # to whoever hears of routings, every row counts
            return last
        return max((n for n, part in enumerate(self.parts) if part.mixes), default=last)

    def routed(self, layer: int, hidden: Hidden) -> np.ndarray | None:
        """The probabilities [T, E] that a layer's router gives to the rows `hidden`; None where it routes nothing."""
        routing = getattr(self.ffn[layer], "routing", None)
        if routing is None:
            return None
        ids, weights = routing(hidden.rows)[:2]
        probabilities = torch.zeros(len(ids), self.hparams.n_expert)
        return probabilities.scatter_(1, ids.cpu().long(), weights.cpu()).numpy()

    def new_cache(self, n_blocks: int, block_size: int, kv_type: KvType) -> PagedKVCache:
        """An empty cache for this model."""
        shapes = [attn.kv_shape for attn in self.attn]
        return PagedKVCache(shapes, n_blocks, block_size, kv_type, self.device, self.on, self._beside)

    @property
    def recurrent(self) -> bool:
        """Whether it needs states beside the cache."""
        return bool(self._states)

    def new_states(self, n_slots: int) -> RecurrentCache:
        """Empty states for this model."""
        return RecurrentCache(self._states, n_slots, self.device)

    def state_bytes(self) -> int:
        """What one slot of the states takes."""
        return sum(shape.nbytes for shape in self._states.values())

    def kv_bytes_per_block(self, block_size: int, kv_type: KvType) -> int:
        """What one block of the cache takes."""
        shapes = [*(attn.kv_shape for attn in self.attn), *self._beside.values()]
        return block_size * bytes_per_slot(shapes, kv_type)


class Woven(Decoder):
    """A model whose blocks are no attention and then a feed-forward part: an architecture gives each as a whole.

    Its `attn_norm`, `attn`, `ffn_norm` and `ffn` are there for `block` to use.
    """

    def block(self, layer: int, x: Tensor, batch: Batch) -> Tensor:
        """Rows [T, D], on the CPU perhaps in the memory of x -> what they are behind the block [T, D]."""
        raise NotImplementedError

    @cached_property
    def parts(self) -> list[Part]:
        """A block each."""
        return [Part(n, Bare(self.on), partial(self.block, n), True) for n in range(self.hparams.n_layer)]

    @cached_property
    def norms(self) -> list[RMSNorm]:
        """Blocks have norms of their own, and add to what they began with themselves."""
        return [*(part.norm for part in self.parts[1:]), Whole(self.output_norm)]


class Streamed(Decoder):
    """A model of several residual streams: an architecture gives each part's `Connection`, and how the streams end."""

    gathered: Callable[[Tensor], Tensor]  # streams [R, n, D] -> what the last norm reads [R, D]

    def __init__(self, weights: Weights, dispatch: ExpertDispatch):
        if weights.on is not None:
            weights.refuse("general.architecture", "runs on the CPU, not on a device yet; say --device cpu")
        super().__init__(weights, dispatch)
        scopes = [weights.block(layer) for layer in range(weights.hparams.n_layer)]
        self.connections = [self.connection(w, part) for w in scopes for part in ("attn", "ffn")]

    def connection(self, w: Weights, part: str) -> Connection:
        """That of a block's `attn` or `ffn`."""
        raise NotImplementedError

    def spread(self, x: Tensor) -> Tensor:
        """Embedded rows [T, D] -> streams [T, n, D]."""
        return x[:, None].expand(-1, self.hparams.n_streams, -1)

    def through(self, x: Tensor, batch: Batch) -> Tensor:
        """All blocks, which read streams and write to them, and the last norm: [T, D] -> normed rows [R, D]."""
        x, last = self.spread(x), self.last_whole
        for n, (part, connection) in enumerate(zip(self.parts, self.connections, strict=True)):
            given, mixes = connection.read(x)
            y = part(part.norm(given), batch)
            if n == last:
                x, y, mixes = batch.wanted(x), batch.wanted(y), batch.wanted(mixes)
            x = connection.write(x, y, mixes)
        return self.output_norm(self.gathered(x))


def module_name(architecture: str) -> str:
    """The file of an architecture: its own name, with what Python forbids made an underscore."""
    return architecture.replace("-", "_").replace(".", "_")


def architectures() -> list[str]:
    """The architectures that this folder has files for, as files name them: most with a hyphen before the last part."""
    stems = {p.stem for p in Path(__file__).parent.glob("*.py")} - {"__init__", "decoder"}
    underlined = stems & {"hy_v3", "hy_v4", "nemotron_h_moe"}
    return sorted(underlined | {"-".join(stem.rsplit("_", 1)) for stem in stems - underlined})


def refusal(architecture: str) -> str | None:
    """Why an architecture cannot be loaded: there is no file for it."""
    name = module_name(architecture)
    if name in ("__init__", "decoder") or not name.isidentifier() or find_spec(f"gmoe.models.{name}") is None:
        return f"{architecture!r}; supported: {', '.join(architectures())}"
    return None


def load(weights: Weights, dispatch: ExpertDispatch) -> Decoder:
    """The model of `general.architecture`, for which there is a file."""
    model: Decoder = import_module(f"gmoe.models.{module_name(weights.hparams.architecture)}").Model(weights, dispatch)
    return model
