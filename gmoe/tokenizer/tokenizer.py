"""Tokenizer: text to token ids and back, from GGUF metadata alone, as llama.cpp does it."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from gmoe.gguf.file import GGUFFile, InvalidFile, UnsupportedModel
from gmoe.tokenizer import pretokenize
from gmoe.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary


class _Encoder(Protocol):
    def encode(self, text: str, after_special: bool) -> list[int]: ...

    def piece(self, token: str) -> bytes: ...


class Tokenizer:
    """Made by `from_gguf` or `from_file`.

    `bos_id`, `eos_id`: None where the file has none. `add_bos`, `add_eos`: whether `encode(add_special=True)` puts
    them around the text. `space_prefix`: whether a text's first piece carries a space that is not the text's.
    """

    def __init__(self, metadata: Mapping[str, Any], file: str) -> None:
        self._vocabulary = Vocabulary(metadata, file)
        self._pieces: dict[int, bytes] = {}
        self._specials = self._vocabulary.specials()
        self._strips_right = self._right_stripping(str(metadata.get("general.name", "")).lower())
        model = metadata.get("tokenizer.ggml.model")
        defaults = _sentence_pieces if model in ("llama", "t5") else _byte_pairs if model in ("gpt2", "gemma4") else None
        if defaults is None:
            raise UnsupportedModel(file, "tokenizer.ggml.model", f"{model!r} is none of 'gpt2', 'gemma4', 'llama', 't5'")
        self._encoder, flags, roles = defaults(self._vocabulary, metadata, file)
        self.bos_id = self._vocabulary.role("bos", roles.get("bos"))
        self.eos_id = self._vocabulary.role("eos", roles.get("eos"))
        self._ends = self._vocabulary.ends | ({self.eos_id} if self.eos_id is not None else set())
        self.space_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", flags["add_space_prefix"]))
        self.add_bos = flags["force_bos"] or bool(metadata.get("tokenizer.ggml.add_bos_token", flags["add_bos"]))
        self.add_eos = bool(metadata.get("tokenizer.ggml.add_eos_token", flags["add_eos"]))
        for wanted, id, name in ((self.add_bos, self.bos_id, "bos"), (self.add_eos, self.eos_id, "eos")):
            if wanted and id is None:
                raise InvalidFile(file, f"tokenizer.ggml.add_{name}_token asks for a token that the file does not name")

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], file: str) -> "Tokenizer":
        """The tokenizer that `metadata` describes; errors are GGUFErrors that name `file`."""
        return cls(metadata, file)

    @classmethod
    def from_file(cls, path: Path | str) -> "Tokenizer":
        """The tokenizer of the GGUF file at `path`, which needs no tensors."""
        with GGUFFile.open(path) as file:
            return cls(file.metadata, str(path))

    @property
    def n_vocab(self) -> int:
        """How many tokens there are."""
        return len(self._vocabulary.tokens)

    def is_end(self, id: int) -> bool:
        """Whether `id` ends an answer."""
        return id in self._ends

    def token_text(self, id: int) -> str:
        """The text of token `id` as the file spells it."""
        return self._vocabulary.tokens[id]

    def token_bytes(self, id: int) -> bytes:
        """The bytes that token `id` puts into a text (special tokens: their own text; unused ones: nothing)."""
        if id not in self._pieces:
            self._pieces[id] = self._piece(id)
        return self._pieces[id]

    def is_special(self, id: int) -> bool:
        """Whether `id` is a control or unknown token, which a reader of the text need not see."""
        return self._vocabulary.types[id] in (CONTROL, UNKNOWN)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """The ids of `text`.

        `add_special`: with the beginning and end tokens that the file asks for. `parse_special`: control tokens
        written out in the text are those tokens; user-defined ones always are. Lone surrogates become U+FFFD.
        """
        text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if not text.isascii() else text
        ids = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        after_special = True
        for fragment in self._fragments(text, parse_special):
            after_special = isinstance(fragment, int) or self._add(ids, fragment, after_special)
            if isinstance(fragment, int):
                ids.append(fragment)
        return ids + [self.eos_id] if add_special and self.add_eos and self.eos_id is not None else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens written out; broken UTF-8 becomes U+FFFD.

        This is llama.cpp's detokenizing without its clean-up of spaces before punctuation, which loses text.
        """
        pieces = [self.token_bytes(int(id)) for id in ids]
        if pieces and self.space_prefix:
            pieces[0] = pieces[0].removeprefix(b" ")
        return b"".join(pieces).decode("utf-8", "replace")

    def _add(self, ids: list[int], text: str, after_special: bool) -> bool:
        ids += self._encoder.encode(text, after_special)
        return False

    def _piece(self, id: int) -> bytes:
        kind, text = self._vocabulary.types[id], self._vocabulary.tokens[id]
        if kind == NORMAL:
            return self._encoder.piece(text)
        if kind == BYTE:
            return bytes([int(text[3:5], 16)])
        return text.encode() if kind in (CONTROL, UNKNOWN, USER_DEFINED) else b""

    def _fragments(self, text: str, parse_special: bool) -> Iterator[str | int]:
        """`text` cut at its special tokens, the longest ones first."""
        fragments: list[str | int] = [text] if text else []
        for id in self._specials:
            special = self._vocabulary.tokens[id]
            if special in text and (parse_special or self._vocabulary.types[id] == USER_DEFINED):
                fragments = [part for whole in fragments for part in self._cut(whole, id, special)]
        return iter(fragments)

    def _cut(self, fragment: str | int, id: int, special: str) -> Iterator[str | int]:
        if isinstance(fragment, int):
            yield fragment
            return
        while fragment:
            left, found, right = fragment.partition(special)
            if left:
                yield left
            if found:
                yield id
            fragment = right.lstrip(" \t\n\v\f\r") if id in self._strips_right else right

    def _right_stripping(self, model_name: str) -> frozenset[int]:
        """Phi-3's special tokens eat the white space after them, which no metadata key says."""
        if "phi-3" not in model_name and "phi3" not in model_name:
            return frozenset()
        tokens = self._vocabulary.tokens
        return frozenset(id for id in self._specials if tokens[id] not in ("<unk>", "<s>", "<|endoftext|>"))


_Parts = tuple[_Encoder, dict[str, bool], dict[str, int]]


def _byte_pairs(vocabulary: Vocabulary, metadata: Mapping[str, Any], file: str) -> _Parts:
    from gmoe.tokenizer.bpe import BytePairs

    gemma4 = metadata["tokenizer.ggml.model"] == "gemma4"
    pre = pretokenize.find("gemma4" if gemma4 else metadata.get("tokenizer.ggml.pre") or "default", file)
    merges = metadata.get("tokenizer.ggml.merges")
    if merges is None:
        raise InvalidFile(file, "tokenizer.ggml.merges is missing")
    flags = {"add_bos": pre.add_bos, "add_eos": False, "add_space_prefix": False, "force_bos": pre.forces_bos}
    return BytePairs(vocabulary.tokens, merges, pre), flags, {}


def _sentence_pieces(vocabulary: Vocabulary, metadata: Mapping[str, Any], file: str) -> _Parts:
    from gmoe.tokenizer.spm import SentencePieces

    model = metadata["tokenizer.ggml.model"]
    llama = model == "llama"
    roles = {"bos": 1, "eos": 2, "unknown": 0} if llama else {"eos": 1, "unknown": 2}
    flags = {"add_bos": llama, "add_eos": not llama, "add_space_prefix": llama, "force_bos": False}
    unknown = vocabulary.role("unknown", roles["unknown"])
    try:
        encoder = SentencePieces(
            model,
            vocabulary.tokens,
            vocabulary.numbers("scores", 0.0),
            vocabulary.types,
            unknown=unknown or 0,
            space_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", llama)),
            remove_extra_spaces=bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)),
            charsmap=bytes(bytearray(metadata.get("tokenizer.ggml.precompiled_charsmap", b""))),
        )
    except (RuntimeError, ValueError) as error:
        raise InvalidFile(file, f"its tokens make no SentencePiece model ({str(error).splitlines()[0]})") from error
    return encoder, flags, roles
