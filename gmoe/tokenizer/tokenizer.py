"""Tokenizer: text <-> ids from GGUF metadata alone, as llama.cpp does it."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gmoe.gguf.file import GGUFFile, Strings, UnsupportedModel
from gmoe.tokenizer import special
from gmoe.tokenizer.pretokenize import Pretokenizer, pretokenizer
from gmoe.tokenizer.special import BYTE, CONTROL, NORMAL, UNDEFINED, UNKNOWN, UNUSED, USER_DEFINED
from gmoe.tokenizer.vocabulary import Vocabulary

KEY = "tokenizer.ggml."


class Tokenizer:
    """`encode` and `decode`; special tokens are found in the text only where the caller allows it.

    `notices` holds what should be said about the file.
    """

    def __init__(self, metadata: Mapping[str, Any], file: str):
        def get(name: str, default: Any = None) -> Any:
            return metadata.get(KEY + name, default)

        self._file = file
        self.notices: list[str] = []
        for name in ("model", "tokens"):
            if get(name) is None:
                raise UnsupportedModel(file, KEY + name, "required for a tokenizer")
        for name in ("model", "pre"):
            if get(name) is not None and not isinstance(get(name), str):
                raise UnsupportedModel(file, KEY + name, "must be text")
        for name in ("add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces"):
            if get(name) is not None and (not isinstance(get(name), int) or get(name) not in (0, 1)):
                raise UnsupportedModel(file, KEY + name, "must be true or false")
        self._model_name = get("model")
        for name in ("tokens", "merges"):
            if (texts := get(name)) is not None and not _are_texts(texts):
                raise UnsupportedModel(file, KEY + name, "must be an array of strings")
        self._tokens = Vocabulary(get("tokens"))
        n = len(self._tokens)
        for name in ("token_type", "scores"):
            if (numbers := get(name)) is not None and not _are_numbers(numbers):
                raise UnsupportedModel(file, KEY + name, "must be an array of numbers")
        types = np.asarray(get("token_type", [NORMAL] * n))
        if len(types) != n:
            raise UnsupportedModel(file, KEY + "token_type", f"has {len(types)} entries for {n} tokens")
        if n and types.dtype.kind not in "iu":
            raise UnsupportedModel(file, KEY + "token_type", "its entries must be whole numbers")
        self._types = np.where((types >= UNDEFINED) & (types <= BYTE), types, UNDEFINED).astype(np.int32)
        roles = {key.removeprefix(KEY).removesuffix("_token_id") for key in metadata if key.endswith("_token_id")}
        named = {role: id for role in roles if isinstance(id := get(f"{role}_token_id"), int) and 0 <= id < n}
        self._types, self.end_ids = special.correct(self._tokens, self._types, named)
        self._pre = Pretokenizer((), add_bos=True)
        self._add_space = False
        self._make = self._model_maker(get)
        bos, eos = (1, 2) if self._model_name == "llama" else (None, None)
        self.bos_id: int | None = self._id(get("bos_token_id", bos), "bos_token_id")
        self.eos_id: int | None = self._id(get("eos_token_id", eos), "eos_token_id")
        self.add_bos = self._pre.forces_bos or bool(get("add_bos_token", self._pre.add_bos))
        self.add_eos = bool(get("add_eos_token", self._model_name == "t5"))
        self.end_ids |= frozenset(() if self.eos_id is None else (self.eos_id,))
        found = np.flatnonzero(np.isin(self._types, (UNKNOWN, CONTROL, USER_DEFINED))).tolist()
        self._special = sorted(found, key=lambda id: -len(self._tokens[id].encode()))
        stripped = re.search("phi-?3", str(metadata.get("general.name", "")).lower()) is not None
        keep = {"<unk>", "<s>", "<|endoftext|>"}
        self._rstrip = {id for id in self._special if stripped and self._tokens[id] not in keep}

    @cached_property
    def _model(self) -> Any:
        """The model below the special tokens, made when the first text is read: a large vocabulary takes its time."""
        return self._make()

    def prepare(self) -> None:
        """Make it now: where memory is counted, it must not come later."""
        _ = self._model

    def _model_maker(self, get: Any) -> Callable[[], Any]:
        """What makes it, after a look at what it needs; the libraries load only where they are needed."""
        if self._model_name in ("gpt2", "gemma4"):
            name = "gemma4" if self._model_name == "gemma4" else get("pre")
            if not name:
                self.notices.append(
                    f"{self._file} has no {KEY}pre: text is cut as for 'default', and answers may be worse for it"
                )
            self._pre = pretokenizer(name or "default", self._file)
            if get("merges") is None:
                raise UnsupportedModel(self._file, KEY + "merges", "required by a BPE tokenizer")

            def bpe() -> Any:
                from gmoe.tokenizer.bpe import Bpe

                return Bpe(get("tokens"), get("merges"), self._pre, self.text)

            return bpe
        if self._model_name in ("llama", "t5"):
            scores = get("scores")
            if scores is None or len(scores) != len(self._tokens):
                raise UnsupportedModel(self._file, KEY + "scores", "one score a token is required by SentencePiece")
            self._add_space = bool(get("add_space_prefix", self._model_name == "llama"))
            self._pre = Pretokenizer((), add_bos=self._model_name == "llama")
            squeeze = bool(get("remove_extra_whitespaces", False))
            charsmap = np.asarray(get("precompiled_charsmap", np.empty(0, np.uint8)))
            if charsmap.dtype.itemsize != 1 or charsmap.ndim != 1:
                raise UnsupportedModel(self._file, KEY + "precompiled_charsmap", "must be an array of bytes")
            unigram = self._model_name == "t5"

            def spm() -> Any:
                from gmoe.tokenizer.spm import Spm

                tokens, types = [self.text(id) for id in range(self.n_vocab)], self._types.tolist()
                return Spm(tokens, scores, types, unigram, self._file, squeeze and unigram, charsmap.tobytes())

            return spm
        raise UnsupportedModel(
            self._file, KEY + "model", f"{self._model_name!r} is not supported; supported: gpt2, gemma4, llama, t5"
        )

    def _id(self, value: Any, name: str) -> int | None:
        if value is None:
            return None
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise UnsupportedModel(self._file, KEY + name, "must be the number of a token")
        if not 0 <= value < len(self._tokens):
            raise UnsupportedModel(self._file, KEY + name, f"{value} is not one of {len(self._tokens)} tokens")
        return int(value)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], file: str) -> "Tokenizer":
        """From a file's metadata; raises `UnsupportedModel` naming the key."""
        return cls(metadata, file)

    @classmethod
    def from_file(cls, path: Path | str) -> "Tokenizer":
        """From a GGUF file, which needs no tensors; mapped while it is used: it must not be cut off."""
        with GGUFFile.open(path) as file:
            return cls(file.metadata, str(path))

    @property
    def n_vocab(self) -> int:
        """How many tokens there are."""
        return len(self._tokens)

    def text(self, id: int) -> str:
        """A token as the file spells it."""
        return self._tokens[id]

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Ids; `add_special` adds what the file wants at the ends, `parse_special` finds control tokens in the text.

        A lone surrogate in `text` counts as U+FFFD.
        """
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if not text.isascii() else text
        ids = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        after_special = True
        for part in self._split(text, parse_special):
            if isinstance(part, int):
                ids.append(part)
                after_special = True
            else:
                prefix = " " if self._add_space and after_special and self._takes_prefix(part) else ""
                ids += self._model.encode(prefix + part)
                after_special = False
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def _takes_prefix(self, part: str) -> bool:
        return self._model_name != "t5" or part.strip(" ") != ""

    def _split(self, text: str, parse_special: bool) -> list[str | int]:
        """The text cut at its special tokens, the longest first."""
        parts: list[str | int] = [text] if text else []
        for id in self._special:
            token = self._tokens[id]
            if (not parse_special and self._types[id] != USER_DEFINED) or token not in text:
                continue
            parts = [piece for part in parts for piece in self._cut(part, token, id)]
        return parts

    def _cut(self, part: str | int, token: str, id: int) -> list[str | int]:
        if isinstance(part, int) or token not in part:
            return [part]
        out: list[str | int] = []
        for n, piece in enumerate(part.split(token)):
            if n:
                out.append(id)
                piece = piece.lstrip(" \t\n\v\f\r") if id in self._rstrip else piece
            if piece:
                out.append(piece)
        return out

    def token_bytes(self, id: int) -> bytes:
        """What a token adds to the text; control, unused and undefined tokens add nothing."""
        if not 0 <= id < len(self._tokens):
            raise ValueError(f"{id} is not one of {len(self._tokens)} tokens")
        kind = self._types[id]
        if kind in (CONTROL, UNKNOWN, UNUSED, UNDEFINED):
            return b""
        if kind == USER_DEFINED:
            return self._tokens[id].encode()
        if kind == BYTE and re.fullmatch("<0x[0-9A-F]{2}>", self._tokens[id]):
            return bytes([int(self._tokens[id][3:5], 16)])
        raw: bytes = self._model.token_bytes(id)
        return raw

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens spelled out; bytes that are no UTF-8 become U+FFFD."""
        pieces = [self._spelled(id) for id in ids]
        if pieces and self._add_space:
            pieces[0] = pieces[0].removeprefix(b" ")
        text = b"".join(pieces).decode("utf-8", "replace")
        return clean(text) if self._pre.clean_spaces else text

    def _spelled(self, id: int) -> bytes:
        piece = self.token_bytes(id)
        return self._tokens[id].encode() if self._types[id] in (CONTROL, UNKNOWN) else piece

    @property
    def starts_with_space(self) -> bool:
        """Whether a text's first token carries a space that is not in the text."""
        return self._add_space

    def is_end(self, id: int) -> bool:
        """Whether a token ends an answer."""
        return id in self.end_ids


def clean(text: str) -> str:
    """Without the spaces before punctuation, as `clean_up_tokenization_spaces` wants it."""
    text = re.sub(r" ([?!.,])", r"\1", text)
    text = text.replace(" ' ", "'")
    return re.sub(r" '(s|m|ve|re)", r"'\1", text)


def _are_numbers(value: Any) -> bool:
    if not isinstance(value, list | np.ndarray):
        return False
    numbers = np.asarray(value)
    return numbers.ndim == 1 and numbers.dtype.kind in "iuf" and not np.isnan(numbers).any()


def _are_texts(value: Any) -> bool:
    return isinstance(value, Strings) or (isinstance(value, list) and all(isinstance(text, str) for text in value))
