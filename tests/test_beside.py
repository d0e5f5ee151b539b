"""The shared expert is computed while routed ones are fetched: read from the disk, or waited for on a device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gmoe
from gmoe.layers.ffn import MoEFFN
from tests import fake_device
from tests.factory import write_model
from tests.fake_device import FakeDevice
from tests.test_device_offload import host_memory, memory

IDS = [3, 4, 5, 6, 7]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("beside") / "m.gguf", "qwen2moe")


def load(path: Path, **options: Any) -> gmoe.LLM:
    return gmoe.LLM.load(path, gmoe.RuntimeOptions(**{"context": 64, "max_sequences": 1} | options))


def watched(llm: gmoe.LLM, look: Any) -> list[Any]:
    """What `look` gives whenever a shared expert begins."""
    seen: list[Any] = []

    def wrap(shared: Any) -> Any:
        return lambda x: (seen.append(look()), shared(x))[1]

    for ffn in llm.model.ffn:
        if isinstance(ffn, MoEFFN):
            ffn.shared = wrap(ffn.shared)
    return seen


def test_while_experts_are_read(model: Path) -> None:
    with load(model) as llm:
        want, limit = llm.logits(IDS), host_memory(llm.budget, "half")
    with load(model, host_memory=limit) as llm:
        reads = watched(llm, lambda: len(llm.store._flying))
        assert np.array_equal(llm.logits(IDS), want)
        assert len(reads) == len(llm.layout.layers) and reads[0] > 0


def test_before_the_host_waits(model: Path, card: FakeDevice) -> None:
    card.hurry = 1.0  # copies are fast: no buffer is waited for
    with load(model) as llm:
        part = memory(llm.budget, "half")
    with load(model, device="cuda") as llm:
        want = llm.logits([IDS[0]])
    with load(model, device="cuda", gpu_memory=part, miss="load") as llm:
        llm.logits(IDS)
        waits = watched(llm, lambda: len(fake_device.syncs))
        fake_device.syncs.clear()
        got = llm.logits([IDS[0]])
        assert waits == list(range(len(llm.layout.layers)))  # one wait a layer, and each comes after
        assert np.array_equal(got, want)
