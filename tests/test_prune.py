"""gmoe prune: the file says what the full one says without those experts, bit for bit; the rest is refused."""

import resource
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result
from gmoe.kernels.formats import FORMATS, QuantTensor

import gmoe
from gmoe.cli.main import cli
from gmoe.gguf.file import GGUFFile, UnsupportedModel
from gmoe.gguf.rewrite import identity, rewrite
from gmoe.passes.eep import search
from gmoe.passes.masked import masked
from gmoe.passes.pack import pack
from gmoe.passes.prune import Pruning
from gmoe.passes.saliency import NAMES, Saliency
from tests.factory import Shape, write_model
from tests.test_gguf import write_split

IDS = [3, 9, 27, 4, 50, 8, 100, 7, 7, 31, 2, 90]
TEXT = "the cat and the dog sat on the mat in the world, and then the old man told them all. " * 12
SIX = Shape(used=2, expert=12, layer=3)


def options(activations: str = "q8") -> gmoe.RuntimeOptions:
    return gmoe.RuntimeOptions(device="cpu", context=64, max_sequences=1, activations=activations)


def logits(path: Path, activations: str = "q8") -> np.ndarray:
    with gmoe.LLM.load(path, options(activations)) as llm:
        return llm.logits(IDS)


def some(pruning: Pruning, seed: int = 0) -> dict[int, tuple[int, ...]]:
    """Another choice in every layer."""
    rng = np.random.default_rng(seed)
    return dict(pruning.best({layer: rng.random(pruning.n_expert) for layer in pruning.layers}))


def invoke(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


ARCHITECTURES = {
    "qwen3moe": 5, "qwen3moe+fused": 3, "deepseek2": 8, "deepseek2+lite": 5, "deepseek2+legacy": 5, "gpt-oss": 7,
    "olmoe": 6, "llama4": 3, "glm4moe": 5, "granitemoe": 1, "afmoe": 6, "qwen3next": 5, "qwen35moe": 4, "lfm2moe": 7,
    "granitehybrid": 5, "nemotron_h_moe": 3, "gemma4": 5, "smallthinker": 4, "dbrx": 5, "arctic": 3,
    "exaone-moe": 5, "mimo2": 7, "cohere2moe": 6, "kimi-linear": 5, "qwen3vlmoe": 7, "mistral4": 5,
    "deepseek": 7, "bailingmoe": 3, "mellum": 5, "step35": 5, "laguna": 5, "hy_v3": 5, "glm5-next": 5,
    "deepseek32": 5, "glm-dsa+shared": 7, "grok+2": 5, "qwen4exp": 5, "bailingmoe3+text": 8,
    "minimax-m3": 5, "minimax-m3+all": 7, "jamba": 5, "maple": 5, "dots3note": 5, "kimi-k3": 5, "hy_v4": 5,
}  # fmt: skip


@pytest.mark.parametrize(("architecture", "keep"), ARCHITECTURES.items())
@pytest.mark.parametrize("quant", ["F32", "Q8_0"])
def test_the_pruned_file_says_what_the_masked_one_says(
    architecture: str, keep: int, quant: str, tmp_path: Path
) -> None:
    shape = Shape(used=1, expert=12, layer=4) if architecture == "llama4" else SIX
    if architecture == "olmoe":
        shape = Shape(used=2, expert=12, layer=3, head_kv=4, ff=32)
    full, out = write_model(tmp_path / "full.gguf", architecture, quant=quant, shape=shape), tmp_path / "out.gguf"
    with gmoe.LLM.load(full, options()) as llm:
        pruning = Pruning(llm.file, keep)
        kept = some(pruning)
        pruning.write(out, kept)
        whole = llm.logits(IDS)
        with masked(llm.model, kept, pruning.used):
            want = llm.logits(IDS)
        assert (llm.logits(IDS) == whole).all() and not (want == whole).all()
    assert (logits(out) == want).all()
    old, new = gguf.GGUFReader(full), gguf.GGUFReader(out)
    assert new.fields[f"{architecture.split('+')[0]}.expert_count"].contents() == keep
    before = {tensor.name: tensor for tensor in old.tensors}
    assert list(before) == [tensor.name for tensor in new.tensors]
    for tensor in new.tensors:
        was, layer = before[tensor.name], int(tensor.name.split(".")[1]) if tensor.name.startswith("blk") else -1
        own = (
            "_exps" in tensor.name
            and "norm" not in tensor.name
            or "gate_inp.w" in tensor.name
            or "gate_inp.b" in tensor.name
        )
        own |= "exp_probs" in tensor.name
        data = was.data[list(kept[layer])] if own and layer in kept else was.data
        assert tensor.tensor_type == was.tensor_type and np.array_equal(tensor.data, data), tensor.name


@pytest.mark.parametrize("architecture", ["qwen3moe", "deepseek2", "gpt-oss"])
def test_all_kept_is_the_same_file(architecture: str, tmp_path: Path) -> None:
    full, out = write_model(tmp_path / "full.gguf", architecture), tmp_path / "out.gguf"
    with GGUFFile.open(full) as file:
        pruning = Pruning(file, 8)
        pruning.write(out, some(pruning))
    assert (logits(out) == logits(full)).all()
    with GGUFFile.open(full) as a, GGUFFile.open(out) as b:
        assert {k: bytes(a.stored(k)) for k in a.metadata} == {k: bytes(b.stored(k)) for k in b.metadata}


def forbidding(full: Path, out: Path, kept: Mapping[int, tuple[int, ...]], name: str) -> Path:
    """The full model with a bias that no token overcomes on all experts but `kept`."""
    with GGUFFile.open(full) as file:

        def bias(layer: int, was: np.ndarray) -> QuantTensor:
            values = np.full(12, -1e30, np.float32)
            values[list(kept[layer])] = was[list(kept[layer])]
            return QuantTensor(values.view(np.uint8), FORMATS["F32"], (12,))

        def edit(info, tensor):
            if info.name.endswith(name):
                return [(info.name, bias(int(info.name.split(".")[1]), np.asarray(tensor.data).view(np.float32)))]
            layer = int(info.name.split(".")[1]) if info.name.endswith("ffn_gate_inp.weight") else -1
            new = f"blk.{layer}.{name}"
            add = layer >= 0 and new not in file.tensors
            return [(info.name, tensor), *([(new, bias(layer, np.zeros(12, np.float32)))] if add else [])]

        rewrite(file, out, edit)
    return out


@pytest.mark.parametrize(
    ("architecture", "keep", "name"),
    [
        ("deepseek2", 8, "exp_probs_b.bias"),
        ("glm4moe", 5, "exp_probs_b.bias"),
        ("gpt-oss", 5, "ffn_gate_inp.bias"),
        ("qwen3moe", 5, "ffn_gate_inp.bias"),
        ("granitemoe", 5, "ffn_gate_inp.bias"),
    ],
)
def test_a_router_with_a_bias_against_the_others_says_the_same(
    architecture: str, keep: int, name: str, tmp_path: Path
) -> None:
    full, out = write_model(tmp_path / "full.gguf", architecture, shape=SIX), tmp_path / "out.gguf"
    softmax = architecture in ("qwen3moe", "granitemoe")
    with GGUFFile.open(full) as file:
        pruning = Pruning(file, keep)
        kept = some(pruning)
        pruning.write(out, kept)
        against = forbidding(full, tmp_path / "bias.gguf", kept, name)
        if not softmax:
            assert (logits(out) == logits(against)).all()
            return
        # Zeros between the kept ones change in which order a softmax is summed, and so perhaps its last bit.
        np.testing.assert_allclose(logits(out, "float"), logits(against, "float"), rtol=0, atol=1e-4)
        kept = dict.fromkeys(pruning.layers, tuple(range(keep)))
        pruning.write(out, kept)
    assert (logits(out) == logits(forbidding(full, tmp_path / "bias.gguf", kept, name))).all()


def test_experts_that_lie_alone_are_renumbered(tmp_path: Path) -> None:
    full = write_model(tmp_path / "full.gguf", "gpt-oss", shape=SIX)
    pack(full, tmp_path / "packed.gguf")
    for name in ("full", "packed"):
        with GGUFFile.open(tmp_path / f"{name}.gguf") as file:
            pruning = Pruning(file, 5)
            pruning.write(tmp_path / f"{name}.out.gguf", some(pruning))
    assert (logits(tmp_path / "full.out.gguf") == logits(tmp_path / "packed.out.gguf")).all()


def test_a_split_model_becomes_one_file(model: Path, tmp_path: Path) -> None:
    found = []
    for path in (model, write_split(model, tmp_path, 3)[1]):
        with GGUFFile.open(path) as file:
            pruning = Pruning(file, 5)
            pruning.write(tmp_path / "out.gguf", some(pruning))
        with GGUFFile.open(tmp_path / "out.gguf") as file:
            assert len(file.parts) == 1 and "split.count" not in file.metadata
            found.append({name: bytes(np.asarray(file.view(name).data)) for name in file.tensors})
    assert found[0] == found[1]


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
def test_llama_cpp_loads_it_and_says_the_same(tmp_path: Path) -> None:
    keeps = {"qwen3moe": 5, "deepseek2": 8, "gpt-oss": 5, "olmoe": 4}
    for architecture, keep in keeps.items():
        shape = Shape(used=2, head_kv=4, ff=32) if architecture == "olmoe" else SIX
        with GGUFFile.open(write_model(tmp_path / "full.gguf", architecture, shape=shape)) as file:
            pruning = Pruning(file, keep)
            pruning.write(tmp_path / f"{architecture}.gguf", some(pruning))
    models = [tmp_path / f"{architecture}.gguf" for architecture in keeps]
    out = tmp_path / "out.npz"
    tool = Path(__file__).parents[1] / "tools" / "llamacpp_logits.py"
    subprocess.run([sys.executable, tool, *models, out], check=True, capture_output=True)
    recorded = np.load(out)
    exact = gmoe.RuntimeOptions(device="cpu", activations="float", kv_type="f32", context=256)
    for path in models:
        with gmoe.LLM.load(path, exact) as llm:
            got = llm.logits(recorded["ids"].tolist())[recorded["rows"]]
        np.testing.assert_allclose(got, recorded[path.stem], atol=1e-4, rtol=0)


def test_few_experts_lower_how_many_are_chosen(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with GGUFFile.open(write_model(tmp_path / "full.gguf", shape=Shape(used=4, expert=8))) as file:
        pruning = Pruning(file, 3)
        assert pruning.used == 3
        pruning.write(out, some(pruning))
    with GGUFFile.open(out) as file:
        assert (file.metadata["qwen3moe.expert_count"], file.metadata["qwen3moe.expert_used_count"]) == (3, 3)
    assert np.isfinite(logits(out)).all()


def test_scores_are_what_they_say(tmp_path: Path) -> None:
    with gmoe.LLM.load(write_model(tmp_path / "full.gguf", shape=SIX), options("float")) as llm:
        found, given = Saliency(list(llm.layout.layers), 12), []
        block = llm.model.ffn[1]
        before = block.dispatch
        block.dispatch = lambda layer, x, *rest: given.append((x.clone(), rest[0])) or before(layer, x, *rest)
        want = llm.logits(IDS)
        with found.listening(llm.model, llm.layout, "float"):
            assert (llm.logits(IDS) == want).all()
        (x, routing), _ = given
        gate, up, down = (
            np.asarray(llm.file.view(f"blk.1.ffn_{role}_exps.weight").data).view(np.float32)
            for role in ("gate", "up", "down")
        )
        ids, weights, scores = routing.topk_ids.numpy(), routing.topk_weights.numpy(), routing.scores()
    effect = np.zeros(12)
    for row, experts, shares in zip(x.numpy(), ids, weights, strict=True):
        for e, share in zip(experts, shares, strict=True):
            g = gate[e] @ row
            effect[e] += share * np.linalg.norm(down[e] @ (g / (1 + np.exp(-g)) * (up[e] @ row)))
    hits = np.bincount(ids.ravel(), minlength=12)
    np.testing.assert_allclose(found.scores("reap")[1], effect / np.maximum(hits, 1), rtol=1e-3)
    np.testing.assert_array_equal(found.scores("count")[1], hits)
    np.testing.assert_allclose(found.scores("soft")[1], scores.probabilities.sum(0), rtol=1e-6)
    np.testing.assert_allclose(found.scores("proficiency")[1].sum(), len(IDS), rtol=1e-6)
    assert found.unseen == sum((found.scores("count")[n] == 0).sum() for n in (0, 1, 2))


def test_the_search_keeps_to_groups_is_seeded_and_never_worse() -> None:
    right = {0: (1, 3, 4, 6), 1: (0, 2, 5, 7)}

    def loss(kept) -> float:
        assert all(sum(e < 4 for e in stays) == 2 and len(set(stays)) == 4 for stays in kept.values())
        return float(sum(len(set(stays) - set(right[layer])) for layer, stays in kept.items()))

    start = {0: (0, 1, 4, 5), 1: (0, 1, 4, 5)}
    best, least = search([start], loss, 8, 2, 300, 0)
    assert (best, least) == (right, 0.0)
    assert search([start], loss, 8, 2, 40, 1) == search([start], loss, 8, 2, 40, 1)
    assert search([start], loss, 8, 2, 0, 0) == (start, loss(start))
    tried: list[float] = []
    search([start], loss, 8, 2, 40, 2, lambda n, least: tried.append(least))
    assert len(tried) == 40 and tried == sorted(tried, reverse=True) and tried[0] <= loss(start)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("prune") / "full.gguf", quant="Q8_0", shape=SIX)


@pytest.fixture(scope="module")
def text(model: Path) -> Path:
    path = model.parent / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("score", [*NAMES, "random"])
def test_every_score_makes_a_file(score: str, model: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    result = invoke("prune", model, out, "--keep", 6, "--score", score, "-f", text, "-c", 32, "--chunks", 8)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("perplexity of 2 held-out windows: ") and " -> " in result.stdout
    assert f"{out}: 12 -> 6 experts a layer, " in result.stderr
    assert ("counts alone collapse" in result.stderr) == (score in ("count", "soft"))
    assert "renormalize" not in result.stderr and list(tmp_path.iterdir()) == [out]
    with gmoe.LLM.load(out, options()) as llm:
        assert llm.hparams.n_expert == 6


def test_the_search_is_no_worse_on_its_text(model: Path, text: Path, tmp_path: Path) -> None:
    args = ("--keep", 6, "-f", text, "-c", 32, "--chunks", 4, "--search", "eep", "--iterations", 8)
    result = invoke("prune", model, tmp_path / "out.gguf", *args)
    assert result.exit_code == 0, result.stderr
    told = next(line for line in result.stderr.splitlines() if line.startswith("eep: 8 choices tried, seed 0; "))
    first, _, _, least = told.rsplit(" ", 4)[1:]
    assert float(least) <= float(first)


def test_counts_come_from_a_trace(model: Path, text: Path, tmp_path: Path) -> None:
    trace, out = tmp_path / "t.trace", tmp_path / "out.gguf"
    assert invoke("trace", "record", model, "-f", text, "--limit", 1, "--window", 64, "-o", trace).exit_code == 0
    result = invoke("prune", model, out, "--keep", 6, "--score", "count", "--trace", trace)
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    other = write_model(tmp_path / "other.gguf", shape=SIX, seed=1)
    result = invoke("prune", other, tmp_path / "no.gguf", "--keep", 6, "--score", "count", "--trace", trace)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "no.gguf").exists()


def test_a_softmax_that_is_not_renormalized_is_said(text: Path, tmp_path: Path) -> None:
    olmoe = write_model(tmp_path / "olmoe.gguf", "olmoe")
    for keep, said in ((4, True), (8, False)):
        result = invoke("prune", olmoe, tmp_path / "out.gguf", "--keep", keep, "--score", "random")
        assert result.exit_code == 0 and ("does not renormalize" in result.stderr) == said, result.stderr


def test_refusals(model: Path, text: Path, tmp_path: Path) -> None:
    out, grouped = tmp_path / "out.gguf", write_model(tmp_path / "grouped.gguf", "deepseek2")
    dense = write_model(tmp_path / "dense.gguf", "qwen3")
    with GGUFFile.open(write_model(tmp_path / "glm.gguf", "glm4moe")) as file:
        rewrite(file, tmp_path / "mtp.gguf", identity, {"glm4moe.nextn_predict_layers": np.uint32(1)})
    cases = [
        ((model, out, "--keep", 13), "full.gguf: 13 experts cannot be kept; a layer has 12"),
        ((grouped, out, "--keep", 6), "4 groups cannot keep equally many of 6 experts; keep a multiple of 4"),
        ((grouped, out, "--keep", 4), "groups are chosen by their two best experts; keep 8 at least"),
        ((dense, out, "--keep", 1), "expert_count: the model has no experts that could be left out"),
        ((tmp_path / "mtp.gguf", out, "--keep", 4), "glm4moe.nextn_predict_layers: experts that predict"),
        ((model, tmp_path / "no" / "out.gguf", "--keep", 6), "No such file or directory; nothing was written"),
        ((model, out, "--keep", 6, "-c", 4096), "the text has"),
    ]
    for args, said in cases:
        result = invoke("prune", *args, "-f", text, *(() if "-c" in args else ("-c", 32, "--chunks", 2)))
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        errors = [line for line in result.stderr.splitlines() if not line.startswith("Note: ")]
        assert len(errors) == 1 and said in errors[0], result.stderr
    for args in (
        ("--keep", 6),
        ("--keep", 0, "-f", text),
        ("--keep", 6, "--score", "random", "--search", "eep"),
        ("--keep", 6, "-f", text, "--chunks", 1),
    ):
        assert invoke("prune", model, out, *args).exit_code == 2
    assert not out.exists()
    maverick = write_model(tmp_path / "m.gguf", "llama4", shape=Shape(used=1, layer=2, expert=128, ff_exp=32))
    with GGUFFile.open(maverick) as file, pytest.raises(UnsupportedModel, match="queries and keys are not normed"):
        Pruning(file, 64)
    chunked = write_model(tmp_path / "g.gguf", "grovemoe")
    with GGUFFile.open(chunked) as file, pytest.raises(UnsupportedModel, match="grovemoe.experts_per_group: experts"):
        Pruning(file, 4)
    hashed = write_model(tmp_path / "h.gguf", "deepseek4")
    with GGUFFile.open(hashed) as file, pytest.raises(UnsupportedModel, match="a table names for each token cannot be"):
        Pruning(file, 4)


def test_a_disk_that_is_full_leaves_nothing(model: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))

    code = "from gmoe.cli.main import cli; cli()"
    args = ("prune", model, tmp_path / "out.gguf", "--keep", "6", "--score", "random")
    command = [sys.executable, "-c", code, *map(str, args)]
    result = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"Error: {tmp_path / 'out.gguf'}: File too large; nothing was written"
    assert not list(tmp_path.iterdir())
