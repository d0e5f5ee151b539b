"""Random models of real shapes: they load, speak and are timed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gmoe.cli.main import cli
from gmoe.llm import LLM
from gmoe.options import RuntimeOptions
from tools.shapes import SHAPES, Shape
from tools.synth_model import imitate, main, synthesize, type_of

OPTIONS = RuntimeOptions(context=64, max_sequences=1, threads=1)
TYPES = ["Q4_K_M", "Q8_0", "Q6_K", "Q4_0", "MXFP4", "NVFP4", "IQ4_XS", "IQ3_XXS", "IQ2_XS", "Q4_1", "IQ1_M", "F16"]


def small(name: str) -> Shape:
    s = SHAPES[name]
    kv = {1: 1, s.head: 4}.get(s.head_kv, 2)
    layers = max(2, len(s.kinds))  # of every kind one
    sizes = {"embd": 256, "expert": 8, "used": 2, "ff_exp": 256, "vocab": 600, "head": 4, "head_dim": 64}
    shared = 256 * s.keys.get("expert_shared_count", 1) if s.ff_shared else 0
    return replace(s, **sizes, layer=layers, head_kv=kv, ff=256 if s.ff else 0, ff_shared=shared)


def check(path: Path) -> None:
    with LLM.load(path, OPTIONS) as llm:
        ids = llm.tokenizer.encode("the cat", add_special=True, parse_special=False)
        assert llm.tokenizer.decode(ids) == "the cat"
        logits = llm.logits(ids)
        assert np.isfinite(logits).all() and 0.3 < logits.std() < 30


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_every_shape_speaks(tmp_path: Path, name: str) -> None:
    synthesize(tmp_path / "m.gguf", small(name), "Q4_K_M", [("attn_q", "Q8_0")])
    check(tmp_path / "m.gguf")
    imitate(tmp_path / "again.gguf", tmp_path / "m.gguf", seed=1)
    check(tmp_path / "again.gguf")


@pytest.mark.parametrize("types", TYPES)
def test_every_type_has_a_sane_scale(tmp_path: Path, types: str) -> None:
    synthesize(tmp_path / "m.gguf", small("qwen3-30b-a3b"), types)
    check(tmp_path / "m.gguf")


def test_mixes_are_llama_cpps() -> None:
    kinds = {layer: type_of(f"blk.{layer}.attn_v.weight", (512, 2048), "Q4_K_M", 48, []) for layer in range(48)}
    assert kinds[0] == kinds[5] == kinds[8] == kinds[47] == "Q6_K" and kinds[6] == kinds[7] == "Q4_K"
    assert type_of("output.weight", (9, 2048), "Q4_K_M", 48, []) == "Q6_K"
    assert type_of("blk.0.ffn_up_exps.weight", (32, 2880, 2880), "Q4_K", 24, []) == "Q5_0"
    assert type_of("blk.0.ffn_gate_inp.weight", (32, 2880), "Q4_K", 24, []) == "F32"


def test_an_unknown_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="the type 'Q9_Z' is none of"):
        main([str(tmp_path / "m.gguf"), "--types", "Q9_Z"])


def test_bench(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    synthesize(path, small("qwen3-30b-a3b"), "Q4_K")
    run = CliRunner().invoke(cli, ["bench", str(path), *"-p 8 -n 4 -d 3 -t 1 -r 2 -o json".split()])
    assert run.exit_code == 0, run.output
    prompt, generation = json.loads(run.stdout)
    assert (prompt["n_prompt"], prompt["n_gen"], prompt["n_depth"], prompt["n_threads"]) == (8, 0, 3, 1)
    assert len(generation["samples_ns"]) == 2 and generation["avg_ts"] > 0 and generation["bandwidth_share"] > 0
    assert prompt["hit_rate"] == 1.0 and prompt["load_seconds"] > 0
    assert prompt["cpu_info"] and prompt["gpu_info"] == ""
    assert prompt["n_batch"] == prompt["n_ubatch"] == 512 and prompt["n_gpu_layers"] == 0
    for kind, begin in (("md", "|"), ("csv", "build_commit")):
        run = CliRunner().invoke(cli, ["bench", str(path), *"-p 0 -n 2 -t 1 -r 1 -o".split(), kind])
        assert run.exit_code == 0 and run.stdout.startswith(begin)
        assert kind == "csv" or ("tg2" in run.stdout and " MiB |" in run.stdout and " M |" in run.stdout)
    run = CliRunner().invoke(cli, ["bench", str(path), *"-p 4,8 -p 2 -n 1 -d 0,3 -t 1 -r 1 -o json".split()])
    asked = [(row["n_depth"], row["n_prompt"], row["n_gen"]) for row in json.loads(run.stdout)]
    assert asked == [(0, 4, 0), (0, 8, 0), (0, 2, 0), (3, 4, 0), (3, 8, 0), (3, 2, 0), (0, 0, 1), (3, 0, 1)]
    run = CliRunner().invoke(cli, ["bench", str(path), "-p", "4,x"])
    assert run.exit_code == 2 and "'4,x' are no counts of tokens" in run.output
    run = CliRunner().invoke(cli, ["bench", str(path), "-p", "0", "-n", "0"])
    assert run.exit_code == 2 and "one of -p and -n" in run.output
