"""Do torch, gmoe and llama.cpp agree on a demo model? `python -m tools.compare_logits MODEL`.

Needs `pip install llama-cpp-python`. All read the same text, in float32 where they can choose.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from gmoe import LLM, RuntimeOptions
from tools.demo.export import read_model
from tools.demo.model import Model, Shape

TEXT = (
    "Once upon a time there was a poor miller who had a daughter. One day he said to the king: my daughter can spin"
    " straw into gold.\n\ndef main():\n    for line in open(path):\n        print(line.strip())\n"
)


def of_torch(path: Path, ids: list[int]) -> np.ndarray:
    """The network of the trainer with the file's weights, decoded to float32."""
    with torch.no_grad():
        return read_model(path)(torch.tensor([ids]))[0][0].numpy()


def of_checkpoint(path: Path, ids: list[int]) -> np.ndarray:
    """The trained network itself, before any export."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = Model(Shape(**state["shape"]))
    model.load_state_dict(state["model"])
    with torch.no_grad():
        return model(torch.tensor([ids]))[0][0].numpy()


def of_gmoe(path: Path, ids: list[int], activations: str) -> np.ndarray:
    """Our runtime."""
    with LLM.load(path, RuntimeOptions(device="cpu", activations=activations, kv_type="f32")) as llm:
        return llm.logits(ids)


def of_llamacpp(path: Path, ids: list[int]) -> np.ndarray:
    """llama.cpp on the CPU; it rounds activations to 8-bit blocks wherever weights are quantized."""
    import llama_cpp

    llama = llama_cpp.Llama(
        str(path), n_ctx=512, n_batch=512, n_ubatch=512, logits_all=True, type_k=0, type_v=0, flash_attn=False,
        verbose=False, n_threads=2,
    )  # fmt: skip
    assert llama.tokenize(TEXT.encode(), add_bos=False) == ids, "llama.cpp cuts the text into other tokens"
    llama.eval(ids)
    return np.array(llama.scores[: len(ids)])


def compare(name: str, one: np.ndarray, other: np.ndarray) -> None:
    """Print how far two logits are apart, and how often they choose the same token."""
    far = np.abs(one - other)
    same = (one.argmax(-1) == other.argmax(-1)).mean()
    print(f"{name:40} largest difference {far.max():.5f}  mean {far.mean():.6f}  same first token {same:.1%}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="of tools.train_demo, to compare with too")
    parser.add_argument("--save", type=Path, help="write every fifth row of llama.cpp's to this .npz")
    given = parser.parse_args()
    with LLM.load(given.model) as llm:
        ids = llm.tokenizer.encode(TEXT, add_special=False)
    torch_logits, llama_logits = of_torch(given.model, ids), of_llamacpp(given.model, ids)
    if given.save:
        rows = np.arange(0, len(ids), 5)
        np.savez_compressed(given.save, ids=ids, rows=rows, logits=llama_logits[rows].astype(np.float16))
    print(f"{given.model.name}: {len(ids)} tokens, logits from {torch_logits.min():.1f} to {torch_logits.max():.1f}")
    if given.checkpoint:
        compare("torch: the checkpoint and the file", of_checkpoint(given.checkpoint, ids), torch_logits)
    compare("gmoe (float activations) and torch", of_gmoe(given.model, ids, "float"), torch_logits)
    compare("gmoe (8-bit activations) and llama.cpp", of_gmoe(given.model, ids, "q8"), llama_logits)
    compare("gmoe (float activations) and llama.cpp", of_gmoe(given.model, ids, "float"), llama_logits)
    compare("llama.cpp and torch", llama_logits, torch_logits)


if __name__ == "__main__":
    main()
