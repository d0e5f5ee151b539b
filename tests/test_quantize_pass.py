"""gmoe quantize and twin: llama-quantize's mixes, files that load, nothing half-written, refusals in a sentence."""

import resource
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from gmoe.kernels.reference import dequantize

import gmoe
from gmoe.cli.main import cli
from gmoe.experts.twin import FINGERPRINT, open_twin
from gmoe.gguf.file import GGUFError, GGUFFile
from gmoe.gguf.hparams import Hparams
from gmoe.gguf.layout import ExpertLayout
from gmoe.gguf.rewrite import identity, rewrite
from gmoe.passes.mixes import BASES, Plan
from gmoe.passes.quantize import quantize, read_importance
from tests.factory import Shape, write_model

IDS = [3, 9, 27, 4, 50, 8, 100]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantize")
    return write_model(folder / "tiny.gguf", quant="F32", shape=Shape(embd=256, ff_exp=256, layer=2, expert=4, used=4))


def invoke(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def types(path: Path) -> dict[str, str]:
    with GGUFFile.open(path) as file:
        return {name: info.format.name for name, info in file.tensors.items()}


def logits(path: Path) -> np.ndarray:
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(activations="float", context=64, kv_type="f32")) as llm:
        return llm.logits(IDS)


@pytest.mark.parametrize("name", BASES)
def test_every_mix_is_written_and_its_file_type_said(model: Path, name: str) -> None:
    with GGUFFile.open(model) as file:
        found = Plan(file, name).types
    assert found["blk.0.ffn_gate_inp.weight"] == found["blk.0.attn_norm.weight"] == "F32"
    assert found["blk.1.ffn_up_exps.weight"] == BASES[name]


def test_a_mix_lifts_what_llama_quantize_lifts(tmp_path: Path) -> None:
    deep = write_model(tmp_path / "deep.gguf", shape=Shape(embd=256, ff_exp=256, layer=8, expert=1, used=1))
    out = tmp_path / "out.gguf"
    assert invoke("quantize", deep, out, "q4_k_m").exit_code == 0
    deep.unlink()
    found = types(out)
    down = [found[f"blk.{n}.ffn_down_exps.weight"] for n in range(8)]
    assert down == ["Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K", "Q6_K"]
    assert found["output.weight"] == "Q6_K"
    assert found["token_embd.weight"] == "Q4_K"
    with GGUFFile.open(out) as file:
        assert file.metadata["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert list(tmp_path.iterdir()) == [out]


def test_the_written_files_run_and_more_bits_are_nearer(model: Path, tmp_path: Path) -> None:
    want, errors = logits(model), []
    for name in ("BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q2_K"):
        quantize(model, tmp_path / "out.gguf", name)
        quantize(tmp_path / "out.gguf", tmp_path / "back.gguf", "F32", requantize=True)
        got = logits(tmp_path / "out.gguf")
        np.testing.assert_allclose(got, logits(tmp_path / "back.gguf"), atol=1e-4)
        errors.append(float(np.sqrt(np.mean((got - want) ** 2))))
    assert 0 < errors[0] < errors[1] < errors[2] < errors[3] < errors[4] < 2 * want.std()


def test_tensor_types_win_and_rows_that_are_no_blocks_fall_back(tmp_path: Path) -> None:
    odd = write_model(tmp_path / "odd.gguf", shape=Shape(embd=64, ff_exp=32))
    out = tmp_path / "out.gguf"
    args = ("--tensor-type", "ffn_(up|gate)_exps=q4_0", "--tensor-type", "attn_k=f16", "--tensor-type", "attn=Q8_0")
    assert invoke("quantize", odd, out, "Q4_K_S", *args).exit_code == 0
    found = types(out)
    assert found["blk.0.ffn_up_exps.weight"] == "Q4_0"
    assert (found["blk.0.attn_k.weight"], found["blk.0.attn_q.weight"]) == ("F16", "Q8_0")
    assert found["token_embd.weight"] == "Q5_0"
    assert found["output.weight"] == "Q8_0"


def write_imatrix(path: Path, name: str, sums: np.ndarray, counts: np.ndarray) -> None:
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_tensor(f"{name}.in_sum2", sums)
    writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("sums", "counts", "said"),
    [
        (np.ones((3, 256)), np.ones((3, 1)), "blk.0.ffn_up_exps.weight: the importance matrix has [3, 256] numbers"),
        (np.ones((4, 512)), np.ones((4, 1)), "the importance matrix has [4, 512] numbers, the tensor needs [4, 256]"),
        (
            np.ones((4, 256)),
            np.ones((3, 1)),
            "odd.gguf is not a valid GGUF file: blk.0.ffn_up_exps.weight.counts has 3",
        ),
        (np.full((4, 256), np.nan), np.ones((4, 1)), "blk.0.ffn_up_exps.weight.in_sum2 and its counts must be finite"),
        (np.ones((4, 256)), -np.ones((4, 1)), "blk.0.ffn_up_exps.weight.in_sum2 and its counts must be finite"),
    ],
)
def test_the_importance_of_another_model_is_refused(
    model: Path, tmp_path: Path, sums: np.ndarray, counts: np.ndarray, said: str
) -> None:
    odd, out = tmp_path / "odd.gguf", tmp_path / "out.gguf"
    write_imatrix(odd, "blk.0.ffn_up_exps.weight", sums.astype(np.float32), counts.astype(np.float32))
    result = invoke("quantize", model, out, "Q2_K", "--imatrix", odd)
    assert result.exit_code == 1 and said in result.stderr and not out.exists()


def test_importance_is_read_and_used(model: Path, tmp_path: Path) -> None:
    name, rng = "blk.0.ffn_up_exps.weight", np.random.default_rng(0)
    weight, count = rng.lognormal(0, 2, (4, 256)).astype(np.float32), np.array([[8], [1], [2], [0]], np.float32)
    write_imatrix(tmp_path / "imatrix.gguf", name, weight * count, count)
    errors = []
    for args in ((), ("--imatrix", tmp_path / "imatrix.gguf")):
        result = invoke("quantize", model, tmp_path / "out.gguf", "Q2_K", *args)
        assert result.exit_code == 0, result.stderr
        with GGUFFile.open(model) as a, GGUFFile.open(tmp_path / "out.gguf") as b:
            diff = dequantize(a.view(name))[:3] - dequantize(b.view(name))[:3]
        errors.append(float((diff.numpy() ** 2 * weight[:3, None]).sum()))
    assert errors[1] < 0.95 * errors[0]


def test_importance_is_measured_and_makes_a_better_twin(model: Path, tmp_path: Path) -> None:
    text, found = tmp_path / "text.txt", tmp_path / "found.gguf"
    text.write_text("the cat sat on the mat and " * 40)
    result = invoke("imatrix", model, "-f", text, "-o", found, "-c", 32, "--chunks", 4)
    assert result.exit_code == 0 and "4 windows" in result.stderr, result.stderr
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(context=32)) as llm:
        ids = llm.tokenizer.encode(text.read_text(), add_special=False, parse_special=False)
        block, given = llm.model.ffn[1], []
        before = block.dispatch
        block.dispatch = lambda layer, x, *args: given.append(x.clone()) or before(layer, x, *args)
        for n in range(4):
            llm.logits(ids[32 * n : 32 * n + 32])
        x = torch.cat(given)
        gate, up = (dequantize(llm.file.view(f"blk.1.ffn_{role}_exps.weight")) for role in ("gate", "up"))
        hidden = torch.nn.functional.silu(x @ gate[0].T) * (x @ up[0].T)  # all four experts of four are chosen
    of = read_importance(found)
    assert {name for name in types(model) if "_exps" in name} == set(of)
    for role, want in (("gate", x), ("up", x), ("down", hidden)):
        np.testing.assert_allclose(of[f"blk.1.ffn_{role}_exps.weight"][0], want.square().mean(0), rtol=0.05, atol=1e-6)
    errors = []
    for args in ((), ("--imatrix", found)):
        assert invoke("twin", model, "--type", "Q2_K", "-o", tmp_path / "twin.gguf", *args).exit_code == 0
        with GGUFFile.open(tmp_path / "twin.gguf") as file:
            low = dequantize(file.view("blk.1.ffn_gate_exps.weight"))
        errors.append(float(((x @ low[0].T - x @ gate[0].T) ** 2).sum()))
    assert errors[1] < errors[0]


def test_a_twin_holds_the_experts_and_knows_its_model(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "twin.gguf"
    result = invoke("twin", model, "--type", "Q2_K", "-o", out)
    assert result.exit_code == 0
    assert set(types(out)) == {name for name in types(model) if "_exps" in name}
    with GGUFFile.open(model) as file:
        hparams = Hparams.from_metadata(file.metadata, str(model))
        layout = ExpertLayout(file, hparams.n_layer, hparams.n_expert)
        _, twins = open_twin(out, file, layout)
        assert twins.expert_bytes(0) * 10 < layout.expert_bytes(0)
    other = write_model(tmp_path / "other.gguf", seed=1, shape=Shape(embd=256, ff_exp=256, layer=2, expert=4, used=4))
    with GGUFFile.open(other) as file, pytest.raises(GGUFError, match="the twin was made of tiny.gguf, not of"):
        open_twin(out, file, layout)
    with GGUFFile.open(model) as file, pytest.raises(GGUFError, match="the file is no twin"):
        open_twin(model, file, layout)
    with GGUFFile.open(out) as file:
        rewrite(file, tmp_path / "odd.gguf", identity, {FINGERPRINT: [1, 2]})
    with GGUFFile.open(model) as file, pytest.raises(GGUFError, match="the twin was made of tiny.gguf, not of"):
        open_twin(tmp_path / "odd.gguf", file, layout)


def test_refusals(model: Path, tmp_path: Path) -> None:
    quantize(model, tmp_path / "q8.gguf", "Q8_0")
    out = tmp_path / "out.gguf"
    with GGUFFile.open(model) as file:
        rewrite(file, tmp_path / "odd.gguf", identity, {"qwen3moe.block_count": "two"})
    wrong = [
        (("quantize", model, out, "Q9_K"), "Q9_K is not a type that can be written; known: F32, F16"),
        (("quantize", model, out, "Q8_0", "--tensor-type", "x"), "--tensor-type 'x' is not REGEX=TYPE"),
        (("quantize", model, out, "Q8_0", "--tensor-type", "x=IQ1_S"), "IQ1_S cannot be written; known:"),
        (("quantize", model, out, "Q8_0", "--tensor-type", "(=F16"), "the expression is not valid"),
        (("twin", model, "--type", "IQ1_M"), "a twin cannot be of type IQ1_M; known: F32"),
    ]
    for args, text in wrong:
        result = invoke(*args)
        assert (result.exit_code, result.stdout) == (2, "") and text in result.stderr, result.stderr
    cases = [
        (("quantize", tmp_path / "odd.gguf", out, "Q8_0"), "odd.gguf: qwen3moe.block_count: must be a whole number"),
        (("quantize", tmp_path / "q8.gguf", out, "Q4_0"), "token_embd.weight: is Q8_0 already; take an F16"),
        (("quantize", model, out, "Q8_0", "--imatrix", model), "it is not an importance matrix"),
        (("quantize", model, tmp_path / "no" / "out.gguf", "Q8_0"), "No such file or directory; nothing was written"),
    ]
    for args, text in cases:
        result = invoke(*args)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.count("\n") == 1 and text in result.stderr, result.stderr
    assert invoke("quantize", tmp_path / "q8.gguf", out, "Q4_0", "--allow-requantize").exit_code == 0


def test_a_disk_that_is_full_leaves_nothing(model: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    code = "from gmoe.cli.main import cli; cli()"
    command = [sys.executable, "-c", code, "quantize", str(model), str(tmp_path / "out.gguf"), "Q8_0"]
    result = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == f"Error: {tmp_path / 'out.gguf'}: File too large; nothing was written\n"
    assert not list(tmp_path.iterdir())
