"""twin: a model's experts alone, at a lower precision, bound to the model they were made of (HOBBIT, 2411.01433)."""

from pathlib import Path

from gmoe.experts.twin import FINGERPRINT, MADE_OF
from gmoe.gguf.file import GGUFFile, UnsupportedModel
from gmoe.gguf.fingerprint import fingerprint
from gmoe.gguf.layout import ExpertLayout
from gmoe.gguf.rewrite import rewrite
from gmoe.kernels.quantize import encodable
from gmoe.loadable import hparams_of
from gmoe.passes.mixes import fitting
from gmoe.passes.quantize import Importance, Progress, edit_of


def twin(
    src: Path,
    dst: Path,
    type_name: str,
    *,
    importance: Importance | None = None,
    progress: Progress = lambda info, kind: None,
) -> None:
    """Write the experts of `src` in `type_name` to `dst`. Raises ValueError, one sentence each."""
    kind = type_named(type_name)
    with GGUFFile.open(src) as file:
        hparams = hparams_of(file)
        names = ExpertLayout(file, hparams.n_layer, hparams.n_expert).names
        if not names:
            raise UnsupportedModel(str(src), "expert_count", "the model has no experts, so that it can have no twin")
        matrices = {n for n in names if n.endswith(".weight") and len(file.tensors[n].shape) > 1}
        types = {n: fitting(kind, file.tensors[n].shape[-1]) if n in matrices else "" for n in names}
        types = {n: t or file.tensors[n].format.name for n, t in types.items()}
        edit = edit_of(types, str(src), importance or {}, True, progress)
        dropped = {key: None for key in file.metadata if key.startswith("tokenizer.")}
        made = {FINGERPRINT: fingerprint(file), MADE_OF: src.name, "general.type": "twin"}
        rewrite(file, dst, lambda info, t: edit(info, t) if info.name in names else [], dropped | made)


def type_named(name: str) -> str:
    """The type's own spelling of `name`; raises ValueError naming those that exist."""
    if name.upper() not in encodable():
        raise ValueError(f"a twin cannot be of type {name}; known: {', '.join(encodable())}")
    return name.upper()
