"""Shapes, keys and types drawn by a seed, beside llama.cpp: `python -m tests.fuzz_peer [SECONDS] [SEED]`.

Needs `pip install llama-cpp-python`. Every architecture of `tests/factory.py` is drawn in turn. llama.cpp reads a copy
whose weights are F32, so that it rounds nothing and the logits must be equal to `BOUND` of their spread; with the
default kernels the median token must be `NEAR`, or no more than twice as far as llama.cpp is with the file itself. Only
four tokens are compared, and rounding can decide a router's near tie in one of the two: about one file in a hundred is
printed for that, of exaone-moe, mimo2, cohere2moe, mistral4, step35, laguna and deepseek4 about one in twelve, and so
can the choice of an index, of deepseek32, glm-dsa and hy_v4 about one in twenty. A file that one of the two refuses is
printed with what it says, as are the few whose experts are too many for the nodes of llama.cpp's graph; its AMX stops
at latent attention in quantized types (`use_extra_bufts` of its model's parameters keeps it from that), so that files
of kimi-linear, kimi-k3, glm5-next, bailingmoe3, deepseek32, glm-dsa, hy_v4 and dots3note, whose norms or choices make
much of little, are printed too. Of bailingmoe3 one in ten is up to 1.2e-4 away, where two builds of llama.cpp are 9e-5
from each other; of kimi-k3 one in six up to 1e-3, where llama.cpp is as far from the same in float64, and from itself
in other batches.

llama.cpp's CPU takes GELU from a table of 16-bit numbers, which is 1e-3 away. For gemma4 and grok build its
`libggml-cpu.so` without `GGML_GELU_FP16` (`ggml-cpu/vec.h`), and let `LLAMA_CPP_LIB_PATH` name a folder of
llama-cpp-python's libraries with that one among them.
"""

import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gmoe.gguf.file import GGUFError
from gmoe.llm import LLM
from gmoe.options import RuntimeOptions
from gmoe.passes.mixes import BASES
from gmoe.passes.quantize import quantize
from tests.factory import ARCHITECTURES, Shape, write_model
from tests.scaled import scaled

PEER = Path(__file__).parents[1] / "tools" / "llamacpp_logits.py"
BOUND, NEAR = 1e-4, 0.05  # of the logits' spread
EXACT = RuntimeOptions(device="cpu", activations="float", kv_type="f32", context=256)
DEFAULT = RuntimeOptions(device="cpu", context=256)

ALONE = {"qwen3moe+fused"}  # which llama.cpp does not read
SQUARE = {
    "lfm2moe",
    "deepseek",
    "olmoe",
    "qwen2moe",
    "phimoe",
    "bailingmoe2",
    "dbrx",
    "arctic",
    "grok",
    "jamba",
}  # queries as wide as the model
AS_MANY = {"olmoe", "dots1"}  # keys as many as queries
LATENT = {"deepseek2", "mistral4", "deepseek32"}
UNSCALED = {"glm-dsa", "maple", "dots3note"}  # positions
MAMBA = {"granitehybrid", "nemotron_h_moe"}  # whose heads share twice the model's width
FOURS = {
    "llama4",
    "afmoe",
    "gemma4",
    "qwen3next",
    "qwen35moe",
    "lfm2moe",
    "smallthinker",
    "exaone-moe",
    "mimo2",
    "cohere2moe",
    "kimi-linear",
    "kimi-k3",
    "mellum",
    "step35",
    "laguna",
    "deepseek4",
    "glm5-next",
    "qwen4exp",
    "bailingmoe3",
    "minimax-m3",
    "jamba",
    "maple",
    "dots3note",
} | MAMBA  # all kinds of block are among the first
SCALED_MAPS = {
    "llama",
    "qwen3",
    "qwen3moe",
    "mellum",
    "qwen35moe",
    "nemotron_h_moe",
}  # llama.cpp reads scales beside all
WINDOWED = {
    "gpt-oss",
    "llama4",
    "afmoe",
    "smallthinker",
}  # whose windows llama.cpp scales even where the type of scaling is "none"

Keys = dict[str, tuple[Any, ...]]
ANY: Keys = {
    "attention.layer_norm_rms_epsilon": (1e-6, 1e-2, 0.3),
    "rope.freq_base": (100.0, 5e5),
    "expert_weights_scale": (0.0, 0.4, 2.5),
    "expert_weights_norm": (False, True),
    "rope.scaling.original_context_length": (16, 64, 4096),
    "context_length": (64, 4096),
}
SCALED: Keys = {"rope.scaling.factor": (1.0, 1.7, 40.0), "rope.scaling.type": ("none", "linear", "yarn")}
LATENT_SCALED: Keys = {"rope.scaling.factor": (1.0, 40.0), "rope.scaling.attn_factor": (0.7, 1.2)}
GATED: Keys = {"expert_gating_func": (1, 2, 3, 4)}
CHOOSING: Keys = {"attention.indexer.top_k": (1, 3, 12, 33, 100)}
HUNYUAN: Keys = {
    **GATED,
    "hyper_connection.epsilon": (1e-6, 1e-2),
    "hyper_connection.magnitude": (0.5, 1.0),
    "rope.scaling.attn_factor": (0.7, 1.2),
    "swiglu_clamp_exp": (0.0, 0.2, 7.0),
}
GRANITE: Keys = {
    "attention.scale": (0.015625, 1.0),
    "embedding_scale": (0.5, 12.0),
    "residual_scale": (0.22, 1.0),
    "logit_scale": (0.5, 8.0),
}
WHOLE: dict[str, Any] = {"attention.indexer.top_k": 64}
SINGLE = [{"attention.indexer.top_k": most, "attention.compress_ratios": 1} for most in (1, 3, 12, 40)]
OWN: dict[str, Keys] = {
    "granitemoe": GRANITE,
    "granitehybrid": GRANITE,
    "gpt-oss": {"attention.sliding_window": (1, 7, 16)},
    "gemma4": {
        "attention.sliding_window": (1, 7, 16),
        "rope.freq_base_swa": (100.0, 5e5),
        "final_logit_softcapping": (0.0, 1.0, 30.0),
    },
    "deepseek2": GATED | LATENT_SCALED,
    "mistral4": GATED
    | LATENT_SCALED
    | {"attention.temperature_scale": (0.0, 0.5), "attention.temperature_length": (1, 20)},
    "deepseek32": GATED | LATENT_SCALED | CHOOSING,
    "glm-dsa": GATED | CHOOSING,
    "dots3note": GATED
    | CHOOSING
    | {
        "attention.sliding_window": (1, 7, 16),
        "rope.freq_base_swa": (100.0, 5e5),
        "rope.scaling.attn_factor": (0.7, 1.2),
    },
    "grovemoe": {"expert_group_scale": (0.05, 2.0)},
    "afmoe": GATED | {"attention.sliding_window": (1, 7, 16)},
    "exaone-moe": GATED | {"attention.sliding_window": (1, 7, 16)},
    "cohere2moe": GATED | {"attention.sliding_window": (1, 7, 16), "logit_scale": (0.0625, 1.0)},
    "mimo2": {
        "attention.sliding_window": (1, 7, 16),
        "attention.value_scale": (0.0, 0.707, 1.0),
        "rope.freq_base_swa": (100.0, 5e5),
    },
    "mellum": {"attention.sliding_window": (0, 1, 7, 16)},
    "maple": GATED
    | {
        "attention.sliding_window": (1, 7, 16),
        "rope.freq_base_swa": (100.0, 5e5),
        "swiglu_clamp_exp": (0.0, 0.2, 7.0),
    },
    "step35": GATED
    | {
        "attention.sliding_window": (1, 7, 16),
        "rope.freq_base_swa": (100.0, 5e5),
        "swiglu_clamp_exp": (0.0, 0.2, 7.0),
        "swiglu_clamp_shexp": (0.0, 0.2, 16.0),
    },
    "deepseek4": {
        "attention.sliding_window": (1, 7, 16),
        "attention.indexer.top_k": (1, 3, 12, 512),
        "attention.compress_rope_freq_base": (100.0, 160000.0),
        "hyper_connection.sinkhorn_iterations": (1, 2, 20),
        "hyper_connection.epsilon": (1e-6, 1e-2),
        "swiglu_clamp_exp": (0.0, 0.2, 7.0),
        "swiglu_clamp_shexp": (0.0, 0.2, 16.0),
    },
    "bailingmoe3": GATED
    | {
        "expert_group_count": (1, 4),
        "kda.gate_lower_bound": (-0.5, -5.0),
        "rope.dimension_sections": ([0, 0, 0, 0], [2, 1, 1, 0]),
        "rope.scaling.attn_factor": (0.7, 1.2),
        "swiglu_clamp_exp": (0.0, 0.2, 7.0),
        "swiglu_clamp_shexp": (0.0, 0.2, 16.0),
    },
    "glm5-next": GATED
    | {
        "attention.indexer.top_k": (4, 16, 512),
        "attention.layer_norm_epsilon": (1e-6, 1e-2),
        "hyper_connection.sinkhorn_iterations": (1, 2, 20),
        "hyper_connection.epsilon": (1e-6, 1e-2),
        "kda.gate_lower_bound": (-0.5, -5.0),
        "swiglu_clamp_exp": (0.0, 0.2, 7.0),
        "swiglu_clamp_shexp": (0.0, 0.2, 16.0),
    },
    "qwen4exp": {"ple.eos_token_id": (7, 9, 250)},
    "laguna": GATED | {"rope.freq_base_swa": (100.0, 5e5)},
    "smallthinker": GATED | {"attention.sliding_window": (0, 4096)},
    "dbrx": {"attention.clamp_kqv": (0.0, 0.1, 8.0), "attention.layer_norm_epsilon": (1e-6, 1e-2, 0.3)},
    "grok": {
        "attention.output_scale": (0.05, 1.0),
        "attn_logit_softcapping": (0.5, 5.0),
        "router_logit_softcapping": (1.0, 30.0),
        "final_logit_softcapping": (0.0, 1.0, 30.0),
        "embedding_scale": (0.5, 12.0),
        "logit_scale": (0.3, 2.0),
        "rope.scaling.yarn_beta_fast": (16.0, 32.0),
        "rope.scaling.yarn_ext_factor": (0.4, 1.0),
        "rope.scaling.yarn_beta_slow": (0.5, 2.0),
    },
    "kimi-linear": GATED,
    "kimi-k3": GATED
    | {
        "activation.situ_beta": (0.3, 4.0, 50.0),
        "activation.situ_linear_beta": (0.0, 0.3, 4.0, 50.0),
        "attn_res.block_size": (1, 2, 3, 12),
        "kda.gate_lower_bound": (-0.5, -5.0),
    },
    "glm4moe": GATED,
    "dots1": GATED,
    "bailingmoe2": GATED,
    "minimax-m2": GATED,
    "minimax-m3": GATED,
    "hy_v3": GATED,
    "hy_v4": HUNYUAN | CHOOSING,
    "hy_v4+full": HUNYUAN,
    "lfm2moe": GATED,
}


def shape_of(name: str, draw: random.Random) -> Shape:
    """Sizes that the architecture allows."""
    heads_kv = draw.choice([1, 2, 3, 4])
    heads, dim = heads_kv * draw.choice([1, 2, 3, 7]), draw.choice([8, 16, 20, 32, 64, 96])
    experts = draw.choice([8, 12, 16, 32, 64]) if ARCHITECTURES[name].shape.expert else 0
    ff = draw.choice([24, 32, 96, 256, 13])
    return Shape(
        embd=heads * (dim if name.split("+")[0] in SQUARE else 32)
        if name.split("+")[0] in SQUARE | MAMBA
        else draw.choice([36, 64, 96, 256, 512]),
        head=heads,
        head_kv=heads if name in AS_MANY else heads_kv,
        head_dim=dim,
        ff=ff,
        ff_exp=ff,
        expert=experts,
        used=1 if name == "llama4" or not experts else draw.randint(1, experts // 2),
        layer=draw.choice([4, 5, 8] if name.split("+")[0] in FOURS else [1, 2, 3, 5]),
    )


def keys_of(name: str, shape: Shape, draw: random.Random) -> dict[str, Any]:
    """Half of the keys that the architecture could have."""
    architecture = name.split("+")[0]
    keys = ANY | ({} if architecture in LATENT | UNSCALED else SCALED) | OWN.get(name, OWN.get(architecture, {}))
    drawn = {key: draw.choice(values) for key, values in keys.items() if draw.random() < 0.5}
    if architecture != "nemotron_h_moe":
        drawn["feed_forward_length"] = shape.ff
    if architecture in WINDOWED and drawn.get("rope.scaling.type") == "none":
        drawn["rope.scaling.factor"] = 1.0
    if architecture == "grok" and drawn.get("rope.scaling.type") in (None, "linear"):
        drawn["rope.scaling.type"] = "yarn"
    if architecture == "bailingmoe2":
        drawn["expert_shared_feed_forward_length"] = shape.ff_exp
    if name == "kimi-k3+plain":  # which keeps no sums
        drawn.pop("attn_res.block_size", None)
    if architecture == "qwen4exp":  # of larger blocks llama.cpp also takes parts, as its sort happens to have them
        drawn |= draw.choice([WHOLE | {"attention.compress_ratios": ratio} for ratio in (0, 2, 4, 64)] + SINGLE)
    if name == "minimax-m3+all":  # the other kind has no index in llama.cpp but beside numbers of 16 bits
        most = draw.choice([1, 2, 3, 5, 16])
        local, size = draw.randint(0, min(most, 2)), draw.choice([1, 2, 4, 8, 32])
        sizes = {"top_k": most, "block_size": size, "local_blocks": local}
        drawn |= {f"attention.indexer.{key}": value for key, value in sizes.items()}
    if architecture in LATENT:
        multipliers = [0.05, 0.1] if architecture == "deepseek2" else [0.1]
        drawn |= {"rope.scaling.type": "yarn", "rope.scaling.yarn_log_multiplier": draw.choice(multipliers)}
    return drawn


def of_peer(path: Path, out: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | str:
    """llama.cpp's ids, rows of them and the logits of these; what it says where it gives none."""
    done = subprocess.run([sys.executable, PEER, path, out], capture_output=True, text=True, timeout=300)
    if done.returncode:
        return f"{done.returncode}: {done.stderr.strip()[-400:]}"
    found = np.load(out)
    return found["ids"], found["rows"], found[path.stem]


def of_gmoe(path: Path, options: RuntimeOptions, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The same logits of ours."""
    with LLM.load(path, options) as llm:
        return llm.logits(ids)[rows]


def median_error(found: np.ndarray, want: np.ndarray) -> float:
    """Of the median token, in parts of the logits' spread."""
    return float(np.median(np.sqrt(((found - want) ** 2).mean(-1))) / want.std())


def verdict(folder: Path, name: str, seed: int) -> str:
    """What came of one file: "equal", or what is wrong with it and how it can be drawn again."""
    draw = random.Random(f"{name} {seed}")
    shape, quant = shape_of(name, draw), draw.choice(["F32", *BASES])
    metadata = keys_of(name, shape, draw)
    source = write_model(folder / "source.gguf", name, shape=shape, seed=seed, metadata=metadata)
    path, twin = folder / "model.gguf", folder / "twin.gguf"
    if name in SCALED_MAPS and draw.random() < 0.5:
        packed = draw.random() < 0.5
        how = {"whole": False, "packed": packed, "output": False}  # it reads `output.scale` beside NVFP4 alone
        source = scaled(source, folder / "scaled.gguf", np.random.default_rng(seed), **how)
        quant = f"scaled {'NVFP4' if packed else quant}"
    if quant == "scaled NVFP4":
        path = source
    else:
        quantize(source, path, quant.removeprefix("scaled "))
    quantize(path, twin, "F32", requantize=True)
    told, what = of_peer(twin, folder / "logits.npz"), f"{name} {seed}: {shape} {metadata} {quant}"
    if isinstance(told, str):
        return f"{what}: llama.cpp refuses with {told}"
    ids, rows, want = told
    try:
        exact, usual = (of_gmoe(path, options, ids, rows) for options in (EXACT, DEFAULT))
    except GGUFError as error:
        return f"{what}: gmoe refuses, {error}"
    far, rounded = float(np.abs(exact - want).max() / want.std()), median_error(usual, want)
    if far >= BOUND:
        return f"{what}: {far:.1e} from llama.cpp"
    if rounded < NEAR:
        return "equal"
    told = of_peer(path, folder / "logits.npz")
    theirs = f"refuses with {told}" if isinstance(told, str) else median_error(told[2], want)
    if isinstance(theirs, float) and rounded < 2 * theirs:
        return "equal"
    return f"{what}: {rounded:.1e} from the exact answer with the default kernels, llama.cpp {theirs}"


def main(seconds: float = 60.0, seed: int = 0) -> int:
    """Draw for so long; 1 if anything was not equal."""
    end, seen = time.monotonic() + seconds, Counter[bool]()
    while time.monotonic() < end:
        for name in sorted(set(ARCHITECTURES) - ALONE):
            with tempfile.TemporaryDirectory() as folder:
                said = verdict(Path(folder), name, seed)
            seen[said == "equal"] += 1
            if said != "equal":
                print(said, flush=True)
        seed += 1
    print(f"{seen[True]} files equal, {seen[False]} not; the next seed is {seed}")
    return min(seen[False], 1)


if __name__ == "__main__":
    sys.exit(main(*(float(sys.argv[1]) for _ in sys.argv[1:2]), *(int(word) for word in sys.argv[2:3])))
