"""The trainer of the demo model: corpus, network, resuming, export."""

import json
import lzma
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from tests.demo_corpus import write_corpus
from tools import train_demo
from tools.compare_logits import of_checkpoint, of_torch
from tools.demo.corpus import DOMAINS, END_OF_TEXT, Packed, pack, to_chatml, token_lengths
from tools.demo.fused import Mixture, Normalize, TokenLoss
from tools.demo.model import Model, Shape
from tools.demo.muon import orthogonalize

SHAPE = Shape(n_vocab=320, n_ctx=32, n_embd=32, n_layer=2, n_head=2, n_head_kv=1, head_dim=16, n_expert=4, n_ff_exp=32)
PRESET = replace(train_demo.PRESETS["smoke"], shape=SHAPE, shorter=2, batch=4, micro=2, steps=12, warmup=2, decay=4)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on a busy machine mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def packed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack(corpus, folder, SHAPE.n_vocab, 3000)
    return folder


def test_turns_become_chatml() -> None:
    tagged = "<|user|>\nHello.\nWell?\n<|assistant|>\nHi.\n<|end|>\n<|user|>\nBye.\n<|assistant|>\nSo long.\n<|end|>\n"
    assert to_chatml(tagged) == (
        "<|im_start|>user\nHello.\nWell?<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
        "<|im_start|>user\nBye.<|im_end|>\n<|im_start|>assistant\nSo long.<|im_end|>\n"
    )
    assert to_chatml("if a <|user|> b:\n") == "if a <|user|> b:\n"


def test_packed_documents_decode_to_the_corpus(corpus: Path, packed: Path) -> None:
    tokenizer = Tokenizer.from_file(str(packed / "tokenizer.json"))
    test = Packed.open(packed, "test")
    first, end = test.span(DOMAINS.index("stories"))
    text = tokenizer.decode(test.tokens[first:end].tolist(), skip_special_tokens=False)
    original = lzma.open(corpus / "stories.test.txt.xz", "rt", encoding="utf-8").read()
    assert text == original.replace("<|doc|>\n", END_OF_TEXT) + END_OF_TEXT
    assert token_lengths(tokenizer)[test.tokens[first:end]].sum() == len(original.replace("<|doc|>\n", "").encode())
    assert np.unique(test.domains).tolist() == list(range(len(DOMAINS)))


def test_grouped_experts_equal_one_token_after_the_other() -> None:
    torch.manual_seed(1)
    block = Model(SHAPE).blk[0]
    torch.nn.init.normal_(block.ffn_down_exps.weight)
    x = torch.randn(11, SHAPE.n_embd)
    ids, weights, balance = block.route(x)
    expected = torch.zeros_like(x)
    gate, up, down = (m.weight for m in (block.ffn_gate_exps, block.ffn_up_exps, block.ffn_down_exps))
    for t in range(len(x)):
        for e, w in zip(ids[t].tolist(), weights[t], strict=True):
            expected[t] += w * (down[e] @ (F.silu(gate[e] @ x[t]) * (up[e] @ x[t])))
    torch.testing.assert_close(block.experts(x, ids, weights), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block.grouped_experts(x, ids, weights), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(11))
    assert balance >= 0.5


def test_written_out_gradients_are_the_numerical_ones() -> None:
    torch.manual_seed(4)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x, w: Normalize.apply(x, w, 1e-6), (some(2, 3, 8), some(8)))
    ids, targets = (
        torch.tensor([[0, 2], [2, 1], [0, 1], [2, 0], [2, 1]]),
        torch.tensor([3, 0, 6, 6, 1]),
    )  # no token to 3
    matrices = some(4, 3, 6), some(4, 3, 6), some(4, 6, 3)
    assert torch.autograd.gradcheck(lambda x, *w: Mixture.apply(x, ids, *w), (some(5, 6), some(5, 2), *matrices))
    x, head = some(5, 6), some(7, 6)
    assert torch.autograd.gradcheck(lambda x, head: TokenLoss.apply(x, head, targets), (x, head))
    torch.testing.assert_close(TokenLoss.apply(x, head, targets), F.cross_entropy(x @ head.T, targets))


def test_two_processes_do_what_one_does(corpus: Path, tmp_path: Path) -> None:
    arguments = ["--preset", "smoke", "--corpus", str(corpus), "--minutes", "0", "--types", "--out"]
    train_demo.main([*arguments, str(tmp_path / "1")])
    command = [sys.executable, "-m", "tools.train_demo", *arguments, str(tmp_path / "2"), "--processes", "2"]
    subprocess.run(command, check=True, timeout=120, cwd=Path(__file__).parents[1])
    one, two = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in "12")
    assert one["step"] == two["step"] == 1
    assert one["curve"][0][1] == pytest.approx(two["curve"][0][1], rel=1e-5)
    for name, weight in one["model"].items():
        torch.testing.assert_close(two["model"][name], weight, rtol=1e-3, atol=1e-4)


def test_no_token_sees_the_future() -> None:
    torch.manual_seed(2)
    model = Model(SHAPE)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(0, SHAPE.n_vocab, (1, 16))
    other = ids.clone()
    other[0, 10:] = (other[0, 10:] + 1) % SHAPE.n_vocab
    with torch.no_grad():
        one, two = model(ids)[0][0], model(other)[0][0]
    torch.testing.assert_close(one[:10], two[:10])
    assert not torch.allclose(one[10:], two[10:])


@pytest.mark.parametrize("shape", [(3, 32, 32), (64, 16), (16, 64)])
def test_muon_updates_are_nearly_orthogonal(shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    singular = torch.linalg.svdvals(orthogonalize(torch.randn(shape)).float())
    assert singular.max() < 1.3 and singular.median() > 0.6


def test_rates_warm_up_hold_and_decay() -> None:
    shares = [train_demo.rate(step, 4, 10, 20) for step in range(21)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4:11] == [1.0] * 7
    assert shares[15] == 0.5 and shares[20] == 0.0


def test_a_resumed_run_is_the_uninterrupted_one(packed: Path, tmp_path: Path) -> None:
    data = Packed.open(packed, "train")
    whole = train_demo.Training(PRESET, data, "cpu", seed=5)
    train_demo.train(whole, 12, 8, 10.0, tmp_path / "whole.pt")
    half = train_demo.Training(PRESET, data, "cpu", seed=5)
    for step in range(6):
        half.advance(train_demo.rate(step, PRESET.warmup, 8, 12), PRESET.shorter)
    train_demo.save_atomically(half.state(), tmp_path / "half.pt")
    rest = train_demo.Training(PRESET, data, "cpu", seed=9)
    rest.load(tmp_path / "half.pt")
    train_demo.train(rest, 12, 8, 10.0, tmp_path / "rest.pt")
    assert rest.curve == whole.curve
    assert whole.curve[-1][1] < whole.curve[0][1] - 0.5
    other = train_demo.Training(replace(PRESET, shape=replace(SHAPE, n_layer=1)), data, "cpu", seed=5)
    with pytest.raises(ValueError, match="half.pt: the checkpoint has another shape"):
        other.load(tmp_path / "half.pt")


def test_command_line_trains_and_exports(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(train_demo.PRESETS, "smoke", PRESET)
    arguments = ["--preset", "smoke", "--out", str(tmp_path), "--corpus", str(corpus), "--types", "F16", "Q8_0"]
    train_demo.main(arguments)
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["steps"] == 12 and record["tokens"] == 12 * 4 * 32
    assert set(record["bits_per_byte"]) == set(DOMAINS)
    assert "step 12/12" in capsys.readouterr().err
    assert (tmp_path / "loss.png").stat().st_size > 0
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    reader = gguf.GGUFReader(tmp_path / "demo-F16.gguf")
    assert {t.name for t in reader.tensors} == set(saved)
    for tensor in reader.tensors:
        exact = saved[tensor.name].numpy()
        assert tuple(reversed(tensor.shape)) == exact.shape
        np.testing.assert_allclose(gguf.dequantize(tensor.data, tensor.tensor_type), exact, rtol=1e-3, atol=1e-6)
    assert (tmp_path / "demo-Q8_0.gguf").stat().st_size < (tmp_path / "demo-F16.gguf").stat().st_size
    ids = list(range(20))
    of_file, of_network = of_torch(tmp_path / "demo-F16.gguf", ids), of_checkpoint(tmp_path / "finished.pt", ids)
    np.testing.assert_allclose(of_file, of_network, atol=1e-5)
    train_demo.main([*arguments, "--finish", "2", "--types"])
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 14
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 12
    train_demo.main([*arguments, "--finish-minutes", "0.02", "--types"])
    assert json.loads((tmp_path / "result.json").read_text())["steps"] > 13


def test_the_files_tokenizer_is_the_trained_one(packed: Path, tmp_path: Path) -> None:
    reading = pytest.importorskip("gmoe.tokenizer.tokenizer")
    tokenizer = Tokenizer.from_file(str(packed / "tokenizer.json"))
    train_demo.export(Model(SHAPE).state_dict(), SHAPE, tokenizer, tmp_path / "model.gguf", "F16")
    text = "It's 1234 sto3 dia5,\n\n  été: x_y(z)\r\n\t"
    assert reading.Tokenizer.from_file(tmp_path / "model.gguf").encode(text) == tokenizer.encode(text).ids


def test_types_that_cannot_be_written_are_refused(packed: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(packed / "tokenizer.json"))
    with pytest.raises(ValueError, match="Q9_K is not a type that can be written; known: F32, F16"):
        train_demo.export(Model(SHAPE).state_dict(), SHAPE, tokenizer, tmp_path / "model.gguf", "Q9_K")
