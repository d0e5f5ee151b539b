"""Whole models on a CUDA card, where there is one: the CPU's logits, and no bit that depends on what is where."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gmoe
from gmoe.experts.device_slots import device_groups
from tests.factory import write_model

PROMPTS = [list(range(3, 14)), [7], [250, 9, 30], list(range(1, 50))]
ARCHITECTURES = (
    *("qwen3moe", "deepseek2", "gpt-oss", "llama4", "qwen2moe", "granitemoe", "afmoe", "glm4moe"),
    *("qwen35moe", "lfm2moe", "granitehybrid", "kimi-linear"),
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA card")


def logits(path: Path, **options: Any) -> tuple[list[np.ndarray], list[np.ndarray], gmoe.LLM]:
    """Of the prompts, each at once and token by token, which is recorded as a graph where it can be."""
    given: dict[str, Any] = {"context": 64, "max_sequences": 1, "activations": "float", "threads": 1}
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(**given | options)) as llm:
        return [llm.logits(ids) for ids in PROMPTS], [llm.logits(ids, 1) for ids in PROMPTS], llm


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_card_says_what_the_cpu_says(architecture: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf", architecture)
    want, _, _ = logits(path)
    whole, steps, llm = logits(path, device="cuda")
    assert llm.store.whole and not [notice for notice in llm.notices if "kernel by kernel" in notice]
    for got in (whole, steps):
        for ours, theirs in zip(got, want, strict=True):
            assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
    groups, _ = device_groups(llm.budget.layout)
    for share in (0.0, 0.5):
        slots = sum(max(1, int(share * group.experts)) * group.slot_bytes for group in groups)
        memory = str(llm.budget.fixed + slots)
        again, again_by_steps, other = logits(path, device="cuda", gpu_memory=memory, miss="load")
        assert not other.store.whole
        assert all(map(np.array_equal, again, whole)) and all(map(np.array_equal, again_by_steps, steps))
        for miss in ("cpu", "balance"):
            for ours, theirs in zip(logits(path, device="cuda", gpu_memory=memory, miss=miss)[0], whole, strict=True):
                assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
