"""SentencePiece: a `sentencepiece` model proto built in memory from a GGUF file's tokens, scores and types."""

from collections.abc import Sequence
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from gmoe.gguf.file import UnsupportedModel

UNDEFINED, NORMAL, UNKNOWN, CONTROL, BYTE = 0, 1, 2, 3, 6
SPACE = "\u2581"


class Spm:
    """Text without special tokens <-> ids; spaces are kept as they are."""

    def __init__(
        self,
        tokens: Sequence[str],
        scores: Sequence[float],
        types: Sequence[int],
        unigram: bool,
        file: str,
        squeeze: bool = False,
        charsmap: bytes = b"",
    ):
        """`squeeze`: runs of spaces are one; `charsmap`: the file's compiled normalization, none if empty."""
        proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        unknown = next((id for id, kind in enumerate(types) if kind == UNKNOWN), 0)
        seen: set[str] = set()
        for id, (token, score, kind) in enumerate(zip(tokens, scores, types, strict=True)):
            # The library wants one unknown piece and no piece twice; a duplicate could never be chosen anyway.
            # Unused and user-defined pieces are merged as normal ones: llama.cpp makes no difference below this point.
            kind = UNKNOWN if id == unknown else CONTROL if kind == UNKNOWN else kind
            if unigram and kind in (UNDEFINED, BYTE):
                kind = CONTROL  # never found in a text: there is no byte fallback
            kind = kind if kind in (UNKNOWN, CONTROL, BYTE) else NORMAL
            piece = token if token and token not in seen else f"{token}\0{id}"
            seen.add(piece)
            proto.pieces.add(piece=piece, score=float(score), type=kind)
        proto.trainer_spec.model_type = 1 if unigram else 2
        proto.trainer_spec.byte_fallback = not unigram and BYTE in types
        proto.normalizer_spec.name = "identity"
        proto.normalizer_spec.add_dummy_prefix = squeeze
        proto.normalizer_spec.remove_extra_whitespaces = squeeze
        proto.normalizer_spec.precompiled_charsmap = charsmap
        proto.normalizer_spec.escape_whitespaces = True
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        except RuntimeError as error:
            raise UnsupportedModel(
                file, "tokenizer.ggml.tokens", f"no SentencePiece model can be made of them ({error})"
            ) from None
        self._tokens = tokens

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        ids: list[int] = self._model.encode(text, out_type=int)
        return ids

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for."""
        return self._tokens[id].replace(SPACE, " ").encode()
