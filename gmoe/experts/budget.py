"""Budget: whether a model's experts fit into memory, and if not, how many slots there are for them."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from gmoe.experts.expert_id import ExpertId
from gmoe.experts.memory import Limit, available
from gmoe.experts.slots import Extent, Group, extents, groups, least, share
from gmoe.gguf.file import GGUFFile, TensorInfo
from gmoe.gguf.hparams import Hparams
from gmoe.gguf.layout import ExpertLayout
from gmoe.options import enough_memory, memory_bytes, memory_text

RESERVE = 40 << 20  # for what a run allocates besides: kernels, heap, code that is not there yet; measured, not known
EXPERT_RESERVE = 4096  # and for the tables, by expert
DECODE_ROWS = 8  # tokens whose activations are within the reserve; more take the place of experts while they run
LENT_PART = 2  # 1 / LENT_PART of the slots may give way to the activations of a chunk of a prompt
CHUNKS = (2048, 1024, 512, 256, 128, 64, 32, 16)
USUAL = 512  # tokens of a chunk where every expert stays in memory
LONG_PART = 8  # 1 / LONG_PART of the memory for all weights is the most that more tokens may take beside it
KV_PART = 12  # the KV cache of an offloaded model gets 1 / KV_PART of the memory where the context is not given


class TooSmall(ValueError):
    """The budget holds not even what must be there; the text says the least that would do."""


@dataclass
class Budget:
    """`fixed` bytes of other weights and the experts of `layout`, against what was `asked` for or what is `free`."""

    name: str  # of the file
    layout: ExpertLayout
    fixed: int
    asked: int | None  # bytes for all weights; None: what is free
    free: Limit = field(default_factory=available)
    activations: Callable[[int], int] = lambda chunk: 0  # bytes to run so many tokens together

    def __post_init__(self) -> None:
        self.experts = sum(self.layout.expert_bytes(layer) * self.layout.n_expert for layer in self.layout.layers)

    @cached_property
    def extents(self) -> dict[ExpertId, Extent]:
        """How every expert is read into a slot."""
        return extents(self.layout)

    @cached_property
    def groups(self) -> list[Group]:
        """Layers whose experts have the same slots."""
        return groups(self.layout, self.extents)

    @property
    def whole(self) -> bool:
        """Everything fits and is used straight from the map."""
        reserve = 0 if self.asked is not None else self.reserve + self.lent(USUAL) + self.kv_share
        return not self.layout.layers or self.fixed + self.experts + reserve <= self._total

    @property
    def kv_share(self) -> int:
        """Bytes that the KV cache may take where the context is not given."""
        return self.free.free // KV_PART

    def chunk(self, kv_bytes: int, longest: int = USUAL) -> int:
        """The most prompt tokens to run together; above USUAL only where each chunk reads experts anew."""
        room = (self.free.free - self.fixed - self.reserve - kv_bytes) // LENT_PART
        spare = room // 2 if self.asked is None else min(self.asked // LONG_PART, (self.free.free - self.asked) // 2)
        longest = USUAL if self.whole else longest
        for chunk in CHUNKS:
            if chunk <= longest and (self.lent(chunk) <= room if chunk <= USUAL else self.activations(chunk) <= spare):
                return chunk
        return CHUNKS[-1]

    @property
    def reserve(self) -> int:
        """Bytes that nothing lasting may take."""
        experts = len(self.layout.layers) * self.layout.n_expert
        return RESERVE + EXPERT_RESERVE * experts + self.activations(DECODE_ROWS)

    def lent(self, rows: int) -> int:
        """Bytes of slots that give way to the activations of a pass over so many tokens."""
        return 0 if self.asked is not None else max(0, self.activations(rows) - self.activations(DECODE_ROWS))

    def room(self, kv_bytes: int) -> int:
        """Bytes that are left for experts."""
        return self._total - self.fixed - self._reserve(kv_bytes)

    @property
    def smallest(self) -> int:
        """Bytes of a slot for each group, and of what gives way to the shortest chunk's activations."""
        return least(self.groups) + self.lent(CHUNKS[-1])

    def counts(self, kv_bytes: int | None, part: float = 1.0, beside: int = 0) -> list[int]:
        """Slots of each group in `part` of the room; `TooSmall` where there is not one for each.

        None: the KV cache gets its share. The other part must hold `beside` bytes.
        """
        shared = kv_bytes is None and self.asked is None
        kv_bytes = self.kv_share if kv_bytes is None else kv_bytes
        room = int(self.room(kv_bytes) * part)
        slots = self.smallest
        if room < slots or int(self.room(kv_bytes) * (1 - part)) < beside:
            wanted = math.ceil(slots / part) + (part < 1)
            wanted = max(wanted, math.ceil(beside / (1 - part)) + 1) if beside else wanted
            need = self.fixed + self._reserve(0 if shared else kv_bytes) + wanted
            need = -(-need * KV_PART // (KV_PART - 1)) if shared else need
            source = "host_memory" if self.asked is not None else self.free.source
            text = f"{self.name} needs at least {enough_memory(need)} of memory to run out of slots, {source} leaves "
            text += memory_text(self._total)
            if self.asked is None and self.free.most:
                text += f"; a limit of {enough_memory(self.free.most + need - self.free.free)} would do"
            raise TooSmall(text)
        return share(self.groups, room)

    def _reserve(self, kv_bytes: int) -> int:
        return 0 if self.asked is not None else self.reserve + kv_bytes

    @property
    def _total(self) -> int:
        return self.free.free if self.asked is None else self.asked


def fixed_tensors(file: GGUFFile, layout: ExpertLayout) -> list[str]:
    """The tensors that must stay in memory as they are: not the experts, nor the `tables`.

    Nor those that the layers copy as float32 when they are built.
    """
    others = layout.names | tables(file)
    return [name for name in file.tensors if name not in others and not _copied(file.tensors[name])]


def tables(file: GGUFFile) -> set[str]:
    """The tensors of which a token reads a row, or a few."""
    return {"per_layer_token_embd.weight"} | ({"token_embd.weight"} if "output.weight" in file.tensors else set())


def _copied(info: TensorInfo) -> bool:
    """Whether a layer keeps a float32 copy: norms, biases, routers."""
    return len(info.shape) == 1 or info.name.endswith("ffn_gate_inp.weight")


def budget_of(file: GGUFFile, layout: ExpertLayout, hparams: Hparams, host_memory: str) -> Budget:
    """The budget of a file under `host_memory` as the options spell it."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fixed = sum(file.tensors[name].nbytes for name in fixed_tensors(file, layout))
    copies = (info for name, info in file.tensors.items() if name not in layout.names and _copied(info))
    biases = (stack.bias for stacks in layout.layers.values() for stack in stacks if stack is not None)
    fixed += 4 * sum(math.prod(info.shape) for info in [*copies, *(bias for bias in biases if bias is not None)])
    asked = None if host_memory == "auto" else memory_bytes(host_memory, total)
    kept = -(-hparams.n_layer // hparams.n_layer_kept) if hparams.n_layer_kept else 0  # sums of blocks
    n_ff = max((experts.up.rows for experts in layout.layers.values()), default=0)

    def activations(chunk: int) -> int:
        """About what a pass over so many tokens allocates, in bytes."""
        experts = hparams.n_expert_used * (hparams.n_embd + 2 * n_ff)  # rows of outputs, gates, ups
        return 4 * chunk * (experts + (12 + 2 * kept) * hparams.n_embd)

    return Budget(str(file.path), layout, fixed, asked, activations=activations)
