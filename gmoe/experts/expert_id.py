"""An expert's name: apart from `expert.py`, so that the bookkeeping runs without torch."""

from typing import NamedTuple


class ExpertId(NamedTuple):
    """One expert of the model."""

    layer: int
    expert: int
