"""prune: a stock file with fewer experts, equally many in every layer (as SEER-MoE, 2404.05089, EEP and REAP do)."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gmoe.gguf.file import GGUFFile, TensorInfo, UnsupportedModel
from gmoe.gguf.layout import ExpertLayout
from gmoe.gguf.rewrite import rewrite
from gmoe.kernels.formats import QuantTensor
from gmoe.loadable import hparams_of
from gmoe.models.llama4 import MAVERICK_EXPERTS

Kept = Mapping[int, tuple[int, ...]]  # layer -> the experts that stay, ascending
Scores = Mapping[int, NDArray[np.float64]]  # layer -> [E], higher is better

ROWS = re.compile(
    r"blk\.(\d+)\.(ffn_(gate|up|down|gate_up)_exps\.\w+|ffn_gate_inp\.(weight|bias)|exp_probs_b(\.bias)?)"
)
ALONE = re.compile(r"(blk\.(\d+)\.ffn_(?:gate|up|down|gate_up))\.(\d+)\.(\w+)")
SAID_OF_ALL = ("general.size_label", "general.parameter_count")  # no longer true


class Pruning:
    """What it means for a file that `keep` experts a layer are left; ValueError where a stock file cannot say it.

    `layers` are those with experts, `n_expert` what they have, `groups` (1: none) keep equally many each, and `used`
    are chosen, as before or as many as there can be.
    """

    def __init__(self, file: GGUFFile, keep: int):
        self.file, self.keep = file, keep
        name = str(file.path)
        self.hparams = hp = hparams_of(file)
        layout = ExpertLayout(file, hp.n_block, hp.n_expert)
        self.layers, self.n_expert = tuple(layout.layers), hp.n_expert
        if not self.layers:
            raise UnsupportedModel(name, "expert_count", "the model has no experts that could be left out")
        if not 1 <= keep <= hp.n_expert:
            raise ValueError(f"{name}: {keep} experts cannot be kept; a layer has {hp.n_expert}")
        self.groups = max(1, hp.n_expert_groups)
        if keep % self.groups:
            key = f"{hp.architecture}.expert_group_count"
            told = f"{self.groups} groups cannot keep equally many of {keep} experts; keep a multiple of {self.groups}"
            raise UnsupportedModel(name, key, told)
        each = keep // self.groups
        if self.groups > 1 and each == 1 < hp.n_expert // self.groups:
            key = f"{hp.architecture}.expert_group_count"
            told = f"groups are chosen by their two best experts; keep {2 * self.groups} at least"
            raise UnsupportedModel(name, key, told)
        if self.layers[-1] >= hp.n_layer:
            key = f"{hp.architecture}.nextn_predict_layers"
            raise UnsupportedModel(name, key, "experts that predict the next token's next are never run, nor scored")
        if hp.n_layer_hashed:
            key = f"{hp.architecture}.hash_layer_count"
            raise UnsupportedModel(name, key, "experts that a table names for each token cannot be left out")
        if hp.n_chunk_expert:
            key = f"{hp.architecture}.experts_per_group"
            raise UnsupportedModel(name, key, "experts whose numbers say which chunk they are of cannot be left out")
        if hp.architecture == "llama4" and hp.n_expert == MAVERICK_EXPERTS != keep:
            key = "llama4.expert_count"
            raise UnsupportedModel(name, key, f"{MAVERICK_EXPERTS} also says that queries and keys are not normed")
        self.used = min(hp.n_expert_used, each * (hp.n_group_used if self.groups > 1 else 1))

    def best(self, scores: Scores) -> Kept:
        """The experts with the highest scores, of each group equally many; of equals the first."""
        return {layer: self._best(scores[layer]) for layer in self.layers}

    def _best(self, scores: NDArray[np.float64]) -> tuple[int, ...]:
        order = np.argsort(-scores.reshape(self.groups, -1), -1, kind="stable")[:, : self.keep // self.groups]
        first = np.arange(self.groups)[:, None] * (self.n_expert // self.groups)
        return tuple(sorted((order + first).ravel().tolist()))

    def write(self, dst: Path, kept: Kept, progress: Callable[[TensorInfo], None] = lambda info: None) -> None:
        """Write `dst` with the experts `kept` alone, byte for byte; it stands under its name only when whole."""
        hp = self.hparams
        counts = {"expert_count": (self.n_expert, self.keep), "expert_used_count": (hp.n_expert_used, self.used)}
        changes = {f"{hp.architecture}.{key}": np.uint32(now) for key, (was, now) in counts.items() if was != now}
        dropped = dict.fromkeys(SAID_OF_ALL) if changes else {}

        def edit(info: TensorInfo, tensor: QuantTensor) -> Iterable[tuple[str, QuantTensor]]:
            progress(info)
            alone, rows = ALONE.fullmatch(info.name), ROWS.fullmatch(info.name)
            if alone and int(alone[2]) in kept:
                stays, expert = kept[int(alone[2])], int(alone[3])
                return [(f"{alone[1]}.{stays.index(expert)}.{alone[4]}", tensor)] if expert in stays else []
            if rows and int(rows[1]) in kept:
                return [(info.name, self._rows(info, tensor, kept[int(rows[1])]))]
            return [(info.name, tensor)]

        rewrite(self.file, dst, edit, changes | dropped)

    def _rows(self, info: TensorInfo, tensor: QuantTensor, stays: Sequence[int]) -> QuantTensor:
        """What a tensor with a row or a matrix an expert is without the others."""
        shape = tensor.shape[1:] if tensor.shape[0] == 1 and len(tensor.shape) == 2 else tensor.shape
        if shape[0] != self.n_expert or (len(shape) == 1 and tensor.format.block_size > 1):
            told = f"has the shape {list(tensor.shape)}, not one row for each of {self.n_expert} experts"
            raise UnsupportedModel(str(self.file.path), info.name, told)
        data = np.asarray(tensor.data).reshape(self.n_expert, -1)[list(stays)]
        return QuantTensor(data, tensor.format, (len(stays), *shape[1:]))
