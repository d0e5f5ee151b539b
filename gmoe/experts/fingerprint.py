"""Whose trace it is: a fingerprint that all quantizations of one model share, and no other model."""

import hashlib

import numpy as np

from gmoe.experts.trace import Header
from gmoe.gguf.file import GGUFFile
from gmoe.gguf.layout import ExpertLayout

ROUTER = "ffn_gate_inp.weight"
SAMPLE = 4096  # bytes of each router: enough to tell fine-tunings apart


def fingerprint(file: GGUFFile) -> str:
    """Of the architecture, and shape and first bytes of every router; of all shapes where there is no router."""
    digest = hashlib.sha256(str(file.metadata.get("general.architecture")).encode())
    routers = [name for name in file.tensors if name.endswith(ROUTER)]
    for name in sorted(routers or file.tensors):
        info = file.tensors[name]
        digest.update(f"\n{name} {info.shape} {info.format.name if routers else ''}".encode())
        if routers:
            digest.update(np.asarray(file.view(name).data).reshape(-1)[:SAMPLE].tobytes())
    return digest.hexdigest()[:32]


def header(file: GGUFFile, layout: ExpertLayout, n_layer: int) -> Header:
    """What a trace of this model begins with."""
    sizes = tuple(layout.expert_bytes(layer) if layer in layout.layers else 0 for layer in range(n_layer))
    return Header(file.path.name, fingerprint(file), n_layer, layout.n_expert, sizes)
