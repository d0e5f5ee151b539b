"""Files of `gmoe quantize` in llama.cpp: `python -m tools.llamacpp_quantize MODEL.gguf -f TEXT [TYPE ..]`.

Per type: whether llama-quantize gives every tensor the same type; how far gmoe's logits on gmoe's file are from
llama.cpp's on the same file, and how far llama.cpp's are from its own when it takes one token at a time instead of all
together; the perplexities on the text. Needs `pip install llama-cpp-python`.
"""

import argparse
import ctypes
import math
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

import gmoe
from gmoe.gguf.file import GGUFFile
from gmoe.passes.mixes import BASES, file_type
from gmoe.passes.perplexity import perplexities, windows
from gmoe.passes.quantize import quantize

QUIET = llama_cpp.llama_log_callback(lambda *_: None)


def theirs(source: Path, target: Path, mix: str) -> bool:
    """llama-quantize; False where it refuses, as for types that it writes with an importance matrix only."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = file_type(mix), 2, True
    return not llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))


def same_types(a: Path, b: Path) -> str:
    """How many tensors have the same type."""
    with GGUFFile.open(a) as one, GGUFFile.open(b) as two:
        kinds = [(info.format.name, two.tensors[name].format.name) for name, info in one.tensors.items()]
    return f"{sum(x == y for x, y in kinds)} of {len(kinds)}"


class Peer:
    """llama.cpp with an F32 cache, no flash attention, no repacked weights; it computes `together` tokens at once."""

    def __init__(self, path: Path, context: int, together: int):
        kinds: dict[str, Any] = {"type_k": 0, "type_v": 0, "flash_attn": False, "verbose": False}
        self.llama = llama_cpp.Llama(
            str(path), n_ctx=context, n_batch=context, n_ubatch=together, logits_all=True, n_threads=2, **kinds
        )

    def logits(self, ids: list[int]) -> np.ndarray:
        """Of one fresh sequence, every position."""
        self.llama.reset()
        self.llama.eval(ids)
        return np.asarray(self.llama.scores[: len(ids)]).copy()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("types", nargs="*", default=[name for name in BASES if name != "F32"])
    parser.add_argument("-f", "--file", type=Path, required=True)
    parser.add_argument("-c", "--ctx-size", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=4)
    given = parser.parse_args()
    llama_cpp.llama_log_set(QUIET, ctypes.c_void_p(0))
    options = gmoe.RuntimeOptions(device="cpu", context=given.ctx_size, max_sequences=1, kv_type="f32")
    print("| type | same tensor types | logits, rms of difference / std | same top token ", end="")
    print("| llama.cpp to itself, one token at a time | PPL gmoe | PPL llama.cpp | PPL llama.cpp, one at a time |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        ours, other = Path(folder) / "ours.gguf", Path(folder) / "theirs.gguf"
        for mix in given.types:
            quantize(given.model, ours, mix, requantize=True)
            types = same_types(ours, other) if theirs(given.model, other, mix) else "refused there"
            other.unlink(missing_ok=True)
            peer, slow = Peer(ours, given.ctx_size, given.ctx_size), Peer(ours, given.ctx_size, 1)
            with gmoe.LLM.load(ours, options) as llm:
                ids = llm.tokenizer.encode(given.file.read_text(), add_special=True, parse_special=False)
                cut = windows(ids, given.ctx_size, llm.tokenizer.bos_id if ids[:1] == [llm.tokenizer.bos_id] else None)
                cut = cut[: given.chunks]
                runs = llm.logits, peer.logits, slow.logits
                a, b, c = (run(cut[0]) for run in runs)
                scores = [[nll.mean for nll, _ in perplexities(cut, run)][-1] for run in runs]
            away, itself = (float(np.sqrt(np.mean((other - b) ** 2)) / b.std()) for other in (a, c))
            top = float((a.argmax(-1) == b.argmax(-1)).mean())
            ppl = " | ".join(f"{math.exp(score):.4f}" for score in scores)
            print(
                f"| {mix} | {types} | {100 * away:.3f} % | {100 * top:.1f} % | {100 * itself:.3f} % | {ppl} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
