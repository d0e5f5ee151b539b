"""The low-precision twin of a model: opened only beside the model that it was made of."""

from pathlib import Path

from gmoe.experts.evict import lru
from gmoe.experts.slots import extents, groups, least, share
from gmoe.experts.store import ExpertStore
from gmoe.experts.transfer import open_transfer
from gmoe.gguf.file import GGUFFile, UnsupportedModel
from gmoe.gguf.fingerprint import fingerprint
from gmoe.gguf.layout import ExpertLayout
from gmoe.options import enough_memory, memory_text

FINGERPRINT = "gmoe.twin.fingerprint"  # of the model that the twin was made of
MADE_OF = "gmoe.twin.model"  # that model's file name, for people


def twin_store(path: Path, model: GGUFFile, layout: ExpertLayout, room: int, reader: str = "auto") -> ExpertStore:
    """The twin's experts in `room` bytes of slots of their own; the least recently used leaves. Raises ValueError."""
    file, twins = open_twin(path, model, layout)
    where = extents(twins)
    alike = groups(twins, where)
    require_room(path, least(alike), room, "of memory")
    store = ExpertStore(twins)
    store.offload(alike, share(alike, room), where, lru.Policy, open_transfer(file.parts, where.values(), reader))
    return store


def require_room(path: Path, need: int, room: int, where: str) -> None:
    """Raises ValueError where the twin's share of the memory, `room` bytes, holds not an expert of each kind."""
    if room < need:
        least, here = enough_memory(need), memory_text(room)
        text = f"{path}: the twin needs at least {least} {where}, its share is {here}"
        raise ValueError(f"{text}: a larger twin_share would do, or more memory")


def open_twin(path: Path, model: GGUFFile, layout: ExpertLayout) -> tuple[GGUFFile, ExpertLayout]:
    """The twin's experts, matrix for matrix those of `layout`. Raises ValueError where they are another model's."""
    file = GGUFFile.open(path)
    if FINGERPRINT not in file.metadata:
        raise UnsupportedModel(str(path), FINGERPRINT, "missing: the file is no twin; `gmoe twin MODEL` makes one")
    given, made_of = file.metadata[FINGERPRINT], file.metadata.get(MADE_OF, "another model")
    if not isinstance(given, str) or given != fingerprint(model):
        raise UnsupportedModel(str(path), FINGERPRINT, f"the twin was made of {made_of}, not of {model.path}")
    twins = ExpertLayout(file, max(layout.layers, default=-1) + 1, layout.n_expert)
    for layer, experts in layout.layers.items():
        shapes = [[(m.rows, m.cols) if m else None for m in e] for e in (experts, twins.layers.get(layer) or ())]
        if shapes[0] != shapes[1]:
            raise UnsupportedModel(str(path), f"blk.{layer}", "its experts are not shaped as the model's")
    return file, twins
