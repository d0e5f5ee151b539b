"""The tokens of a file: their texts, types and roles, with the corrections that llama.cpp makes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmoe.gguf.file import InvalidFile

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

_END_TEXTS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> "
    "<｜end▁of▁sentence｜> [e~[".split()
)
_FILL_END_TEXTS = frozenset(
    "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> "
    "<|file_sep|>".split()
)
_FILL_TEXTS = frozenset(
    "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|> "
    "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|> "
    "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>".split()
)
_SHOWN_TEXTS = frozenset("<|channel|> <|message|> <|start|> <|constrain|>".split())
_END_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")


class Vocabulary:
    """`tokens` (texts), `types` (of `tokenizer.ggml.token_type`) and `ends` (the ids that end an answer)."""

    def __init__(self, metadata: Mapping[str, Any], file: str) -> None:
        self._metadata, self._file = metadata, file
        texts = metadata.get("tokenizer.ggml.tokens")
        if texts is None or isinstance(texts, (str, bytes)) or not hasattr(texts, "__len__"):
            raise InvalidFile(file, "tokenizer.ggml.tokens is missing or not a list of strings")
        self.tokens = [text or f"[EMPTY_{id}]" for id, text in enumerate(texts)]
        self.ids = {text: id for id, text in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise InvalidFile(file, "tokenizer.ggml.tokens has the same token twice")
        types = self.numbers("token_type", NORMAL)
        self.types = [int(kind) for kind in types]
        self.ends = self._correct()

    def numbers(self, key: str, default: float) -> Sequence[float]:
        """The array `tokenizer.ggml.KEY`, one number a token; `default` for each where the file has none."""
        values = self._metadata.get(f"tokenizer.ggml.{key}")
        if values is None:
            return [default] * len(self.tokens)
        array = np.asarray(values)
        if array.ndim != 1 or array.dtype.kind not in "iuf" or len(array) < len(self.tokens):
            raise InvalidFile(self._file, f"tokenizer.ggml.{key} is not one number a token")
        numbers: list[float] = array[: len(self.tokens)].tolist()
        return numbers

    def role(self, name: str, default: int | None = None) -> int | None:
        """The id of `tokenizer.ggml.NAME_token_id`, or `default`; an id outside the vocabulary counts as absent."""
        id = self._metadata.get(f"tokenizer.ggml.{name}_token_id", default)
        return id if isinstance(id, int) and 0 <= id < len(self.tokens) else None

    def specials(self) -> list[int]:
        """The tokens that are cut out of a text before anything else: the longest first."""
        found = [id for id, kind in enumerate(self.types) if kind in (CONTROL, USER_DEFINED, UNKNOWN)]
        return sorted(found, key=lambda id: -len(self.tokens[id].encode()))

    def _correct(self) -> frozenset[int]:
        """Retypes tokens whose text gives them away, and returns those that end an answer."""
        at = self.ids
        ends = {at[text] for text in (_END_TEXTS | _FILL_END_TEXTS) & at.keys()}
        for id in ends | {at[text] for text in _FILL_TEXTS & at.keys()}:
            self.types[id] = CONTROL
        for text in _SHOWN_TEXTS & at.keys():
            self.types[at[text]] = USER_DEFINED
        ends |= {id for name in _END_KEYS if (id := self.role(name)) is not None}
        calls = "<|call|>" in at or "<|calls|>" in at
        if calls and "<|end|>" in at and ("<|return|>" in at or "<|flush|>" in at):
            ends.discard(at["<|end|>"])  # there it ends a message, not the answer
            self.types[at["<|end|>"]] = USER_DEFINED
        if "<|tool_response>" in at and "</s>" in at:
            ends.discard(at["</s>"])
            self.types[at["</s>"]] = NORMAL
        return frozenset(ends)
