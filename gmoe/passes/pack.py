"""pack: a model whose experts lie in one piece, gate, up and down of each together, so that one read brings it."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gmoe.gguf.file import GGUFFile, TensorInfo, UnsupportedModel
from gmoe.gguf.layout import ExpertLayout
from gmoe.gguf.rewrite import rewrite
from gmoe.kernels.formats import QuantTensor
from gmoe.loadable import hparams_of

STACKED = re.compile(r"(blk\.\d+\.)ffn_(gate_up|gate|up|down)_exps\.weight")


def pack(src: Path, dst: Path) -> None:
    """Write `src` to `dst` with a tensor for each matrix of each expert, in the order in which a miss reads them.

    Nothing but names and places changes. Raises UnsupportedModel where there are no stacked experts.
    """
    with GGUFFile.open(src) as file:
        hparams = hparams_of(file)
        layout = ExpertLayout(file, hparams.n_layer, hparams.n_expert)
        stacks: dict[str, list[str]] = {}  # by block: its roles, in the file's order
        for name in file.tensors:
            if name in layout.names and (match := STACKED.fullmatch(name)):
                stacks.setdefault(match[1], []).append(match[2])
        if not stacks:
            raise UnsupportedModel(str(src), "ffn_*_exps", "there are no stacked experts that could be packed")

        def edit(info: TensorInfo, tensor: QuantTensor) -> Iterable[tuple[str, QuantTensor]]:
            match = STACKED.fullmatch(info.name) if info.name in layout.names else None
            if match is None:
                return [(info.name, tensor)]
            roles = stacks[match[1]]
            if match[2] != roles[-1]:
                return []
            return _interleaved(file, match[1], sorted(roles, key=("gate", "gate_up", "up", "down").index))

        rewrite(file, dst, edit)


def _interleaved(file: GGUFFile, block: str, roles: list[str]) -> Iterable[tuple[str, QuantTensor]]:
    """The matrices of a block, expert by expert."""
    views = {role: file.view(f"{block}ffn_{role}_exps.weight") for role in roles}
    for expert in range(next(iter(views.values())).shape[0]):
        for role, stack in views.items():
            matrix = np.asarray(stack.data).reshape(stack.shape[0], -1)[expert]
            yield f"{block}ffn_{role}.{expert}.weight", QuantTensor(matrix, stack.format, stack.shape[1:])
