"""Record llama.cpp's logits on the factory's tiny models: `python tools/llamacpp_logits.py MODELS.. OUT.npz`.

Run it where `pip install llama-cpp-python` was; it needs nothing of gmoe. Each MODEL is a file of `tests/factory.py`
(`python -m tests.factory FOLDER` writes them all); the settings are those of an exact run: F32 cache, no flash
attention, one batch. Without flash attention minimax-m3 has no index, and with it numbers of 16 bits where a block is
dense, so that it is on for files without such blocks. For gemma4 and grok it needs a library without a table of GELU,
as `tests/fuzz_peer.py` says.
"""

import sys
from pathlib import Path

import llama_cpp
import numpy as np

IDS = [*range(3, 60), 7, 8, 9, 200, 250, 100, 101]
ROWS = [0, 1, 30, 63]
# more tokens say more: `IDS` five times over, and rows of these
LONG = (
    "deepseek4",
    "deepseek32",
    "glm-dsa+shared",
    "glm5-next",
    "qwen4exp",
    "minimax-m3+all",
    "dots3note",
    "hy_v4",
)
LONG_ROWS = [126, 127, 255, 319]
WHOLE_ROWS = {"qwen4exp": [126, 254, 318]}  # of others llama.cpp chooses a part of a block, as its sort has its tokens


def logits(path: Path, ids: list[int], rows: list[int]) -> np.ndarray:
    """These rows of the logits after `ids`, float32 [rows, n_vocab]."""
    stated = llama_cpp.Llama(str(path), vocab_only=True, verbose=False).metadata
    indexed = stated.get("minimax-m3.leading_dense_block_count") == "0"
    llama = llama_cpp.Llama(
        str(path),
        n_ctx=512,
        n_batch=512,
        n_ubatch=512,
        logits_all=True,
        type_k=0,
        type_v=0,
        flash_attn=indexed,
        yarn_attn_factor=-1.0,  # as the file says
        yarn_beta_fast=-1.0,
        yarn_beta_slow=-1.0,
        verbose=False,
        n_threads=1,
    )
    llama.eval(ids)
    return llama.scores[: len(ids)][rows].copy()


def main() -> None:
    """Write one array a model, named after its file, and what they were made of."""
    *models, out = map(Path, sys.argv[1:])
    found = {path.stem: logits(path, IDS, ROWS) for path in models}
    found |= {
        f"{path.stem} long": logits(path, 5 * IDS, WHOLE_ROWS.get(path.stem, LONG_ROWS))
        for path in models
        if path.stem in LONG
    }
    np.savez_compressed(out, ids=np.array(IDS), rows=np.array(ROWS), version=llama_cpp.__version__, **found)


if __name__ == "__main__":
    main()
