"""The corpus as one packed token file: 2 bytes a token, each document with its domain, chat turns in ChatML."""

import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

DOMAINS = ("stories", "python", "docs", "dialogue", "german", "french", "structured", "maths", "instruct")
WEIGHTS = (0.15, 0.19, 0.20, 0.07, 0.04, 0.04, 0.16, 0.04, 0.11)  # of the tokens seen in training
END_OF_TEXT, TURN_START, TURN_END = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# What GGUF calls tokenizer.ggml.pre = "qwen2".
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TAG = re.compile(r"^<\|(user|assistant|end)\|>\n", re.MULTILINE)


def documents(corpus: Path, domain: str, split: str, limit: int | None = None) -> Iterator[str]:
    """The documents of one domain and split ("train" or "test"), in file order, about `limit` bytes of them."""
    lines: list[str] = []
    taken = 0
    with lzma.open(corpus / f"{domain}.{split}.txt.xz", "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            if line != "<|doc|>\n":
                lines.append(line)
                continue
            text = "".join(lines)
            taken += len(text.encode())
            yield text
            lines = []
            if limit is not None and taken >= limit:
                return
    if lines:
        yield "".join(lines)


def to_chatml(text: str) -> str:
    """A document whose turns are tagged <|user|>, <|assistant|>, <|end|> as ChatML; any other unchanged."""
    parts = TAG.split(text)  # text, tag, text, tag, ...
    if len(parts) == 1:
        return text
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return "".join(f"{TURN_START}{who}\n{said.strip()}{TURN_END}\n" for who, said in turns if who != "end")


def train_tokenizer(texts: Iterator[str], n_vocab: int) -> Tokenizer:
    """A byte-level BPE of n_vocab tokens; the last three are the special ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


@dataclass(frozen=True)
class Packed:
    """Tokens of one split, domain after domain."""

    tokens: NDArray[np.uint16]  # [n]
    starts: NDArray[np.int64]  # [documents] first token
    domains: NDArray[np.uint8]  # [documents] index into DOMAINS

    @classmethod
    def open(cls, folder: Path, split: str) -> "Packed":
        """What `pack` wrote; the tokens stay in the file."""
        index = np.load(folder / f"{split}.documents.npz")
        tokens: NDArray[np.uint16] = np.memmap(folder / f"{split}.u16", np.uint16, "r")
        return cls(tokens, index["starts"], index["domains"])

    def span(self, domain: int) -> tuple[int, int]:
        """First and one past the last token of a domain."""
        ends = np.append(self.starts[1:], len(self.tokens))
        mine = np.flatnonzero(self.domains == domain)
        return int(self.starts[mine[0]]), int(ends[mine[-1]])


def pack(corpus: Path, folder: Path, n_vocab: int, domain_bytes: int | None, seed: int = 0) -> None:
    """Write tokenizer.json and, per split, {split}.u16 and {split}.documents.npz into `folder`.

    The tokenizer learns from at most 3 MB of each domain's train split. Train documents are shuffled within their
    domain; `domain_bytes` bounds what is taken of each. A folder that is already complete is left alone.
    """
    if (folder / "corpus.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    sample = min(domain_bytes or 3_000_000, 3_000_000)
    tokenizer = train_tokenizer((t for d in DOMAINS for t in documents(corpus, d, "train", sample)), n_vocab)
    tokenizer.save(str(folder / "tokenizer.json"))
    rng = np.random.default_rng(seed)
    counts: dict[str, dict[str, int]] = {}
    for split in ("train", "test"):
        starts, domains, total = [], [], 0
        with (folder / f"{split}.u16").open("wb") as file:
            for number, domain in enumerate(DOMAINS):
                texts = [to_chatml(text) for text in documents(corpus, domain, split, domain_bytes)]
                if split == "train":
                    rng.shuffle(texts)
                before = total
                for at in range(0, len(texts), 1000):
                    batch = [text + END_OF_TEXT for text in texts[at : at + 1000]]
                    for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                        file.write(np.asarray(encoding.ids, np.uint16).tobytes())
                        starts.append(total)
                        domains.append(number)
                        total += len(encoding.ids)
                counts.setdefault(split, {})[domain] = total - before
        np.savez(folder / f"{split}.documents.npz", starts=np.int64(starts), domains=np.uint8(domains))
    (folder / "corpus.json").write_text(json.dumps({"tokens": counts, "domain_bytes": domain_bytes, "seed": seed}))


def token_lengths(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Bytes of text that each token stands for, [n_vocab]; 0 for the special ones."""
    letters = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    return np.array([0 if letter in SPECIAL else len(letter) for letter in letters], np.int64)
