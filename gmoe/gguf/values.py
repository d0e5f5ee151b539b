"""Values: what a metadata key may hold, as Python's own numbers; a file that holds something else is refused."""

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from gmoe.gguf.file import UnsupportedModel

DIFFERS = "a value that differs by layer is not supported"


def one_a_block(value: Any, n_block: int | None, nextn: Any, file: str, name: str) -> Any:
    """An array with an entry for each block; those of next-token prediction may have none, and get the last one."""
    if not is_array(value) or n_block is None or len(value) == n_block:
        return value
    if type(nextn) is int and 0 < len(value) == n_block - nextn:
        return [*value, *[value[-1]] * nextn]
    raise UnsupportedModel(file, name, f"has {len(value)} entries for {n_block} blocks")


def is_array(value: Any) -> bool:
    """Whether it has entries; text has none."""
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def plain(array: Any) -> list[Any]:
    """The entries as Python's own numbers."""
    return [v.item() if isinstance(v, np.generic) else v for v in array]


def whole_numbers(given: Any, file: str, name: str) -> Sequence[int]:
    """The entries of an array, none below zero."""
    entries = tuple(plain(given)) if is_array(given) else (given,)
    if not all(type(entry) is int and 0 <= entry < 1 << 63 for entry in entries):
        raise UnsupportedModel(file, name, "must be an array of whole numbers that are not below zero")
    return entries


def scalar(value: Any, kind: Any, file: str, name: str) -> Any:
    """One number; an array whose entries are all equal counts as that number."""
    if is_array(value):
        entries = {*plain(value)}
        if len(entries) != 1:
            raise UnsupportedModel(file, name, DIFFERS)
        value = entries.pop()
        value = bool(value) if kind is bool and value in (0, 1) else value  # some converters write numbers
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(kind, type) and issubclass(kind, IntEnum):
        if value not in set(kind):
            raise UnsupportedModel(file, name, f"{value} is not one of {[one.value for one in kind]}")
        return kind(value)
    wanted = next((type for type in (str, bool, float) if kind is type), int)
    if type(value) is not wanted and not (wanted is float and type(value) is int):
        raise UnsupportedModel(file, name, f"has the wrong type ({type(value).__name__}, not {wanted.__name__})")
    if wanted is float and not math.isfinite(value):
        raise UnsupportedModel(file, name, f"{value} is no number to reckon with")
    return float(value) if wanted is float else value
