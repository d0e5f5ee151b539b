"""llama-server's dialect: /completion."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from gmoe.engine.sampling import SamplingParams, lenient
from gmoe.server.ask import Ask, Chosen, End, Events, Piece, Refused, wholes
from gmoe.server.body import read
from gmoe.server.lacking import LLAMA, checked
from gmoe.server.llama_options import DEFAULTS, SamplingBody, fields_of, sampled, settings
from gmoe.server.openai import LONGEST_MS, several, so_far
from gmoe.server.stream import Chunk

ALIASES = {"max_completion_tokens": "n_predict", "max_tokens": "n_predict", "n": "n_cmpl", "logprobs": "n_probs"}
OTHERS = ("stream_options",)  # of OpenAI's dialect, which some clients send here as well


class CompletionBody(SamplingBody):
    """POST /completion"""

    model: str | None = None
    prompt: str | dict[str, Any] | list[int | str | dict[str, Any] | list[int | str]]
    stream: bool | None = None
    n_predict: int | None = None
    n_cmpl: int | None = Field(None, ge=1, le=2**31)
    t_max_predict_ms: int | None = Field(None, le=LONGEST_MS)
    typ_p: float | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    logit_bias: list[list[float | str | bool]] | dict[str, float] | None = None
    n_probs: int | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    cache_prompt: bool | None = None
    return_tokens: bool | None = None
    timings_per_token: bool | None = None
    response_fields: list[str] | None = None
    task: str | None = Field(None, description="gmoe: requests of one task may be decoded together")
    target_seconds: float | None = Field(None, gt=0, description="gmoe: when the answer should have ended")


def parse_completion(body: Any, model: str) -> Ask:
    """POST /completion to `model`."""
    given = read_completion(body)
    ask = Ask(
        model=model,
        sampling=_sampling(given),
        defaults=DEFAULTS,
        stream=bool(given.stream),
        ignore_end=bool(given.ignore_eos),
        mute=given.n_predict == 0,
        truncate=False,
        reuse=given.cache_prompt is not False,
        timed=bool(given.timings_per_token),
        tells=bool(given.stream and given.return_progress),
        predict_seconds=(given.t_max_predict_ms or 0) / 1e3,
        task=given.task,
        target_seconds=given.target_seconds,
        warnings=checked(body, {*CompletionBody.model_fields, *ALIASES, *OTHERS}, LLAMA),
        extra={"tokens": bool(given.return_tokens), "fields": given.response_fields or ()},
    )
    return several([replace(ask, prompt=prompt) for prompt in _prompts(model, given.prompt)], given.n_cmpl)


def read_completion(body: Any) -> CompletionBody:
    """The body, also where it has OpenAI's names."""
    if isinstance(body, dict):
        body = {ALIASES[name]: body[name] for name in ALIASES if body.get(name) is not None} | body
    return read(CompletionBody, body)


def render_completion(ask: Ask, events: Events) -> Iterator[Chunk]:
    """The events of /completion, or its only object: a list of them where there are several answers."""
    parts = ask.parts or [ask]
    if not ask.stream:
        answers = [
            {"index": n, **_said(part, piece), **_end(part, end, "\n" in piece.content)}
            for n, (part, (piece, end)) in enumerate(zip(parts, wholes(events), strict=True))
        ]
        objects = [fields_of(answer, ask.extra["fields"]) for answer in answers]
        yield objects if ask.parts else objects[0]
        return
    lines = [False] * len(parts)
    for event in events:
        if isinstance(event, Piece):
            lines[event.choice] |= "\n" in event.content
            yield {"index": event.choice} | _said(ask, event) | {"stop": False} | so_far(event)
        elif isinstance(event, End):
            n = event.choice
            last = {"index": n} | _said(ask, Piece()) | _end(parts[n], event, lines[n])
            yield fields_of(last, ask.extra["fields"])


def _sampling(given: CompletionBody) -> dict[str, Any]:
    sampling = sampled(given)
    if given.typ_p is not None:
        sampling["typical_p"] = given.typ_p
    sampling = lenient(sampling)
    if given.n_predict is not None:
        sampling["max_tokens"] = given.n_predict if given.n_predict > 0 else None
    if given.stop:
        stops = [given.stop] if isinstance(given.stop, str) else given.stop
        sampling["stop"] = [text for text in stops if text]
    if given.n_probs:
        sampling["logprobs"] = given.n_probs
    if given.grammar:
        sampling["grammar"] = given.grammar
    if given.json_schema is not None:
        sampling["json_schema"] = given.json_schema
    if given.logit_bias:
        sampling["logit_bias"] = _biases(given.logit_bias)
    return sampling


def _said(ask: Ask, piece: Piece) -> dict[str, Any]:
    body: dict[str, Any] = {"content": piece.content}
    body["tokens"] = list(piece.ids) if ask.extra["tokens"] or ask.stream else []
    if piece.logprobs:
        body["completion_probabilities"] = [
            _chosen(t) | {"top_logprobs": [_chosen(x) for x in t.top]} for t in piece.logprobs
        ]
    return body


def _end(ask: Ask, end: End, lines: bool) -> dict[str, Any]:
    kind = "word" if end.stop else {"stop": "eos", "length": "limit"}.get(end.reason, "none")
    n_predict = 0 if ask.mute else ask.sampling.get("max_tokens") or -1
    more = {
        **{"n_predict": n_predict, "max_tokens": n_predict, "t_max_predict_ms": round(ask.predict_seconds * 1e3)},
        **{"ignore_eos": ask.ignore_end, "stream": ask.stream, "timings_per_token": ask.timed},
        **{"n_ctx": end.n_ctx, "model": ask.model},
    }
    return {
        "id_slot": 0,
        "stop": True,
        "model": ask.model,
        "tokens_predicted": end.usage.tokens,
        "tokens_evaluated": end.usage.prompt_tokens,
        "tokens_cached": end.usage.cached_tokens,
        "generation_settings": settings(end.params or SamplingParams(), **more),
        "prompt": end.prompt if end.prompt is not None else "",
        "has_new_line": lines,
        "truncated": end.reason == "length" and end.usage.prompt_tokens + end.usage.tokens >= end.n_ctx > 0,
        "stop_type": kind,
        "stopping_word": end.stop or "",
        "timings": end.usage.timings(),
    }


def _chosen(token: Chosen) -> dict[str, Any]:
    return {"id": token.id, "token": token.token, "bytes": list(token.raw), "logprob": token.logprob}


def _biases(given: Sequence[Sequence[Any]] | Mapping[str, float]) -> dict[int | str, float]:
    """`[[id or text, bias], ...]`, where False forbids a token, or a mapping; a text is all of its tokens."""
    pairs = given.items() if isinstance(given, Mapping) else [(pair[0], pair[-1]) for pair in given if len(pair) == 2]
    if len(pairs) != len(given):
        raise Refused(400, "logit_bias: each must be a token id or a text, and a number or false")
    try:
        return {_token(id): float("-inf") if bias is False else float(bias) for id, bias in pairs}
    except (ValueError, TypeError, OverflowError):
        raise Refused(400, "logit_bias: it must map token ids or texts to numbers") from None


def _token(id: Any) -> int | str:
    if isinstance(id, str) and not id.removeprefix("-").isdecimal():
        return id
    if isinstance(id, bool) or int(id) != float(id):
        raise ValueError
    return int(id)


def _prompts(model: str, given: Any) -> list[Any]:
    """The prompts of a request, each a text, or ids and texts; numbers that stand in the list itself make it one."""
    if not isinstance(given, list) or any(isinstance(part, int) for part in given):
        given = [given]
    if not given:
        raise Refused(400, "prompt: it is empty")
    return [_prompt(model, one) for one in given]


def _prompt(model: str, given: Any) -> Any:
    if isinstance(given, dict):
        if given.get("multimodal_data"):
            raise Refused(400, f'"{model}" does not support image input')
        given = given.get("prompt_string")
    if not isinstance(given, str) and (
        not isinstance(given, list) or not all(isinstance(part, int | str) for part in given)
    ):
        raise Refused(400, "prompt: each must be a text, or a list of token ids and texts")
    return given
