"""What is measured of the demo model, on texts and traces whose measures are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from gmoe.experts.trace import Header, Trace
from tests.demo_corpus import write_corpus
from tools import measure_demo
from tools.demo import gates, habits
from tools.demo.bits import Measured, model_bits, stretches
from tools.demo.corpus import DOMAINS, pack
from tools.demo.export import export
from tools.demo.model import Model, Shape
from tools.demo.ngram import NGram

SHAPE = Shape(n_vocab=320, n_ctx=32, n_embd=32, n_layer=2, n_head=2, n_head_kv=1, head_dim=16, n_expert=4, n_ff_exp=32)


def noisy(shape: Shape) -> Model:
    torch.manual_seed(1)
    model = Model(shape)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return model


def test_an_ngrams_chances_sum_to_one_and_it_knows_what_it_saw() -> None:
    text = np.random.default_rng(0).integers(0, 5, 400)
    ngram = NGram(text, 5, 3)
    for context in ([0, 1], [4, 4], [3, 2]):
        total = sum(ngram.probabilities(np.array([*context, token]))[0] for token in range(5))
        assert total == pytest.approx(1)
    cycle = NGram(np.tile(np.arange(7), 50), 9, 5)
    assert cycle.probabilities(np.arange(7)).min() > 0.95
    assert cycle.probabilities(np.array([0, 1, 2, 3, 8]))[0] < 0.01


def test_bits_are_those_of_every_token_with_half_a_context() -> None:
    model, lengths = noisy(SHAPE), np.arange(SHAPE.n_vocab) % 4
    text = np.random.default_rng(2).integers(0, SHAPE.n_vocab, 90)
    expected = 0.0
    for at in range(1, len(text)):
        start = max(0, (at - 1) // 16 * 16 - 16) if at > 32 else 0
        with torch.no_grad():
            logits = model(torch.from_numpy(text[start:at])[None])[0][0, -1]
        expected -= logits.log_softmax(-1)[text[at]].item()
    measured = model_bits(model, text, lengths)
    assert measured.nats == pytest.approx(expected, rel=1e-4)
    assert (measured.tokens, measured.size) == (89, lengths[text[1:]].sum())
    assert [len(part) for part in stretches(text, 64)] == [4] * 16
    assert [len(part) for part in stretches(text, 100)] == [90]
    assert Measured(np.log(2) * 30, 10, 15).bits_per_byte == pytest.approx(2)
    assert Measured(np.log(2) * 30, 10, 15).perplexity == pytest.approx(8)


def trace_of(ids: np.ndarray, tasks: list[str], n_expert: int) -> Trace:
    """ids [requests, tokens, layers, k] in the order in which a model runs."""
    requests, tokens, layers, _ = ids.shape
    request, position, layer = (axis.ravel() for axis in np.indices((requests, tokens, layers)))
    rows = {"step": request * tokens + position, "request": request, "layer": layer, "position": position}
    rows["phase"] = np.ones_like(request)
    flat = ids.reshape(-1, ids.shape[-1]).astype(np.int16)
    header = Header("made", "", layers, n_expert, (1,) * layers, tuple(tasks))
    return Trace(header, rows, flat, np.full(flat.shape, 0.5, np.float32))


def test_tasks_with_experts_of_their_own_tell_all_and_tasks_alike_tell_nothing() -> None:
    rng = np.random.default_rng(3)
    half = rng.permuted(np.tile(np.arange(4), (8, 40, 3, 1)), axis=-1)[..., :2]
    tasks = ["a", "b"] * 4
    apart = habits.Requests.of(trace_of(half + 4 * (np.arange(8) % 2)[:, None, None, None], tasks, 8))
    alike = habits.Requests.of(trace_of(half, tasks, 8))
    np.testing.assert_allclose(habits.domain_information(apart, rng)[0], 1.0, atol=1e-6)
    assert habits.domain_information(alike, rng)[0].max() < 0.02
    assert habits.evenness(apart.matrices.sum(0)).min() > 0.99
    assert habits.evenness(alike.matrices.sum(0)).max() < 0.67
    within, between = habits.within_between(habits.similarities(apart)[0], tasks)
    assert within > 0.9 and between == 0
    assert habits.next_layer(apart, 8)["task"] > habits.next_layer(apart, 8)["popular"] + 0.1
    assert habits.kept(alike).mean() == pytest.approx(0.5, abs=0.1)


def test_layers_that_follow_each_other_are_foreseen() -> None:
    rng = np.random.default_rng(4)
    first = rng.permuted(np.tile(np.arange(6), (4, 50, 1, 1)), axis=-1)[..., :2]
    requests = habits.Requests.of(trace_of(np.concatenate((first, (first + 1) % 6), 2), ["a", "b"] * 2, 6))
    found = habits.next_layer(requests, 6)
    assert found["transition"] == 1.0 and found["popular"] < 0.6
    steady = habits.Requests.of(trace_of(np.tile(first[:, :1], (1, 50, 1, 1)), ["a", "b"] * 2, 6))
    assert habits.kept(steady).tolist() == [1.0] and set(habits.reuse_distances(steady).tolist()) == {1}


def test_a_gate_asked_about_its_own_layer_is_right() -> None:
    model = noisy(SHAPE)
    windows = [np.arange(30) * 7 % SHAPE.n_vocab]
    found = gates.look_ahead(model, windows, 1)
    assert 0 < found[1][0] < 1
    model.blk[1].load_state_dict(model.blk[0].state_dict())
    for block in model.blk:  # which add nothing, so that both layers see the same
        torch.nn.init.zeros_(block.attn_output.weight)
        torch.nn.init.zeros_(block.ffn_down_exps.weight)
    assert gates.look_ahead(model, windows, 1)[1] == (1.0, 1.0)
    shares = gates.shares_by_rank(model, windows)
    assert shares.sum() == pytest.approx(1) and shares[0] > shares[1]


def test_the_three_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write_corpus(tmp_path)
    pack(corpus, tmp_path / "packed", SHAPE.n_vocab, 3000)
    tokenizer = Tokenizer.from_file(str(tmp_path / "packed" / "tokenizer.json"))
    shape = replace(SHAPE, n_embd=64, n_ff_exp=64, n_vocab=tokenizer.get_vocab_size())
    export(noisy(shape).state_dict(), shape, tokenizer, tmp_path / "model.gguf", "Q8_0")
    common = [str(tmp_path / "model.gguf"), "--corpus", str(corpus)]
    measure_demo.main(["bits", *common, "--ngram-tokens", "2000"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == list(DOMAINS)
    assert all(float(line.split(" | ")[4]) < float(line.split(" | ")[2]) for line in lines)  # noise knows less
    trace = str(tmp_path / "t.npz")
    measure_demo.main(["trace", *common, trace, "--rounds", "2", "--window", "18"])
    assert Trace.load(Path(trace)).header.tasks == DOMAINS * 2
    measure_demo.main(["habits", *common, trace, "--pictures", str(tmp_path)])
    assert "2 layers, 2 of 4 experts" in capsys.readouterr().out
    assert {p.name for p in tmp_path.glob("*.png")} == {"demo-experts.png", "demo-similarity.png", "demo-reuse.png"}
