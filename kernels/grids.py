"""The grid types' tables, read from the gguf package when first asked for; none is copied in here."""

from functools import cache

import numpy as np
from gguf import quants


@cache
def grid(name: str) -> np.ndarray:
    """The points of a grid type, float32 [points, 4 or 8]."""
    kind = getattr(quants, "IQ1_S" if name == "IQ1_M" else name)
    kind.init_grid()
    return np.ascontiguousarray(kind.grid.reshape(kind.grid_shape).astype(np.float32))


@cache
def sign_bytes() -> np.ndarray:
    """Seven stored sign bits -> eight with even parity, uint8 [128]."""
    return np.frombuffer(quants.IQ2_XXS.ksigns, dtype=np.uint8).copy()
