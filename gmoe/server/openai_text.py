"""OpenAI's dialect: /v1/completions and /v1/embeddings."""

import base64
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from gmoe.server.ask import Ask, End, Events, Piece, Refused, whole
from gmoe.server.body import Body, read
from gmoe.server.openai import DONE, Sampled, common, head, no_usage, sampling, usage, wants_usage
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
    prompt = given.prompt
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise Refused(400, "more than one prompt in a request is not supported")
        prompt = prompt[0]
    wanted = sampling(given)
    if given.logprobs is not None:
        wanted["logprobs"] = given.logprobs
    return Ask(
        prompt=prompt if prompt is not None else "",  # type: ignore[arg-type]
        suffix=given.suffix or None,
        echo=bool(given.echo),
        **common(given, wanted),
    )


def render_completion(ask: Ask, events: Events) -> Iterator[Chunk]:
    """Chunks of a text completion, or the whole of it."""
    first = head("cmpl", ask) | {"object": "text_completion"}
    said = ask.prompt if ask.echo and isinstance(ask.prompt, str) else ""
    if not ask.stream:
        piece, end = whole(events)
        choice = _text(said + piece.content, _text_logprobs(piece, len(said)), end.reason)
        yield first | {"choices": [choice], **usage(end.usage)}
        return
    if said:
        yield first | {"choices": [_text(said)], **no_usage(ask)}
    at = len(said)
    for event in events:
        if isinstance(event, End):
            yield first | {"choices": [_text("", None, event.reason)], **no_usage(ask)}
            if wants_usage(ask):
                yield first | {"choices": [], **usage(event.usage)}
            yield DONE
        elif isinstance(event, Piece) and (event.content or event.logprobs):
            yield first | {"choices": [_text(event.content, _text_logprobs(event, at))], **no_usage(ask)}
            at += len(event.content)


def embeddings(given: EmbeddingsBody, vectors: Sequence[np.ndarray], n_tokens: int) -> dict[str, Any]:
    """The body of /v1/embeddings; vectors are float32 [n_embd]."""
    data = []
    for index, vector in enumerate(vectors):
        raw = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        value: Any = raw if given.encoding_format == "base64" else [float(x) for x in vector]
        data.append({"object": "embedding", "index": index, "embedding": value})
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "data": data, "model": given.model, "usage": usage}


def _text(text: str, logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
    return {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": reason}


def _text_logprobs(piece: Piece, at: int) -> dict[str, Any] | None:
    if not piece.logprobs:
        return None
    offsets = []
    for token in piece.logprobs:
        offsets.append(at)
        at += len(token.token)
    return {
        "tokens": [token.token for token in piece.logprobs],
        "token_logprobs": [token.logprob for token in piece.logprobs],
        "top_logprobs": [{top.token: top.logprob for top in token.top} for token in piece.logprobs],
        "text_offset": offsets,
    }
