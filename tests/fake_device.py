"""A device that is not there: torch tensors of a type "fake" whose bytes lie in host memory, copies that come late.

Tensors of the CPU and of the device do not mix, as on a card; whatever makes the host wait is counted; copies end when
their event is waited for or a random number says so, in any order, and the target holds garbage until then.
"""

import random
from collections.abc import Callable, Sequence
from copy import copy
from importlib import import_module
from itertools import count
from threading import get_ident
from typing import Any
from weakref import finalize

import numpy as np
import torch
from gmoe.kernels import reference, reference_recurrent, reference_step
from gmoe.kernels.bank import ExpertBank, SlotMatrix
from gmoe.kernels.formats import QuantTensor
from gmoe.kernels.kv import KvLayer
from gmoe.kernels.reference_recurrent import DeltaRule, KimiRule, SpaceRule
from gmoe.kernels.reference_step import Mask, Norms, RouterRule, Turn, Turns
from gmoe.kernels.state import Paths, StateLayer
from gmoe.kernels.triton.tuned import SHIPPED, Choices
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from gmoe.experts.device import DeviceError
from gmoe.experts.device_turns import Turns as Threads

GARBAGE = 0x7F
CURVES = {"sigmoid": torch.sigmoid, "softplus": torch.nn.functional.softplus}
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "equal", "is_nonzero")
syncs: list[str] = []  # what made the host wait, since somebody cleared it
recording: list["FakeGraph"] = []  # the graph that takes what is launched, if any
spoiled: list[str] = []  # what another thread did while one recorded
handed: list[str] = []  # copies of tensors of the host that are not pinned: a card waits for them as well
refused: list[int] = []  # in how many allocations memory will be found short
clock = count()
last_use: dict[int, int] = {}  # address of a slot -> when a kernel that reads it was launched


class FakeTensor(Tensor):
    """On the device; `inner` has its bytes."""

    inner: Tensor

    @staticmethod
    def __new__(cls: type["FakeTensor"], inner: Tensor) -> "FakeTensor":
        made: FakeTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="fake:0",
        )
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"fake({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return launched(lambda *a: _run(func, a, kwargs or {}), args, lambda *a: func(*a, **(kwargs or {})))


class FakeGraph:
    """Launches kept as a CUDA graph keeps them: on the bytes that they found, without Python between them."""

    def __init__(self) -> None:
        self.launches: list[Callable[[], object]] = []
        self.inside = False  # a kernel may be made of others
        self.thread = get_ident()
        self.runs = 0

    def run(self) -> None:
        self.runs += 1
        with torch.inference_mode():
            for launch in self.launches:
                launch()


def launched(kernel: Callable[..., Any], args: Any, later: Callable[..., Any]) -> Any:
    """Run a kernel, and keep it where a graph is recorded: `later` gives the same, for the results of now."""
    if recording and recording[0].thread != get_ident():
        spoiled.append("launched while another thread records")
        return kernel(*args)
    if not recording or recording[0].inside:
        return kernel(*args)
    graph, waits = recording[0], len(syncs)
    graph.inside = True
    try:
        made = kernel(*args)
    finally:
        graph.inside = False
    if len(syncs) > waits:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing\n{syncs[-1]}")
    results = [y for y in _flat(made) if isinstance(y, FakeTensor)]
    given = [inner(x).untyped_storage().data_ptr() for x in _flat(args) if isinstance(x, Tensor)]
    fresh = [y.inner.untyped_storage().data_ptr() not in given for y in results]

    def again() -> None:
        for old, new, own in zip(results, _flat(later(*args)), fresh, strict=False):
            if own:  # a view shows what its base has
                old.inner.copy_(inner(new))

    graph.launches.append(again)
    return made


class Recorded:
    """Kernels whose launches a graph takes, and what they were told of how to launch them."""

    def __init__(self, kernels: Any, choices: Choices = SHIPPED):
        self.kernels, self.choices = kernels, choices

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self.kernels, name)
        return lambda *args: launched(kernel, args, kernel)


def inner(x: Any) -> Any:
    """The bytes of a tensor of the device; anything else as it is."""
    return x.inner if isinstance(x, FakeTensor) else x


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.removeprefix("aten::")
    if name in WAITS:
        syncs.append(name)
    to = kwargs.get("device")
    away = to is not None and torch.device(to).type == "cpu"
    if name == "copy_":
        if not isinstance(args[0], FakeTensor):
            syncs.append("copy to the host")
        elif not isinstance(args[1], FakeTensor):
            handed.append("copy from the host")
    elif away:
        syncs.append("copy to the host")
    else:
        flat = [a for a in _flat((args, kwargs)) if isinstance(a, Tensor)]
        mixed = [a for a in flat if not isinstance(a, FakeTensor) and a.dim() > 0]
        assert not mixed, f"{name} of tensors on the device and of one on the CPU {list(mixed[0].shape)}"
    plain = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
    if to is not None and "_to_copy" not in name:
        plain["device"] = "cpu"
    with torch.inference_mode(False), torch.no_grad():
        out = func(*_mapped(inner, args), **_mapped(inner, plain))
        if name == "copy_":
            return args[0]
        if name.endswith("_") and not name.endswith("__") and isinstance(args[0], FakeTensor):
            return args[0]
        if away:
            return out.clone() if isinstance(out, Tensor) else out
        return _mapped(lambda a: FakeTensor(a) if isinstance(a, Tensor) else a, out)


def _mapped(f: Callable[[Any], Any], tree: Any) -> Any:
    """As torch's tree_map, which is most of what a small operation takes."""
    if isinstance(tree, list):
        return [_mapped(f, x) for x in tree]
    if isinstance(tree, dict):
        return {name: _mapped(f, x) for name, x in tree.items()}
    return tuple(_mapped(f, x) for x in tree) if isinstance(tree, tuple) and tree else f(tree)


def _flat(tree: Any) -> list[Any]:
    if isinstance(tree, tuple | list):
        return [leaf for part in tree for leaf in _flat(part)]
    if isinstance(tree, dict):
        return _flat(list(tree.values()))
    return [tree]


def _allocate() -> None:
    """Some allocations are refused."""
    refused[:] = [left - 1 for left in refused]
    if 0 in refused:
        refused.remove(0)
        raise torch.OutOfMemoryError("fake out of memory")


def _empty(size: Any, dtype: Any = None, **_: Any) -> Tensor:
    _allocate()
    with torch.inference_mode(False):
        return FakeTensor(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> Tensor:
    _allocate()
    with torch.inference_mode(False):
        return FakeTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    if isinstance(source, FakeTensor) and not isinstance(target, FakeTensor):
        syncs.append("copy to the host")
    inner(target).copy_(inner(source))
    return target


def _setup() -> torch.library.Library:
    _setup_privateuseone_for_python_backend("fake")
    library = torch.library.Library("aten", "IMPL")
    for name, function in (
        ("empty.memory_format", _empty),
        ("empty_strided", _empty_strided),
        ("_copy_from", _copy_from),
    ):
        library.impl(name, function, "PrivateUse1")
    return library


class ReferenceKernels:
    """`device_kernels.DeviceKernels` by the reference, for tensors of the fake device."""

    def __init__(self) -> None:
        self.computed = 0  # rows of experts

    def dequantize(self, w: QuantTensor) -> Tensor:
        return FakeTensor(_dense(w))

    def matmul(self, x: Tensor, w: QuantTensor, exact: bool) -> Tensor:
        return FakeTensor(x.inner @ _dense(w).T)

    def linears(self, x: Tensor, weights: Sequence[tuple[QuantTensor, Tensor | None]], exact: bool) -> list[Tensor]:
        products = [self.matmul(x, w, exact) for w, _ in weights]
        return [y if bias is None else y + bias for y, (_, bias) in zip(products, weights, strict=True)]

    def expert_rows(
        self, x: Tensor, slots: Tensor, ids: Tensor, bank: ExpertBank, activation: str, out: Tensor, exact: bool
    ) -> None:
        x, slots, ids, out, data = map(inner, (x, slots, ids, out, bank.data))
        if slots.dim() == 1:
            slots = torch.where(ids < 0, -1, slots[ids.clamp(min=0)])

        def times(a: Tensor, matrix: SlotMatrix, slot: int, expert: Tensor) -> Tensor:
            size = matrix.rows * matrix.format.row_bytes(matrix.cols)
            bytes = data[slot, matrix.offset : matrix.offset + size].reshape(matrix.rows, -1)
            w = reference.dequantize(QuantTensor(bytes, matrix.format, (matrix.rows, matrix.cols)))
            y = torch.stack([w @ row for row in a])  # row by row: its bits must not depend on the others
            return y if matrix.bias is None else y + inner(matrix.bias)[expert.long()]

        for slot in sorted({s for s in slots.flatten().tolist() if s >= 0}):
            t, j = torch.nonzero(slots == slot, as_tuple=True)
            self.computed += len(t)
            last_use[data.data_ptr() + slot * data.stride(0)] = next(clock)
            who = ids[t, j]
            gate = None if bank.gate is None else times(x[t], bank.gate, slot, who)
            up = times(x[t], bank.up, slot, who)
            out[t, j] = times(reference_step.activate(activation, gate, up), bank.down, slot, who)

    def combine(self, out: Tensor, weights: Tensor, places: Tensor) -> Tensor:
        out, weights, places = map(inner, (out, weights, places))
        y = torch.zeros(len(out), out.shape[-1])
        for j in range(out.shape[1]):
            here = (places[:, j] >= 0)[:, None]
            y = y + torch.where(here, weights[:, j, None] * out[:, j], 0.0)
        return FakeTensor(y)

    def choose(self, logits: Tensor, rule: RouterRule) -> tuple[Tensor, Tensor]:
        ids, weights = reference_step.choose(*_bytes((logits, rule)))
        return _result(ids), _result(weights)

    def rms_norm(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        return _result(reference_step.rms_norm(*_bytes((x, weight, bias)), eps))

    def residual_norm(
        self, x: Tensor, y: Tensor, scale: float, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        added, sum = _bytes((x, y))
        sum.mul_(scale).add_(added)
        return y, self.rms_norm(y, weight, bias, eps)

    def rotate(self, x: Tensor, positions: Tensor, frequencies: Tensor, magnitude: float, neox: bool) -> Tensor:
        x, positions, frequencies = _bytes((x, positions, frequencies))
        angles = positions[:, None].float() * frequencies
        rows = torch.arange(len(positions))
        turned = reference_step.rotate(x, rows, angles.cos() * magnitude, angles.sin() * magnitude, neox)
        return _result(turned)

    def heads(self, q: Tensor, k: Tensor, norms: Norms, positions: Tensor, turn: Turn | None) -> tuple[Tensor, Tensor]:
        q, k = (x if rule is None else self.rms_norm(x, *rule) for x, rule in zip((q, k), norms, strict=True))
        return (q, k) if turn is None else (self.rotate(q, positions, *turn), self.rotate(k, positions, *turn))

    def activate(self, name: str, gate: Tensor | None, up: Tensor) -> Tensor:
        gate, up = _bytes((gate, up))
        return _result(up * CURVES[name](gate) if name in CURVES else reference_step.activate(name, gate, up))

    def store(self, kv: KvLayer, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        _inner_parts(kv).write(*_bytes((slots, keys, values)))

    def attention(
        self, q: Tensor, kv: KvLayer, turns: Turns, scale: float, mask: Mask, sinks: Tensor | None, cap: float
    ) -> Tensor:
        q, positions, tables, sinks = _bytes((q, turns.positions, turns.block_tables, sinks))
        turns = turns._replace(positions=positions, block_tables=tables)
        if len(turns.query_starts) and q.shape[0]:
            last = positions[turns.query_starts[1:].long() - 1]  # kernels see how far a row goes by these
            assert (last < turns.context_lens).all()
            turns = turns._replace(context_lens=(last + 1).int())
        return _result(reference_step.attention(q, _inner_parts(kv), turns, scale, mask, sinks, cap))

    def short_conv(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        state: StateLayer,
        paths: Paths,
        silu: bool,
        before: Tensor | None,
        after: Tensor | None,
    ) -> Tensor:
        some = [None if part is None else inner(part) for part in (before, after, bias)]
        given = inner(x), inner(weight), _inner_state(state), Paths(*map(inner, paths)), silu
        return FakeTensor(reference_recurrent.short_conv(*given, *some))

    def delta_rule(
        self, qkv: Tensor, alpha: Tensor, beta: Tensor, z: Tensor, rule: DeltaRule, state: StateLayer, paths: Paths
    ) -> Tensor:
        rule = rule._replace(a=inner(rule.a), dt_bias=inner(rule.dt_bias), norm=inner(rule.norm))
        given = *map(inner, (qkv, alpha, beta, z)), rule, _inner_state(state), Paths(*map(inner, paths))
        return FakeTensor(reference_recurrent.delta_rule(*given))

    def kimi_delta(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        fade: Tensor,
        beta: Tensor,
        gate: Tensor,
        rule: KimiRule,
        state: StateLayer,
        paths: Paths,
    ) -> Tensor:
        rule = rule._replace(a=inner(rule.a), dt_bias=inner(rule.dt_bias), norm=inner(rule.norm))
        given = *map(inner, (q, k, v, fade, beta, gate)), rule, _inner_state(state), Paths(*map(inner, paths))
        return FakeTensor(reference_recurrent.kimi_delta(*given))

    def state_space(
        self, xbc: Tensor, dt: Tensor, z: Tensor, rule: SpaceRule, state: StateLayer, paths: Paths
    ) -> Tensor:
        rule = rule._replace(**{name: inner(getattr(rule, name)) for name in ("a", "dt_bias", "d", "norm")})
        given = *map(inner, (xbc, dt, z)), rule, _inner_state(state), Paths(*map(inner, paths))
        return FakeTensor(reference_recurrent.state_space(*given))


def _bytes(given: Any) -> Any:
    """What a kernel is given, which is all on the device: the bytes of tensors, and of those in tuples."""
    if isinstance(given, tuple):
        parts = map(_bytes, given)
        return type(given)(*parts) if hasattr(given, "_fields") else tuple(parts)
    assert isinstance(given, FakeTensor) or not isinstance(given, Tensor), f"a tensor of the CPU {list(given.shape)}"
    return inner(given)


def _result(bytes: Tensor) -> Tensor:
    """Of a kernel, which takes memory for it."""
    _allocate()
    return FakeTensor(bytes)


def _inner_parts(kv: KvLayer) -> KvLayer:
    here = copy(kv)
    for name in ("keys", "values", "key_scales", "value_scales"):
        setattr(here, name, _bytes(getattr(kv, name)))
    return here


def _inner_state(state: StateLayer) -> StateLayer:
    here = copy(state)
    here.inputs, here.matrices = inner(state.inputs), inner(state.matrices)
    return here


def _dense(w: QuantTensor) -> Tensor:
    return reference.dequantize(QuantTensor(inner(w.data), w.format, w.shape))


class FakeEvent:
    """Reached when `work` has been done."""

    def __init__(self, device: "FakeDevice", work: Callable[[], object] | None = None):
        self.device, self.work, self.at = device, work, next(clock)
        self.upload, self.seconds = False, 0.0

    def query(self) -> bool:
        if self.work is not None and self.device.random.random() < self.device.hurry:
            self.reach()
        return self.work is None

    def synchronize(self) -> None:
        syncs.append("event")
        self.reach()

    def reach(self) -> None:
        """Do the work now, and perhaps some other copy first."""
        others = [event for event in self.device.flying if event is not self]
        if others and self.device.shuffles and self.device.random.random() < 0.5:
            self.device.random.choice(others)._finish()
        self._finish()

    def _finish(self) -> None:
        if self.work is not None:
            work, self.work = self.work, None
            self.device.flying.remove(self)
            work()


class FakeDevice:
    """`experts/device.Device` without a device; `memory` bytes, of which `empty` takes."""

    computes: Callable[[Choices], Any] = staticmethod(lambda choices: kernels)

    def __init__(self, memory: int = 1 << 30, seed: int = 0, hurry: float = 0.3, turns: Threads | None = None):
        self.torch = torch.device("fake", 0)
        self.name, self.turns = "a fake card", turns or Threads()
        self.compiles = False
        self.random = random.Random(seed)
        self.shuffles = True  # copies may be through in any order
        self.hurry = hurry  # the chance that a copy is found done where nobody waits for it
        self.memory = memory
        self.taken = 0
        self.flying: list[FakeEvent] = []
        self.received = FakeEvent(self)
        self.uploads = 0
        self.copy_errors = 0.0  # the chance that a copy is refused
        self.most = 0

    def kernels(self, choices: Choices) -> Any:
        return Recorded(self.computes(choices), choices)

    def empty(self, nbytes: int) -> Tensor:
        if nbytes > self.free():
            raise torch.OutOfMemoryError(f"fake out of memory: {nbytes}")
        self.taken += nbytes
        bytes = np.full(nbytes, GARBAGE, np.uint8)
        finalize(bytes, self._back, nbytes)  # where no tensor of them is left
        made = torch.from_numpy(bytes)
        for address in [at for at in last_use if made.data_ptr() <= at < made.data_ptr() + nbytes]:
            del last_use[address]  # of memory that was given back
        return FakeTensor(made)

    def _back(self, nbytes: int) -> None:
        self.taken -= nbytes

    def pinned(self, nbytes: int) -> Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def upload(self, into: Tensor, source: Tensor, after: FakeEvent | None) -> FakeEvent:
        assert isinstance(into, FakeTensor) and not isinstance(source, FakeTensor)
        if self.random.random() < self.copy_errors:
            raise RuntimeError("CUDA error: the card fell off the bus\nand more lines")
        self.uploads += 1
        target: Tensor = into.inner
        used = last_use.get(target.data_ptr())
        assert used is None or (after is not None and after.at > used), "the slot may still be read"
        target.fill_(GARBAGE)
        event = FakeEvent(self, lambda: target.copy_(source))
        event.upload = True
        self.flying.append(event)
        self.most = max(self.most, len(self.flying))
        return event

    def send(self, source: Tensor) -> Tensor:
        assert not isinstance(source, FakeTensor) and not recording, "a graph would send the same again"
        return FakeTensor(source.clone())

    def receive(self, source: Tensor) -> tuple[Tensor, FakeEvent]:
        """The target holds garbage until somebody waits for the event."""
        assert isinstance(source, FakeTensor) and not recording
        value = source.inner.clone()
        target = torch.full_like(value, -99)
        before, self.received = self.received, FakeEvent(self)
        event = self.received

        def work() -> None:
            before.reach()  # in line: after those begun before
            with torch.inference_mode():
                target.copy_(value)

        event.work = work
        self.flying.append(event)
        return target, event

    def mark(self) -> FakeEvent:
        return FakeEvent(self)

    def wait(self, event: FakeEvent) -> None:
        event.reach()

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, FakeGraph]:
        graph = FakeGraph()
        recording.append(graph)
        try:
            work()
            graph.launches.clear()  # a card runs it once before it records
            result = work()
        except RuntimeError as error:
            raise DeviceError(str(error).partition("\n")[0]) from None
        finally:
            recording.clear()
        return result, graph

    def free(self) -> int:
        return self.memory - self.taken

    def total(self) -> int:
        return self.memory

    def give_back(self) -> None:
        return None

    def synchronize(self) -> None:
        syncs.append("device")
        if recording:
            spoiled.append("waited while a graph is recorded")
        while self.flying:
            self.flying[0].reach()


def interpreted(choices: Choices = SHIPPED) -> Any:
    """Triton's kernels in its interpreter, launched on the bytes of tensors of the fake device."""
    from gmoe.kernels.triton.matmul import Launch
    from triton.runtime import interpreter

    class Wide(Choices):
        """A program takes many rows of W: the interpreter's time is that of its programs. The sums are the same."""

        def of(self, key: str, shipped: Any) -> Any:
            found = super().of(key, shipped)
            return found._replace(n=max(found.n, 128)) if isinstance(found, Launch) else found

    launch = interpreter.GridExecutor.__call__
    if launch.__name__ != "on_fake":

        def on_fake(self: Any, *args: Any, **kwargs: Any) -> None:
            with torch.inference_mode(False):
                launch(self, *map(inner, args), **{name: inner(value) for name, value in kwargs.items()})

        interpreter.GridExecutor.__call__ = on_fake
    return import_module("gmoe.kernels.triton.kernels").Kernels(Wide(choices.found))


_library = _setup()
kernels = ReferenceKernels()
