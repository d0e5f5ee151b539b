"""Choices: the values of options that this version runs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gmoe.engine import waiting
from gmoe.experts import policy
from gmoe.options import RuntimeOptions

# What this version runs; every other value of an option is refused by name, never ignored.
AVAILABLE: Mapping[str, tuple[Any, ...]] = {
    "route": tuple(policy.names("route")),
    "admission": waiting.names(),
    "evict": ("auto", *(name for name in policy.names("evict") if name != "belady")),
    "prefetch": ("auto", *policy.names("prefetch")),
    "working_set": ("auto", *policy.names("working_set")),
    "miss": ("auto", *policy.names("miss")),
}
DEVICE_ONLY = ("cpu", "balance")  # miss policies that choose between a device and the host


def on_device(options: RuntimeOptions, device: str, given_up: str = "") -> tuple[RuntimeOptions, str]:
    """The options on a device, and what to say of that; where a card was `given_up`, without what only it can do.

    Memory of a card that "auto" has not found is not used; of one that was named it is an error elsewhere.
    """
    if given_up:
        miss = "auto" if options.miss in DEVICE_ONLY else options.miss
        return replace(options, device=device, gpu_memory="auto", miss=miss), given_up
    if device == "cpu" and options.device == "auto" and options.gpu_memory != "auto":
        said = f"gpu_memory={options.gpu_memory!r} is not used: there is no card here"
        return replace(options, device=device, gpu_memory="auto"), said
    return replace(options, device=device), ""


def require_available(options: RuntimeOptions) -> None:
    """Raises ValueError naming the option and the values that it can have."""
    for name, values in AVAILABLE.items():
        value = getattr(options, name)
        if value not in values:
            known = ", ".join(str(v) for v in values if v is not None) or "nothing yet"
            raise ValueError(f"{name}={str(value)!r} is not available in this version; available: {known}")
    on_device, miss = options.device.startswith("cuda"), options.miss
    if miss in DEVICE_ONLY and not on_device:
        raise ValueError(f"miss={miss!r} needs a device beside the CPU: device='cuda'")
    if options.gpu_memory != "auto" and not on_device:
        raise ValueError(f"gpu_memory={options.gpu_memory!r} needs device='cuda'")
