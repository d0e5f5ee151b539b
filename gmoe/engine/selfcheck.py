"""Selfcheck: a device's kernels against the CPU on a few tokens, for each kind of layer, before they answer anyone."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from gmoe.engine.engine import Engine
from gmoe.engine.rehearsal import batch_of, rehearse
from gmoe.engine.replay import Replay
from gmoe.experts.device import DeviceError, kernels_work
from gmoe.experts.device_dispatch import DeviceDispatch
from gmoe.experts.device_slots import bank_of
from gmoe.experts.dispatch import Beside, ExpertDispatch
from gmoe.experts.expert import Routing
from gmoe.experts.store import ExpertStore
from gmoe.gguf.layout import ExpertLayout
from gmoe.kernels.kv import BLOCK
from gmoe.kernels.ops import bank_rows, combine, expert_mlp
from gmoe.layers.batch import Batch
from gmoe.layers.kv_cache import KvType
from gmoe.layers.weights import Weights
from gmoe.models import decoder

TOLERANCE = 2**-6  # of a result's size: TF32 rounds to 2**-11, a cache of 8 bits to 2**-8, and a layer chains a few
ROWS = (20, 5, 1)  # a prompt, a short one behind it, and a token
OUTPUTS = 256  # of the vocabulary


def prepare(
    engine: Engine,
    weights: Weights,
    layout: ExpertLayout,
    kv_type: KvType,
    notices: list[str],
    progress: Callable[[str], None],
) -> None:
    """`check` and `rehearse`; what goes wrong is a `DeviceError`."""
    dispatch = cast(Replay, engine.runner.model).model.dispatch
    assert isinstance(dispatch, DeviceDispatch)
    device = dispatch.device
    with kernels_work(device):
        progress(f"checking kernels for {device.name}")
        check(engine, weights, layout, kv_type)
        rehearse(engine, device, notices, progress)


def check(engine: Engine, weights: Weights, layout: ExpertLayout, kv_type: KvType) -> None:
    """Raises `DeviceError` where the engine's model on a device is not what it is on the CPU; `weights` are there.

    Each part of a layer is given the CPU's numbers: attention, the norm behind it, the router, and experts for which
    the CPU's router decides, all of them the first token's. No slot, counter or listener hears of it.
    """
    model, kv = cast(Replay, engine.runner.model).model, engine.runner.kv
    assert isinstance(model.dispatch, DeviceDispatch)
    told = _Told(ExpertStore(layout))
    reference = decoder.load(weights, told)
    meeting = _Meeting(model.dispatch, told)
    try:
        model.dispatch.instead = meeting
        own, its = reference.new_cache(1, BLOCK, kv_type), reference.new_states(1)
        for layer in _kinds(weights, reference):
            at = 0
            for rows in ROWS:
                batch = _behind(batch_of([rows], own, its, model.n_vocab), at)
                there = replace(batch, kv=kv, states=engine.runner.states).on(model.device)
                _layer(model, reference, layer, batch, there, meeting)
                at += rows
        first = batch_of([ROWS[0]], own, its, model.n_vocab)
        x = reference.embed(first)
        _near(meeting.name, "the token table", model.embed(first), x)
        x, some = reference.output_norm(x)[:1], min(OUTPUTS, model.n_vocab)
        outputs = model.output.rows(0, some)(x.to(model.device))
        _near(meeting.name, "the output", outputs, reference.output.rows(0, some)(x))
    finally:
        model.dispatch.instead = None
        for part in kv.layers:
            for tensor in (part.keys, part.values, part.key_scales, part.value_scales):
                if tensor is not None:
                    tensor[:1].zero_()


def _layer(
    model: decoder.Decoder, reference: decoder.Decoder, layer: int, batch: Batch, there: Batch, meeting: "_Meeting"
) -> None:
    """Each of its parts for the rows of a batch, on the CPU and `there`."""
    device, scale, name = model.device, reference.hparams.residual_scale, meeting.name
    where = f"of layer {layer} for {len(batch.token_ids)} tokens"
    with torch.inference_mode():
        x = reference.embed(batch)
        moved = x.to(device)  # before the CPU may compute in its memory, as all that follow
        pairs = zip(reference.parts, model.parts, strict=True)
        (want, got), *others = [pair for pair in pairs if pair[0].layer == layer]
        normed = want.norm(x)
        _near(name, f"the norm {where}", got.norm(moved), normed)
        y = _part(name, where, want, got, normed, batch, there)
        for want, got in others:
            both = x.to(device), y.to(device)
            _, normed = want.norm.after(x, y, scale)
            _near(name, f"the second norm {where}", got.norm.after(*both, scale)[1], normed)
            y = _part(name, where, want, got, normed, batch, there)
        meeting.compare(f"the router {where}")


def _part(
    name: str, where: str, want: decoder.Part, got: decoder.Part, normed: Tensor, batch: Batch, there: Batch
) -> Tensor:
    """What it adds on the CPU, once that is found to be the same `there`."""
    given = normed.to(there.positions.device)
    y = want(normed, batch)
    _near(name, f"{'attention' if want.mixes else 'the feed-forward part'} {where}", got(given, there), y)
    return y


class _Told(ExpertDispatch):
    """By the CPU without rounding; every token has the experts of the first, with its weights."""

    def __init__(self, store: ExpertStore):
        super().__init__(store, "float")
        self.routing: Routing | None = None  # the router's
        self.served = Routing(torch.empty(0), torch.empty(0))

    def __call__(
        self, layer: int, x: Tensor, routing: Routing, activation: str = "swiglu", beside: Beside = lambda: None
    ) -> Tensor:
        self.routing = routing
        ids, weights = (part[:1].expand(len(x), -1).contiguous() for part in (routing.topk_ids, routing.topk_weights))
        self.served = Routing(ids, weights)
        beside()
        return expert_mlp(x, ids, weights, self.store.table(layer), activation, "float")


class _Meeting:
    """In place of a device's dispatch: the same experts, copied there for this alone."""

    def __init__(self, dispatch: DeviceDispatch, told: _Told):
        self.dispatch, self.told, self.name = dispatch, told, dispatch.device.name
        self.routing: Routing | None = None  # the device's

    def __call__(self, layer: int, x: Tensor, routing: Routing, activation: str, beside: Beside) -> Tensor:
        self.routing = routing
        table, device, (ids, weights) = self.told.store.table(layer), self.dispatch.device, self.told.served[:2]
        experts = ids[0].tolist()
        bank = bank_of(device, table, experts)
        slots = torch.full((len(table.up.address),), -1, dtype=torch.int32)
        slots[experts] = torch.arange(len(experts), dtype=torch.int32)
        chosen, out = device.send(ids), x.new_empty(*ids.shape, bank.down.rows)
        bank_rows(
            x, device.send(slots), chosen, bank, activation, self.dispatch.activations, out, self.dispatch.kernels
        )
        beside()
        return combine(out, device.send(weights), chosen, self.dispatch.kernels)

    def compare(self, what: str) -> None:
        """The routers' choices; of experts that are as good as each other either may win, but seldom."""
        got, want, self.routing, self.told.routing = self.routing, self.told.routing, None, None
        if got is None or want is None:
            return
        ids, order = got.topk_ids.cpu().sort(-1)
        wanted, its_order = want.topk_ids.sort(-1)
        same = (ids == wanted).all(-1)
        if len(ids) > 1 and 2 * int(same.sum()) < len(ids):
            raise DeviceError(f"{self.name} computes otherwise than the CPU: {what} chooses other experts")
        weights = got.topk_weights.cpu().gather(-1, order), want.topk_weights.gather(-1, its_order)
        if same.any():
            _near(self.name, what, weights[0][same], weights[1][same])


def _near(name: str, what: str, got: Tensor, want: Tensor) -> None:
    """Raises `DeviceError` where `got`, of the device `name`, is away from `want`; what is no number says nothing."""
    got = got.float().cpu()
    if not bool(want.isfinite().all()):
        return
    off = float((got - want).norm() / want.norm().clamp(min=1e-20))
    if not off <= TOLERANCE:
        how = f"{off:.0%} off" if off == off else "no number"
        raise DeviceError(f"{name} computes otherwise than the CPU: {what} is {how}")


def _kinds(weights: Weights, reference: decoder.Decoder) -> list[int]:
    """Layers, as few as bring every tensor's every format, and every kind of attention."""
    features: defaultdict[int, set[Any]] = defaultdict(set)
    for name, info in weights.file.tensors.items():
        if name.startswith("blk."):
            _, number, part = name.split(".", 2)
            features[int(number)].add((part, info.format.name))
    found, seen = list[int](), set[Any]()
    for layer, attention in enumerate(reference.attn):
        its = features[layer] | {(type(attention), getattr(attention, "mask", None))}
        if not its <= seen:
            found.append(layer)
            seen |= its
    return found


def _behind(batch: Batch, at: int) -> Batch:
    """The same rows of one sequence, behind `at` others."""
    slots = None if batch.slots is None else batch.slots.copy()
    if slots is not None and at:
        slots[0] = slots[1]  # from where the rows before left it
    numbers = batch.numbers + np.array([[0], [at], [at]])
    return replace(batch, numbers=numbers, lengths=[n + at for n in batch.lengths], slots=slots)
