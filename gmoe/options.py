"""RuntimeOptions: the whole configuration of a running model, plain frozen data."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

UNITS = {"": 1, "B": 1, "bytes": 1} | {
    letter + end: base**power
    for power, letter in enumerate("KMGT", start=1)
    for end, base in (("", 1024), ("iB", 1024), ("B", 1000))
}
POLICIES = ("route", "evict", "prefetch", "working_set", "miss")
READERS = ("auto", "direct", "mapped")
KV_TYPES = ("f16", "bf16", "f32", "q8_0")
QUALITIES = ("exact", "high", "balanced", "fast")
ACTIVATIONS = ("q8", "float")
SPECULATE = ("auto", "off")
POLICY_NAME = re.compile(r"[a-z][a-z0-9_]*")
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
MOST_THREADS = 512  # many more and the system has none left for the rest of the process
MOST_MEMORY = 1 << 62  # bytes
MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*|%)")


@dataclass(frozen=True)
class RuntimeOptions:
    """Every field has a default that works; a value that is not among those allowed is a `ValueError` naming it."""

    device: str = (
        "auto"  # where the non-expert part runs: "auto" (a usable card, else the CPU), "cpu", "cuda", "cuda:1"
    )
    threads: int = 0  # CPU threads; 0: the cores this process may use
    context: int = 0  # tokens of KV cache a sequence; 0: the model's own, lowered to what fits
    max_sequences: int = 4  # sequences decoded together
    host_memory: str = "auto"  # budget for all weights in RAM: "auto", "6GiB", "60%"
    gpu_memory: str = "auto"  # budget for weights and cache on the GPU, written likewise
    reader: str = "auto"  # how experts come from the disk: "direct" past the page cache, "mapped" through it
    kv_type: str = "f16"
    activations: str = "q8"  # "q8": rounded to 8-bit blocks in the CPU kernels; "float": not at all
    route: str = "exact"  # which experts are asked for: a file name in experts/route/
    evict: str = "auto"  # file names in their folders; "auto" measures and chooses among the lossless ones
    prefetch: str = "auto"
    working_set: str = "auto"
    miss: str = "auto"
    quality: str = "exact"  # "high", "balanced", "fast": lossy as far as the model's calibration allows
    max_kld: float | None = None  # the same by a budget: nats a token that the answer may be away from exact
    policy: Mapping[str, Any] = field(default_factory=dict)  # knobs of the chosen policies
    twin: Path | None = None  # low-precision twin GGUF
    trace: Path | None = None  # routing trace to warm the cache from
    speculate: str = "auto"  # guess tokens that stood in the text before and compute several at once: "auto", "off"
    admission: str = "first_come"  # who of those that wait runs next: a file name in engine/admission/
    seed: int | None = None  # sampling seed where a request gives none

    def __post_init__(self) -> None:
        for name, low in (("threads", 0), ("context", 0), ("max_sequences", 1)):
            _require_int(name, getattr(self, name), low)
        if self.threads > MOST_THREADS:
            raise ValueError(f"threads is {self.threads}; it must be at most {MOST_THREADS}")
        if self.seed is not None:
            _require_int("seed", self.seed, None)
        strings = ("device", "host_memory", "gpu_memory", "reader", "kv_type", "activations", "speculate", "admission")
        for name in (*strings, *POLICIES):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be text")
        if not DEVICE.fullmatch(self.device):
            raise ValueError(f"device is {self.device!r}; it must be auto, cpu, cuda or cuda:N")
        for name in ("host_memory", "gpu_memory"):
            memory_bytes(getattr(self, name), 0, name)
        several = {"reader": READERS, "kv_type": KV_TYPES, "activations": ACTIVATIONS, "speculate": SPECULATE}
        for name, allowed in several.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        for name in ("admission", *POLICIES):
            if not POLICY_NAME.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be the name of a policy")
        if self.quality not in QUALITIES:
            raise ValueError(f"quality is {self.quality!r}; it must be one of {', '.join(QUALITIES)}")
        if self.max_kld is not None:
            if (
                isinstance(self.max_kld, bool)
                or not isinstance(self.max_kld, int | float)
                or not 0 <= self.max_kld < 100
            ):
                raise ValueError(f"max_kld is {self.max_kld!r}; it must be a number of at least 0, in nats a token")
            if self.quality != "exact":
                raise ValueError(f"quality is {self.quality!r} and max_kld {self.max_kld:g}; give one of them")
        if not isinstance(self.policy, Mapping) or not all(isinstance(knob, str) for knob in self.policy):
            raise ValueError(f"policy is {self.policy!r}; it must map names of knobs to values")
        for name in ("twin", "trace"):
            value = getattr(self, name)
            if value is not None:
                if not isinstance(value, str | Path) or not str(value):
                    raise ValueError(f"{name} is {value!r}; it must be a path")
                object.__setattr__(self, name, Path(value))

    @property
    def insisted(self) -> frozenset[str]:
        """Fields that count before a Modelfile's even where they are the defaults: those of `insisting`."""
        return self.__dict__.get("_insisted", frozenset())

    def insisting(self, names: Iterable[str]) -> "RuntimeOptions":
        """The same options, with these fields `insisted` upon; other fields do where they are not the defaults."""
        options = replace(self)
        object.__setattr__(options, "_insisted", frozenset(names))
        return options


def memory_bytes(text: str, total: int, name: str = "memory") -> int:
    """Bytes meant by "6GiB", "500MB", "4096", "60%" (of `total`) or "auto" (all of `total`); KB is 1000, KiB 1024.

    An amount may exceed `total`. Anything else, a share above 100 %, or nothing at all is a `ValueError` naming `name`.
    """
    if text == "auto":
        return total
    match = MEMORY.fullmatch(text.strip())
    if match:
        number, unit = float(match[1]), _unit(match[2])
        if unit == "%" and 0 < number <= 100:
            return int(total * number / 100)
        if unit in UNITS and 1 <= number * UNITS[unit] <= MOST_MEMORY:
            return int(number * UNITS[unit])
    raise ValueError(f"{name} is {text!r}; it must be auto, an amount such as 6GiB, or a share such as 60%")


def memory_text(nbytes: int) -> str:
    """An amount for a sentence, never more than `nbytes`: in MiB, what is small or nearly nothing in KiB or bytes."""
    for size, unit in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if nbytes >= 32 * size or (nbytes and not nbytes % size):
            return f"{nbytes // size} {unit}"
    return f"{max(nbytes, 0)} bytes"


def enough_memory(nbytes: int) -> str:
    """The same, but never less: given back as an option it is enough."""
    unit = next((size for size in (1 << 20, 1 << 10) if nbytes >= 32 * size), 1)
    return memory_text(-(-nbytes // unit) * unit)


def _unit(text: str) -> str:
    """The unit as `UNITS` spells it, whatever its case."""
    return next((unit for unit in UNITS if unit.lower() == text.lower()), text)


def _require_int(name: str, value: Any, low: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or (low is not None and value < low):
        bound = "" if low is None else f" of at least {low}"
        raise ValueError(f"{name} is {value!r}; it must be a whole number{bound}")
