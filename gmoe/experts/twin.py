"""The low-precision twin of a model: opened only beside the model that it was made of."""

from pathlib import Path

from gmoe.gguf.file import GGUFFile, UnsupportedModel
from gmoe.gguf.fingerprint import fingerprint
from gmoe.gguf.layout import ExpertLayout

FINGERPRINT = "gmoe.twin.fingerprint"  # of the model that the twin was made of
MADE_OF = "gmoe.twin.model"  # that model's file name, for people


def open_twin(path: Path, model: GGUFFile, layout: ExpertLayout) -> ExpertLayout:
    """The twin's experts, matrix for matrix those of `layout`. Raises ValueError where they are another model's."""
    file = GGUFFile.open(path)
    if FINGERPRINT not in file.metadata:
        raise UnsupportedModel(str(path), FINGERPRINT, "missing: the file is no twin; `gmoe twin MODEL` makes one")
    if file.metadata[FINGERPRINT] != fingerprint(model):
        made_of = file.metadata.get(MADE_OF, "another model")
        raise UnsupportedModel(str(path), FINGERPRINT, f"the twin was made of {made_of}, not of {model.path}")
    twins = ExpertLayout(file, max(layout.layers, default=-1) + 1, layout.n_expert)
    for layer, experts in layout.layers.items():
        shapes = [[(m.rows, m.cols) if m else None for m in e] for e in (experts, twins.layers.get(layer) or ())]
        if shapes[0] != shapes[1]:
            raise UnsupportedModel(str(path), f"blk.{layer}", "its experts are not shaped as the model's")
    return twins
