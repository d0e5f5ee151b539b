"""OpenAI's dialect: /v1/completions and /v1/embeddings."""

import base64
import codecs
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field

from gmoe.server.ask import Ask, Chosen, End, Events, Piece, together, wholes
from gmoe.server.body import Body, read
from gmoe.server.openai import DONE, Sampled, common, head, no_usage, sampling, several, so_far, usage, wants_usage
from gmoe.server.stream import Chunk


class CompletionBody(Sampled):
    """POST /v1/completions"""

    prompt: str | list[str] | list[int] | list[list[int]] | None = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None


class EmbeddingsBody(Body):
    """POST /v1/embeddings"""

    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: str | None = None
    dimensions: int | None = Field(None, ge=1)


def parse_completion(body: Any) -> Ask:
    """POST /v1/completions."""
    given = read(CompletionBody, body)
    wanted = sampling(given)
    if given.logprobs is not None:
        wanted["logprobs"] = given.logprobs
    echo = bool(given.echo)
    prompts = _prompts(given.prompt)
    one = Ask(
        prompt=prompts[0],
        suffix=given.suffix or None,
        echo=echo,
        shift=not (echo and given.logprobs is not None),  # all of its tokens, or none
        **common(given, wanted, body),
    )
    return several([replace(one, prompt=prompt) for prompt in prompts], given.n)


def render_completion(ask: Ask, events: Events) -> Iterator[Chunk]:
    """Chunks of a text completion, or the whole of it."""
    first = head("cmpl", ask) | {"object": "text_completion"}
    if not ask.stream:
        answers = wholes(events)
        choices = [
            _text(n, piece.content, _text_logprobs(piece, _Places()), end.reason)
            for n, (piece, end) in enumerate(answers)
        ]
        yield first | {"choices": choices, **usage(together([end for _, end in answers], ask))}
        return
    places: defaultdict[int, _Places] = defaultdict(_Places)
    ends: list[End] = []
    for event in events:
        if isinstance(event, End):
            ends.append(event)
            yield first | {"choices": [_text(event.choice, "", None, event.reason)], **no_usage(ask)}
        elif isinstance(event, Piece) and (event.content or event.logprobs or event.read):
            said = _text(event.choice, event.content, _text_logprobs(event, places[event.choice]))
            yield first | {"choices": [said], **no_usage(ask), **so_far(event)}
    if wants_usage(ask):
        yield first | {"choices": [], **usage(together(ends, ask))}
    yield DONE


def embeddings(given: EmbeddingsBody, vectors: Sequence[np.ndarray], n_tokens: int) -> dict[str, Any]:
    """The body of /v1/embeddings; vectors are float32 [n_embd]."""
    data = []
    for index, vector in enumerate(vectors):
        raw = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        value: Any = raw if given.encoding_format == "base64" else [float(x) for x in vector]
        data.append({"object": "embedding", "index": index, "embedding": value})
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "data": data, "model": given.model, "usage": usage}


def _prompts(given: Any) -> list[Any]:
    """One prompt is a text or ids."""
    if isinstance(given, list) and given and not isinstance(given[0], int):
        return given
    return ["" if given is None else given]


def _text(index: int, text: str, logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
    return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": reason}


class _Places:
    """Where the tokens of a text begin in it, as they come: one amid a character where that does."""

    def __init__(self) -> None:
        self._decoder, self._at = codecs.getincrementaldecoder("utf-8")("replace"), 0

    def of(self, token: Chosen) -> int:
        """Characters before this token."""
        at = self._at
        self._at += len(self._decoder.decode(token.raw))
        return at


def _text_logprobs(piece: Piece, places: _Places) -> dict[str, Any] | None:
    if not piece.logprobs:
        return None
    return {
        "tokens": [token.token for token in piece.logprobs],
        "token_logprobs": [token.logprob for token in piece.logprobs],
        "top_logprobs": [_top(token) for token in piece.logprobs],
        "text_offset": [places.of(token) for token in piece.logprobs],
    }


def _top(token: Chosen) -> dict[str, float | None] | None:
    """The likeliest by their text, likeliest first; of those with the same one the first."""
    found: dict[str, float | None] = {}
    for top in token.top:
        found.setdefault(top.token, top.logprob)
    return None if token.logprob is None else found
