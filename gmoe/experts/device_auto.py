"""device="auto": the card of this machine where there is one that can be used, else the CPU."""

import gc
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch

from gmoe.experts.device import sentence
from gmoe.experts.device_turns import turns_of

T = TypeVar("T")


def usable(cuda: Any = torch.cuda, built: str | None = torch.version.cuda) -> bool:
    """Whether torch finds a card; where there is none it costs no time, says nothing and raises nothing.

    `cuda` is what to ask, and `built` the CUDA version that torch was built with.
    """
    if built is None:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a driver that does not fit is no card
            return bool(cuda.is_available())
    except Exception:
        return False


def on_best(load: Callable[[str, str], T]) -> T:
    """`load(device, why)` on "cuda" or, where that raises or there is no card, on "cpu".

    `why` says in a sentence what is wrong with a card that is there; "" where nothing is to be said.
    """
    if not usable():
        return load("cpu", "")
    try:
        return load("cuda", "")
    except Exception as error:  # whatever a driver, a compiler or a small card may say
        why = sentence(error)
    with (
        suppress(Exception),
        turns_of("cuda").at_work(),
    ):  # a card that is out of order may not even take back what it gave
        gc.collect()  # what was on the card is still tied up in circles
        torch.cuda.empty_cache()
    return load("cpu", f"the CPU computes everything, the card is not used: {why}")
