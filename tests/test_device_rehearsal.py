"""No request compiles a kernel: what is launched, told apart as Triton's compiler does, was launched while loading."""

import inspect
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton", reason="triton is not installed")

from torch import Tensor
from torch.utils._pytree import tree_map
from triton.runtime import interpreter

import gmoe
from gmoe.engine.rehearsal import passes, rehearse
from gmoe.experts.device_dispatch import DeviceDispatch
from tests import fake_device
from tests.factory import write_model
from tests.fake_device import FakeDevice, FakeTensor, inner
from tests.test_device_offload import memory

CHANGING = ("residual_norm",)  # where an argument's memory takes the result
LENGTHS = (1, 2, 5, 17, 65, 130)


@cache
def signature(kernel: Any) -> dict[str, str]:
    """The parameters of a kernel, as they are written."""
    return {name: str(parameter) for name, parameter in inspect.signature(kernel).parameters.items()}


def variant(kernel: Any, args: Any, kwargs: Any) -> tuple[Any, ...]:
    """What a launch is compiled for: types, which whole numbers are 1 or divide by 16, which pointers do, constants."""
    parameters = signature(kernel.fn)
    free, key = kernel.kwargs.get("do_not_specialize") or (), list[Any]()
    for name, value in [*zip(parameters, args, strict=False), *kwargs.items()]:
        constant = "constexpr" in parameters.get(name, "constexpr")
        if isinstance(value, Tensor):
            key.append((name, value.dtype, inner(value).data_ptr() % 16 == 0))
        elif constant or isinstance(value, bool) or not isinstance(value, int):
            key.append((name, value if constant else type(value)))
        else:
            key.append((name, "whole" if name in free else (value == 1, value % 16 == 0, value >= 1 << 31)))
    return (kernel.fn.__name__, *key)


class Compiled:
    """Triton's kernels are launched for their variants alone; the reference computes."""

    def __init__(self) -> None:
        self.variants: set[tuple[Any, ...]] = set()
        self.triton = fake_device.interpreted()

    def __getattr__(self, name: str) -> Any:
        kernel, computes = getattr(self.triton, name), getattr(fake_device.kernels, name)

        def run(*args: Any) -> Any:
            aside = tree_map(_copied, args) if name in CHANGING else args
            kernel(*aside)
            return computes(*args)

        return run


def _copied(x: Any) -> Any:
    return FakeTensor(inner(x).clone()) if isinstance(x, FakeTensor) else x


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    made = Compiled()

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        made.variants.add(variant(self, args, kwargs))

    monkeypatch.setattr(interpreter.InterpretedFunction, "run", run)
    monkeypatch.setattr(FakeDevice, "computes", staticmethod(lambda choices: made))
    return made


@pytest.fixture
def compiling(card: FakeDevice) -> FakeDevice:
    card.compiles = True
    return card


def load(path: Path, **options: Any) -> gmoe.LLM:
    given = {"context": 192, "max_sequences": 3, "device": "cuda", "miss": "load"}
    return gmoe.LLM.load(path, gmoe.RuntimeOptions(**given | options))


def ids(n: int) -> list[int]:
    return [(7 * k + k * k // 5) % 250 + 3 for k in range(n)]


def requests(llm: gmoe.LLM) -> None:
    """Of many lengths, alone and together."""
    few = gmoe.SamplingParams(max_tokens=2, temperature=0)
    for n in LENGTHS:
        llm.logits(ids(n))
        for _ in llm.run(ids(n), few, ignore_end=True):
            pass
    for together in ((1, 1), (7, 30, 2)):
        streams = [llm.run(ids(n), few, ignore_end=True) for n in together]
        for stream in streams:
            for _ in stream:
                pass


@pytest.mark.parametrize("architecture", ["gpt-oss", "deepseek2", "llama4"])  # qwen3moe: below
def test_no_request_compiles(architecture: str, tmp_path: Path, compiling: FakeDevice, compiled: Compiled) -> None:
    with load(write_model(tmp_path / "m.gguf", architecture)) as llm:
        before = set(compiled.variants)
        requests(llm)
        assert len(before) > 20 and compiled.variants == before, compiled.variants - before


def test_nor_where_experts_are_missing(tmp_path: Path, compiling: FakeDevice, compiled: Compiled) -> None:
    path = write_model(tmp_path / "m.gguf", "qwen3moe")
    with load(path, device="cpu") as llm:
        sizes = {name: memory(llm.budget, name) for name in ("one", "half")}
    for size in sizes.values():
        compiled.variants.clear()
        with load(path, gpu_memory=size) as llm:
            before = set(compiled.variants)
            assert not llm.store.whole and llm.stats["gpu"]["misses"] == 0
            requests(llm)
            assert compiled.variants == before, compiled.variants - before
            assert llm.stats["gpu"]["misses"] > 0
    compiled.variants.clear()
    with load(path, gpu_memory=sizes["half"], miss="cpu") as llm:
        before = set(compiled.variants)
        requests(llm)
        assert compiled.variants == before and llm.stats["actions"]["cpu"]["count"] > 0


def test_without_it_requests_compile(tmp_path: Path, card: FakeDevice, compiled: Compiled) -> None:
    with load(write_model(tmp_path / "m.gguf", "qwen3moe")) as llm:
        before = set(compiled.variants)
        llm.logits(ids(2))
        first = set(compiled.variants)
        llm.logits(ids(40))
        assert before < first < compiled.variants


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("rehearsal") / "m.gguf", "qwen3moe")


@pytest.mark.parametrize("half", [False, True])
def test_it_leaves_no_trace(model: Path, card: FakeDevice, half: bool) -> None:
    with load(model, device="cpu") as llm:
        given = {"gpu_memory": memory(llm.budget, "half"), "prefetch": "none"} if half else {}
    found: list[Any] = []
    for compiles in (False, True):
        card.compiles = compiles
        model.with_suffix(".trace").unlink(missing_ok=True)
        with load(model, context=64, **given) as llm:
            kv = llm._engine.runner.kv
            assert not any(part.inner.any() for layer in kv.layers for part in (layer.keys, layer.values))
            assert not half or not llm.cache.chooser.recorder.rows
            first, logits, last = llm.stats, llm.logits(ids(40)), llm.stats
            found.append([plain(first), logits.tolist(), plain(last), notices(llm)])
    assert found[0] == found[1]


def plain(stats: dict[str, Any]) -> dict[str, Any]:
    """Counters, without seconds."""
    return {
        name: plain(value) if isinstance(value, dict) else value
        for name, value in stats.items()
        if not name.endswith("seconds")
    }


def notices(llm: gmoe.LLM) -> list[str]:
    return [notice for notice in llm.notices if not notice.startswith("kernels for a fake card took ")]


def test_steps_of_one_token_are_recorded(model: Path, card: FakeDevice) -> None:
    card.compiles = True
    with load(model, context=64) as llm:
        steps = llm._engine.runner.model._steps
        assert [(rows, step is not None) for (rows, _, _), step in steps.items()] == [(1, True), (2, True), (3, True)]
        want = llm.logits(ids(4), 1)
    card.compiles = False
    with load(model, context=64) as llm:
        assert np.array_equal(llm.logits(ids(4), 1), want)


def test_memory_that_ends_meanwhile(model: Path, card: FakeDevice) -> None:
    card.compiles = True
    with load(model, context=64) as llm:
        everything, want = llm.store.slots, llm.logits(ids(9))
    launch = DeviceDispatch.launch

    def short(self: DeviceDispatch, *args: Any) -> Tensor:
        if self.fast.slots == everything:
            raise torch.OutOfMemoryError("a pass is larger than was thought")
        return launch(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeviceDispatch, "launch", short)
        with load(model, context=64) as llm:
            assert llm.store.slots < everything and np.array_equal(llm.logits(ids(9)), want)
            assert sum("ran out of memory" in notice for notice in llm.notices) == 1


def test_it_says_how_far_it_is_and_how_long_it_took(model: Path, card: FakeDevice) -> None:
    said: list[str] = []
    with load(model, context=64) as llm:
        notices, seconds = list[str](), iter([0.0, 34.4])
        rehearse(llm._engine, card, notices, said.append, lambda: next(seconds))
    assert notices == ["kernels for a fake card took 34 s to prepare; compiled ones are kept for next time"]
    total = len(passes(512, 3, 6))
    assert said == [f"preparing kernels for a fake card: {n} of {total} passes" for n in range(total)]


def test_it_can_be_interrupted(model: Path, card: FakeDevice) -> None:
    with load(model, context=64) as llm:
        want, dispatch = llm.logits(ids(9)), llm.dispatch

        def stop(said: str) -> None:
            if said.startswith("preparing kernels for a fake card: 2 "):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            rehearse(llm._engine, card, [], stop)
        assert dispatch.instead is None and np.array_equal(llm.logits(ids(9)), want)


def test_passes_of_all_sizes() -> None:
    assert passes(512, 4, 100)[:4] == [[1], [1, 1], [1, 1, 1, 1], [2]]
    assert passes(20, 1, 1) == [[1], [2], [4], [8], [16], [20]]
    assert passes(64, 100, 50) == [*([1] * n for n in (1, 2, 4, 8, 16, 32)), *([n] for n in (2, 4, 8, 16, 32, 64))] + [
        [2] + [1] * (n - 1) for n in (2, 4, 8, 16, 32)
    ]
