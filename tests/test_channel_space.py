"""State spaces by channel: the rule itself, and the same bits however much is computed at once and whatever beside."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gmoe.kernels.recurrent import StateLayer

from gmoe.layers import channel_space
from gmoe.layers.channel_space import NormedMamba
from gmoe.llm import LLM
from gmoe.options import RuntimeOptions
from tests.factory import write_model

BEGINS = [0, 5, 6, 46]
SLOTS = [[0, -1, 3], [0, 2, 4], [1, -1, 5], [2, 0, 33]]  # from, to, what is kept, behind how many rows
SLOTS_APART = [[[row[n]] for row in SLOTS] for n in range(3)]


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> NormedMamba:
    path = write_model(tmp_path_factory.mktemp("models") / "m.gguf", "jamba")
    with LLM.load(path, RuntimeOptions(device="cpu", activations="float", context=64, threads=2)) as llm:
        layer = llm.model.attn[0]
        assert isinstance(layer, NormedMamba)
        layer.a, layer.d = layer.a.clone(), layer.d.clone()
        return layer


def given(layer: NormedMamba) -> list[torch.Tensor]:
    """x, dt, b and c of the rows of three sequences."""
    wide, dk = layer.state_shape.dv, layer.state_shape.dk
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.standard_normal((BEGINS[-1], n), np.float32)) for n in (wide, wide, dk, dk)]


def states(layer: NormedMamba) -> StateLayer:
    state = StateLayer(layer.state_shape, 6)
    state.matrices.copy_(torch.from_numpy(np.random.default_rng(1).standard_normal(state.matrices.shape, np.float32)))
    return state


def learn(
    layer: NormedMamba, rows: list[torch.Tensor], state: StateLayer, begins: list[int], slots: Any
) -> torch.Tensor:
    batch: Any = SimpleNamespace(begins=begins, slots=np.array(slots, np.int32))
    return layer.learn(*rows, state, batch)


def test_the_rule_is_that_of_the_paper(layer: NormedMamba) -> None:
    rows, state = given(layer), states(layer)
    want, before = state.matrices[:, 0].double().numpy(), state.matrices[:, 0].double().numpy()
    got = learn(layer, rows, state, BEGINS, SLOTS)
    x, dt, b, c = (part.double().numpy() for part in rows)
    a, d, step = layer.a.double().numpy(), layer.d.double().numpy(), np.log1p(np.exp(dt))
    for n, (source, target, kept, after) in enumerate(zip(*SLOTS, strict=True)):
        s = before[source] if source >= 0 else np.zeros_like(before[0])
        for t in range(BEGINS[n], BEGINS[n + 1]):
            s = np.exp(step[t] * a) * s + b[t][:, None] * (step[t] * x[t])
            np.testing.assert_allclose(got[t], c[t] @ s + d * x[t], atol=2e-5, rtol=0)
            if kept >= 0 and t - BEGINS[n] + 1 == after:
                want[kept] = s
        want[target] = s
    np.testing.assert_allclose(state.matrices[:, 0], want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("most", [16, 100, 3000])
def test_it_is_the_same_in_bands_of_channels_and_a_few_rows_at_a_time(
    layer: NormedMamba, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, whole, parts = given(layer), states(layer), states(layer)
    want = learn(layer, rows, whole, BEGINS, SLOTS)
    monkeypatch.setattr(channel_space, "AT_ONCE", most)
    assert torch.equal(learn(layer, rows, parts, BEGINS, SLOTS), want)
    assert torch.equal(parts.matrices, whole.matrices)


def test_sequences_together_are_those_alone(layer: NormedMamba) -> None:
    rows, together, alone = given(layer), states(layer), states(layer)
    want = learn(layer, rows, together, BEGINS, SLOTS)
    for n, slots in enumerate(SLOTS_APART):
        its = slice(BEGINS[n], BEGINS[n + 1])
        got = learn(layer, [part[its] for part in rows], alone, [0, its.stop - its.start], slots)
        assert torch.equal(got, want[its])
    assert torch.equal(alone.matrices, together.matrices)
