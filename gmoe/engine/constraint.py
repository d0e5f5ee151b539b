"""Constraint: which tokens may come next in an answer that follows a grammar or a JSON schema, by `llguidance`.

The library is imported with the first grammar: it takes a third of the time to load a model.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from gmoe.engine.gbnf import GrammarError, gbnf_to_lark
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.schema import bounded

# As llama.cpp has it: between the parts of a JSON text no spaces for ever, and oneOf is anyOf.
JSON_STYLE: Any = {
    "whitespace_pattern": r"( |\n{1,2}[ \t]{0,20})",
    "coerce_one_of": True,
    "json_allow_general_unicode_escapes": True,  # else \u leads to nothing but control characters
}
SPECIAL = b"\xff"  # how llguidance knows a token that is no text
LIMITS: dict[str, Any] = {"step_max_items": 2_000_000, "initial_lexer_fuel": 10_000_000, "verbose_errors": False}


class Vocabulary(Protocol):
    """What is read of a tokenizer."""

    @property
    def n_vocab(self) -> int: ...

    @property
    def end_ids(self) -> frozenset[int]: ...

    @property
    def starts_with_space(self) -> bool: ...

    def text(self, id: int) -> str: ...

    def encode(self, text: str, add_special: bool = True) -> list[int]: ...

    def token_bytes(self, id: int) -> bytes: ...


class Constraint:
    """One answer's way through its grammar; `complete` says that nothing more may follow.

    Where `after` is given, everything may come until this text has been there, and the grammar begins behind it; with
    `unless` only in an answer that begins with that text. `mask` does not begin it: the model must have chosen it.
    """

    def __init__(self, matcher: Any, vocabulary: Vocabulary, after: str | None = None, unless: str | None = None):
        self._matcher, self._vocabulary = matcher, vocabulary
        self._after = after.encode() if after else b""
        self._unless = unless.encode() if after and unless else b""  # as long as either may come of what was said
        self._held: list[int] = []  # what was said meanwhile
        self._tail = b""

    @property
    def complete(self) -> bool:
        """Whether the answer is whole and cannot go on."""
        return not self._after and bool(self._matcher.is_stopped())

    def allows(self, token: int) -> bool:
        """Whether this token may come next; much faster than `mask`."""
        if self._after and not self._unless:
            return True
        if token >= self._vocabulary.n_vocab:
            return False
        return self._opens(token) or self._matcher.validate_tokens([*self._held, token]) == len(self._held) + 1

    def mask(self, n_vocab: int) -> np.ndarray:
        """bool [n_vocab]: True where a token may come next; raises `GrammarError` where there is none."""
        if self._after and not self._unless:
            return np.ones(n_vocab, dtype=bool)
        if self._held:  # rare
            return np.fromiter(map(self.allows, range(n_vocab)), dtype=bool, count=n_vocab)
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        allowed = np.zeros(n_vocab, dtype=bool)
        allowed[: len(bits)] = bits[:n_vocab]
        if self._matcher.is_error() or not allowed.any():
            raise GrammarError(f"the grammar allows no token here: {_first_line(self._matcher.get_error())}")
        return allowed

    def accept(self, token: int) -> None:
        """Go on behind a token that was allowed."""
        if self._unless:
            opens, tokens = self._opens(token), [*self._held, token]
            if opens and not self._said(token).startswith(self._unless):
                self._held = tokens
                return
            self._unless, self._held = b"", []
            if not opens:
                self._after = b""
                for one in tokens:
                    self.accept(one)
                return
        if self._after:
            self._tail += self._spelled(token)
            if self._after in self._tail:
                self._after = b""
            else:
                self._tail = self._tail[-len(self._after) :]
        elif not self._matcher.consume_token(token):
            raise GrammarError(f"the grammar cannot go on: {_first_line(self._matcher.get_error())}")

    def _opens(self, token: int) -> bool:
        """Whether `unless` has come with this token, or may still come."""
        said = self._said(token) if self._unless else b""
        return said != b"" and (said.startswith(self._unless) or self._unless.startswith(said))

    def _said(self, token: int) -> bytes:
        return b"".join(map(self._spelled, (*self._held, token))).lstrip()

    def _spelled(self, token: int) -> bytes:
        """Its bytes; the beginning and end of thinking may be control tokens."""
        return self._vocabulary.token_bytes(token) or self._vocabulary.text(token).encode()


class Grammars:
    """Compiles the grammars of requests for one model; its tokenizer is prepared when the first one comes."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self._tokenizer: Any = None
        self._door = threading.Lock()

    def compile(self, params: SamplingParams) -> Constraint | None:
        """The constraint that a request asks for, if any; a grammar that is none is a `GrammarError`."""
        schema = params.schema
        if params.grammar is None and schema is None:
            return None
        from llguidance import LLMatcher, LLParserLimits

        if params.grammar is not None:
            text = gbnf_to_lark(params.grammar) if "::=" in params.grammar else params.grammar
            what, grammar = "grammar", LLMatcher.grammar_from_lark(text)
        else:
            what, grammar = "json_schema", _schema_grammar(schema or {})
        matcher = LLMatcher(self._prepared(), grammar, log_level=0, limits=LLParserLimits(**LIMITS))
        if matcher.is_error():
            raise GrammarError(f"the {what} cannot be used: {_first_line(matcher.get_error())}")
        return Constraint(matcher, self._vocabulary, params.grammar_after, params.grammar_unless)

    def _prepared(self) -> Any:
        from llguidance import LLTokenizer, TokenizerWrapper

        with self._door:
            if self._tokenizer is None:
                vocabulary = _Tokens(self._vocabulary)
                self._tokenizer = LLTokenizer(TokenizerWrapper(vocabulary), eos_token=vocabulary.ends)
                if self._vocabulary.starts_with_space:  # then `encode` adds one to every text
                    vocabulary.greedy = self._tokenizer
            return self._tokenizer


class _Tokens:
    """A vocabulary in the shape that llguidance reads; tokens that add no text are special to it."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary
        self.greedy: Any = None
        pieces = [vocabulary.token_bytes(id) for id in range(vocabulary.n_vocab)]
        self.tokens = [piece or SPECIAL + vocabulary.text(id).encode() for id, piece in enumerate(pieces)]
        self.ends = sorted(vocabulary.end_ids)
        if not self.ends:  # llguidance wants one: a token that the model cannot choose
            self.ends = [len(self.tokens)]
            self.tokens.append(SPECIAL + b"<end>")
        self.special_token_ids = [id for id, piece in enumerate(self.tokens) if piece.startswith(SPECIAL)]
        self.eos_token_id, self.bos_token_id = self.ends[0], None

    def __call__(self, text: str) -> Sequence[int]:
        """The tokens of text that a grammar forces; bytes are refused, so that llguidance gives text."""
        if not isinstance(text, str):
            raise TypeError(text)
        if self.greedy:
            tokens: list[int] = self.greedy.greedy_tokenize(text)
            return tokens
        return self._vocabulary.encode(text, add_special=False)


def _schema_grammar(schema: Mapping[str, Any]) -> str:
    from llguidance import LLMatcher

    try:
        return str(LLMatcher.grammar_from_json_schema(json.dumps(bounded(schema)), defaults=JSON_STYLE))
    except RecursionError:
        raise GrammarError("the json_schema cannot be used: it is nested too deeply") from None
    except (TypeError, ValueError) as error:
        raise GrammarError(f"the json_schema cannot be used: {_first_line(str(error))}") from None


def _first_line(text: str) -> str:
    return " ".join(text.partition("\n<")[0].split())[:300] or "it allows nothing"
