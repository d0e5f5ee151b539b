"""SentencePiece: a `sentencepiece` model proto built in memory from a file's tokens, scores and types."""

from collections.abc import Sequence

from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

SPACE = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_MODEL_TYPES = {"llama": 2, "t5": 1}  # of TrainerSpec: BPE, UNIGRAM


class SentencePieces:
    """Text without special tokens to ids and a token's text to bytes; `model` is "llama" (BPE) or "t5" (unigram)."""

    def __init__(
        self,
        model: str,
        tokens: Sequence[str],
        scores: Sequence[float],
        types: Sequence[int],
        *,
        unknown: int,
        space_prefix: bool,
        remove_extra_spaces: bool,
        charsmap: bytes = b"",
    ) -> None:
        self._prefix = " " if space_prefix and model == "llama" else ""
        proto = ModelProto()
        proto.trainer_spec.model_type = _MODEL_TYPES[model]
        proto.trainer_spec.byte_fallback = sum(kind == _BYTE for kind in types) == 256
        proto.trainer_spec.unk_id = unknown
        proto.normalizer_spec.name = "identity"
        proto.normalizer_spec.precompiled_charsmap = charsmap
        proto.normalizer_spec.add_dummy_prefix = space_prefix and model == "t5"
        proto.normalizer_spec.remove_extra_whitespaces = remove_extra_spaces and model == "t5"
        for id, (token, score, kind) in enumerate(zip(tokens, scores, types, strict=True)):
            piece = proto.pieces.add()
            piece.piece, piece.score, piece.type = token, score, _piece_type(id, kind, unknown)
        self._processor = SentencePieceProcessor(model_proto=proto.SerializeToString())

    def encode(self, text: str, after_special: bool) -> list[int]:
        """The ids of `text`, in which no special token is looked for; `after_special`: a special token, or nothing,
        stands before it, so that the space prefix is due."""
        ids: list[int] = self._processor.encode((self._prefix if after_special else "") + text)
        return ids

    def piece(self, token: str) -> bytes:
        """The bytes that the normal token `token` stands for."""
        return token.replace(SPACE, " ").encode()


def _piece_type(id: int, kind: int, unknown: int) -> int:
    """The proto's type: exactly one piece may be unknown, and llama.cpp merges unused tokens as if they were normal."""
    if id == unknown:
        return _UNKNOWN
    return kind if kind in (_CONTROL, _BYTE) else _CONTROL if kind == _UNKNOWN else _NORMAL
