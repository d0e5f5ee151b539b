"""How many launches a layer of a decode step takes where every expert is on the device; nothing else is on its way."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton", reason="triton is not installed")

from triton.runtime import interpreter

import gmoe
from tests import fake_device
from tests.factory import Shape, write_model
from tests.fake_device import FakeDevice, FakeTensor

KERNELS = ["_linears", "_heads", "_store", "_attend", "_merge", "_matmul", "_norm"]  # of attention, then of the experts
KERNELS += ["_matmul", "_choose", "_gate_up", "_down", "_combine", "_norm"]  # a norm with the sum before it


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all kernels, Triton's and torch's, in order."""
    names: list[str] = []
    monkeypatch.setattr("gmoe.llm.open_device", lambda name: FakeDevice() if name.startswith("cuda") else None)
    monkeypatch.setattr(FakeDevice, "computes", staticmethod(fake_device.interpreted))
    launch, run = interpreter.GridExecutor.__call__, fake_device._run

    def of_triton(self: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(self.fn.__name__)
        return launch(self, *args, **kwargs)

    def of_torch(func: Any, args: Any, kwargs: Any) -> Any:
        out = run(func, args, kwargs)
        name, given = func._schema.name, fake_device._flat((args, kwargs))
        here = {a.inner.untyped_storage().data_ptr() for a in given if isinstance(a, FakeTensor)}
        fresh = isinstance(out, FakeTensor) and out.inner.untyped_storage().data_ptr() not in here
        if "empty" not in name and (fresh or func._schema.is_mutable):
            names.append(name)
        return out

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", of_triton)
    monkeypatch.setattr(fake_device, "_run", of_torch)
    return names


def test_a_layer_of_qwen3moe_is_thirteen_launches(launched: list[str], tmp_path: Path) -> None:
    """The shorter model's launches in front, a layer's more behind."""
    said: list[list[str]] = []
    for layers in (1, 2):
        path = write_model(tmp_path / f"{layers}.gguf", "qwen3moe", shape=Shape(layer=layers))
        options = gmoe.RuntimeOptions(context=64, max_sequences=1, device="cuda")
        with gmoe.LLM.load(path, options) as llm:
            assert llm.store.whole
            llm.logits([5, 6])
            launched.clear()
            llm.logits([7])
            said.append(launched.copy())
    before = said[0].index("_norm") + 1
    assert len(KERNELS) == 13
    assert said[1] == [*said[1][:before], *KERNELS, *said[0][before:]]
