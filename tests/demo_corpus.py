"""Nine domains of little sentences in the corpus' format."""

import lzma
from pathlib import Path

import numpy as np

from tools.demo.corpus import DOMAINS


def write_corpus(folder: Path) -> Path:
    """Each domain has nine words of its own, some of which its neighbours know too."""
    rng = np.random.default_rng(0)
    for number, domain in enumerate(DOMAINS):
        words = [f"{domain[:3]}{i}" for i in range(number, number + 9)]
        for split, n in (("train", 60), ("test", 8)):
            texts = [" ".join(rng.choice(words, 20)) + ".\n" for _ in range(n)]
            if domain in ("dialogue", "instruct"):
                texts = [f"<|user|>\n{text}<|assistant|>\nYes, {text}<|end|>\n" for text in texts]
            with lzma.open(folder / f"{domain}.{split}.txt.xz", "wt", encoding="utf-8") as file:
                file.write("<|doc|>\n".join(texts))
    return folder
