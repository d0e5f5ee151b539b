"""A model whose file is cut off while it runs: an error of every request that needs what is gone, no dead process."""

import os
from pathlib import Path

import numpy as np
import pytest
from gmoe.kernels.cpu_ops import Guard

import gmoe
from gmoe.experts.transfer import TransferError
from tests.factory import Shape, write_model

SHAPE = Shape(layer=3, expert=8, embd=96, ff_exp=96)
PROMPT = list(range(3, 40))


@pytest.mark.parametrize("how", [{}, {"reader": "mapped"}, {"reader": "direct"}], ids=["map", "mapped", "direct"])
def test_it_is_an_error_of_the_request(tmp_path: Path, how: dict[str, str]) -> None:
    path = write_model(tmp_path / "m.gguf", "qwen3moe", shape=SHAPE)
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=64)) as llm:
        want, half = llm.logits(PROMPT), str(llm.budget.fixed + llm.budget.experts // 2)
    options = gmoe.RuntimeOptions(context=64, **how, **({"host_memory": half} if how else {}))
    with gmoe.LLM.load(path, options) as llm:
        assert llm.store.whole == (not how)
        assert np.array_equal(llm.logits(PROMPT), want)
        os.truncate(path, 8192)
        for _ in range(2):
            with pytest.raises(TransferError, match="m.gguf .*cut off while in use"):
                llm.logits(PROMPT)
        with pytest.raises(TransferError, match="cut off while in use"):
            for _ in llm.run(PROMPT, gmoe.SamplingParams(max_tokens=4)):
                pass


def test_a_guard_reads_zeros_behind_the_end(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"\1" * 40000)
    data = np.memmap(path, np.uint8, mode="r")
    guard = Guard(data)
    assert data.sum() == 40000 and not guard.lost
    os.truncate(path, 8192)
    assert data.sum() == 8192 and guard.lost
    guard.close()
    assert not guard.lost
