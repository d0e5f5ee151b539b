"""A model's fingerprint: which weights a file holds, without reading all of them."""

import hashlib

import numpy as np

from gmoe.gguf.file import GGUFFile

_SAMPLE = 4096  # bytes at the beginning, the middle and the end of a tensor


def fingerprint(file: GGUFFile) -> str:
    """A digest of every tensor's name, shape and type, and of samples of its bytes."""
    digest = hashlib.sha256()
    for name in sorted(file.tensors):
        info = file.tensors[name]
        digest.update(f"{name} {info.shape} {info.format.name}\n".encode())
        data = np.asarray(file.view(name).data).reshape(-1)
        for at in (0, info.nbytes // 2, max(0, info.nbytes - _SAMPLE)):
            digest.update(data[at : at + _SAMPLE].tobytes())
    return digest.hexdigest()
