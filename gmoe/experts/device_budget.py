"""DeviceBudget: how many experts a device holds beside the other weights, the KV cache and a reserve."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gmoe.experts.budget import TooSmall
from gmoe.experts.slots import Group, least, share
from gmoe.gguf.hparams import Hparams
from gmoe.kernels.kv import BLOCK, KvShape
from gmoe.options import enough_memory, memory_bytes, memory_text

KV_SHARE = 0.25  # of what the weights leave, where the context is not given
RESERVE = 384 << 20  # bytes for kernels, libraries and what torch keeps between steps; not measured on a card yet


@dataclass(frozen=True)
class DeviceBudget:
    """Bytes: `weights` that are no experts, `kv` of the cache, `work` of a pass; against what is `asked` for or `free`.

    `free` is what the device has before any of these is there.
    """

    name: str  # of the file
    groups: Sequence[Group]
    free: int
    weights: int
    kv: int
    work: int
    asked: int | None = None  # for weights and experts together; None: what the others leave

    @property
    def room(self) -> int:
        """For experts."""
        left = self.free - self.weights - self.kv - self.work - RESERVE
        return left if self.asked is None else min(self.asked, self.free) - self.weights

    @property
    def whole(self) -> bool:
        """All experts fit."""
        return sum(group.experts * group.slot_bytes for group in self.groups) <= self.room

    def counts(self, part: float = 1.0) -> list[int]:
        """Slots of each group in `part` of the room; `TooSmall` where there is not one for each."""
        room = int(self.room * part)
        if room < least(self.groups):
            experts = math.ceil(least(self.groups) / part) + (part < 1)
            if self.asked is not None and self.asked < min(self.free, self.weights + experts):
                need, asked = enough_memory(self.weights + experts), memory_text(self.asked)
                text = (
                    f"{self.name} needs at least {need} for its weights and an expert of each kind, gpu_memory leaves"
                )
                raise TooSmall(f"{text} {asked}")
            beside = 0 if self.asked is not None else self.kv + self.work + RESERVE
            need, free = enough_memory(self.weights + beside + experts), memory_text(self.free)
            raise TooSmall(
                f"{self.name} needs {need} on the device for its weights, the KV cache and an expert of each kind, "
                f"and {free} are free: lower the context, or leave the device out"
            )
        return share(self.groups, room)


def token_bytes(hparams: Hparams) -> int:
    """Bytes that a token takes in the KV cache, at 16 bits a number."""
    layers = [n for n in range(hparams.n_layer - hparams.n_layer_kv_shared) if not hparams.is_recurrent(n)]
    if hparams.n_output_group:
        return sum(2 * hp.n_head_k * (1 + (not hp.compress_ratio)) + _compressed(hp)[0] for hp in _each(hparams))
    if hparams.kv_lora_rank:
        latent = 2 * sum(2 * hp.kv_lora_rank + (hp.rope_dimension_count or 0) for hp in map(hparams.of_layer, layers))
        if not hparams.index_pool:
            return latent + 2 * hparams.n_index * hparams.n_indexed
        return latent + sum(_pooled(hparams.of_layer(layer))[0] for layer in layers)
    beside = 2 * hparams.n_index * (hparams.n_layer - hparams.n_layer_dense_lead) if hparams.index_block else 0
    each = (2 * hp.n_kv * (hp.n_head_k + hp.n_head_v) + _pooled(hp)[0] for hp in map(hparams.of_layer, layers))
    return sum(each) + beside


def state_bytes(hparams: Hparams) -> int:
    """Bytes of a sequence's states in the recurrent layers."""
    if hparams.n_output_group:
        return sum(_compressed(hp)[1] for hp in _each(hparams))
    if hparams.n_shortconv:
        each = (hparams.n_shortconv - 1) * hparams.n_embd
    elif hparams.kda_head_dim:
        each = (3 * (hparams.ssm_d_conv - 1) + hparams.kda_head_dim) * hparams.n_head * hparams.kda_head_dim
    else:
        channels = hparams.ssm_d_inner + 2 * hparams.ssm_n_group * hparams.ssm_d_state
        each = (hparams.ssm_d_conv - 1) * channels + hparams.ssm_d_state * hparams.ssm_d_inner
    recurrent = [hparams.is_recurrent(layer) for layer in range(hparams.n_layer)]
    others = [hp for hp, its in zip(_each(hparams), recurrent, strict=True) if not its]
    ngrams = (hparams.ngram_conv - 1) * hparams.ngram * (hparams.n_streams * hparams.n_embd + 1)
    behind = len(hparams.ngram_layers) * ngrams
    return 4 * (each * sum(recurrent) + behind) + sum(_pooled(hp)[1] for hp in others)


def _compressed(hparams: Hparams) -> tuple[int, int]:
    """Bytes of a token's part of compressed rows, and of a sequence's tokens whose row is not complete, in a block."""
    ratio, indexed = hparams.compress_ratio, hparams.compress_ratio == 4
    if not ratio:
        return 0, 0
    numbers, turns = hparams.n_head_k + indexed * hparams.n_index, 1 + indexed
    return -(-2 * numbers * max(1, BLOCK // ratio) // BLOCK), 4 * turns * ratio * 2 * turns * numbers


def _pooled(hparams: Hparams) -> tuple[int, int]:
    """Bytes of a token's part of pools' keys, and of a sequence's tokens whose pool is not complete, in a block."""
    size, numbers = hparams.index_pool or hparams.compress_ratio, hparams.n_index
    if not size or not hparams.indexed:
        return 0, 0
    return KvShape(1, 0, numbers, size).nbytes("f16"), 4 * size * numbers * (1 + bool(hparams.index_pool))


def _each(hparams: Hparams) -> list[Hparams]:
    return [hparams.of_layer(layer) for layer in range(hparams.n_layer)]


def asked_bytes(gpu_memory: str, total: int) -> int | None:
    """What the option asks for; None: auto."""
    return None if gpu_memory == "auto" else memory_bytes(gpu_memory, total, "gpu_memory")
