"""llama-server's dialect: /completion, /tokenize and its kin, /props, /slots, and the counters of /metrics."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from gmoe.llm import LLM
from gmoe.server.ask import Ask, Chosen, End, Events, Piece, Refused, whole
from gmoe.server.body import Body, read
from gmoe.server.host import Running
from gmoe.server.openai import encode, media, timings
from gmoe.server.stream import Chunk

__all__ = ["encode", "media", "refuse"]
DEFAULTS: Mapping[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 503: "unavailable_error"}
SAMPLERS = "temperature top_k top_p min_p repeat_last_n repeat_penalty presence_penalty frequency_penalty seed".split()
SAMPLERS += ["grammar"]


class CompletionBody(Body):
    """POST /completion"""

    model: str | None = None
    prompt: str | list[int] | list[str | int]
    stream: bool | None = None
    n_predict: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    typ_p: float | None = None
    repeat_last_n: int | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    ignore_eos: bool | None = None
    logit_bias: list[list[float | str | bool]] | dict[str, float] | None = None
    n_probs: int | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    return_tokens: bool | None = None
    timings_per_token: bool | None = None
    task: str | None = Field(None, description="gmoe: requests of one task may be decoded together")
    target_seconds: float | None = Field(None, gt=0, description="gmoe: when the answer should have ended")


class TokenizeBody(Body):
    """POST /tokenize"""

    model: str | None = None
    content: str
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeBody(Body):
    """POST /detokenize"""

    model: str | None = None
    tokens: list[int]


class TemplateBody(Body):
    """POST /apply-template"""

    model: str | None = None
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def parse_completion(body: Any, model: str) -> Ask:
    """POST /completion to `model`."""
    given = read(CompletionBody, body)
    sampling = {name: getattr(given, name) for name in SAMPLERS if getattr(given, name) is not None}
    if sampling.get("seed") == -1:
        del sampling["seed"]
    if sampling.get("top_k", 1) < 0:
        sampling["top_k"] = 0
    for name in ("typical_p", "typ_p"):
        if getattr(given, name) is not None:
            sampling["typical_p"] = getattr(given, name)
    if (given.n_predict or 0) > 0:
        sampling["max_tokens"] = given.n_predict
    if given.stop:
        sampling["stop"] = [text for text in given.stop if text]
    if given.n_probs:
        sampling["logprobs"] = given.n_probs
    if given.json_schema is not None:
        sampling["json_schema"] = given.json_schema
    if given.logit_bias:
        sampling["logit_bias"] = _biases(given.logit_bias)
    prompt = given.prompt
    if isinstance(prompt, list) and not all(isinstance(part, int) for part in prompt):
        prompt = _only_text(prompt)
    return Ask(
        model=model,
        prompt=prompt,  # type: ignore[arg-type]
        sampling=sampling,
        defaults=DEFAULTS,
        stream=bool(given.stream),
        ignore_end=bool(given.ignore_eos),
        mute=given.n_predict == 0,
        task=given.task,
        target_seconds=given.target_seconds,
        extra={"tokens": bool(given.return_tokens)},
    )


def render_completion(ask: Ask, events: Events) -> Iterator[Chunk]:
    """The events of /completion, or its only object."""
    if not ask.stream:
        piece, end = whole(events)
        yield _said(ask, piece) | _end(ask, end)
        return
    for event in events:
        if isinstance(event, Piece):
            yield _said(ask, event) | {"stop": False, "index": 0}
        elif isinstance(event, End):
            yield _said(ask, Piece()) | _end(ask, event)


def refuse(error: Refused, late: bool) -> Chunk:
    """llama-server's errors; the same within a stream."""
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"code": error.status, "message": error.text, "type": kind}}


def tokenize(llm: LLM, given: TokenizeBody) -> dict[str, Any]:
    """The body of /tokenize."""
    ids = llm.tokenizer.encode(given.content, bool(given.add_special), given.parse_special is not False)
    if not given.with_pieces:
        return {"tokens": ids}
    return {"tokens": [{"id": id, "piece": _piece(llm, id)} for id in ids]}


def detokenize(llm: LLM, given: DetokenizeBody) -> dict[str, Any]:
    """The body of /detokenize."""
    bad = next((id for id in given.tokens if not 0 <= id < llm.tokenizer.n_vocab), None)
    if bad is not None:
        raise Refused(400, f"the token id {bad} is not one of {llm.tokenizer.n_vocab}")
    return {"content": llm.tokenizer.decode(given.tokens)}


def props(running: Running | None, path: str) -> dict[str, Any]:
    """The body of /props: of the model that is loaded, or of none."""
    llm = running.llm if running else None
    settings = {"n_ctx": llm.context if llm else 0, "params": dict(DEFAULTS)}
    return {
        "default_generation_settings": settings,
        "total_slots": llm.options.max_sequences if llm else 0,
        "model_path": path,
        "chat_template": llm.template.source if llm else "",
        "modalities": {"vision": False, "audio": False},
        "build_info": "gmoe",
        "is_sleeping": llm is None,
    }


def slots(running: Iterable[Running]) -> list[dict[str, Any]]:
    """The body of /slots: the places of every loaded model."""
    found: list[dict[str, Any]] = []
    for one in running:
        if one.llm is None:
            continue
        for n in range(one.llm.options.max_sequences):
            busy = n < one.users
            found.append({"id": len(found), "model": one.entry.name, "n_ctx": one.llm.context, "is_processing": busy})
    return found


def _said(ask: Ask, piece: Piece) -> dict[str, Any]:
    body: dict[str, Any] = {"content": piece.content}
    body["tokens"] = list(piece.ids) if ask.extra.get("tokens") or ask.stream else []
    if piece.logprobs:
        body["completion_probabilities"] = [
            _chosen(t) | {"top_logprobs": [_chosen(x) for x in t.top]} for t in piece.logprobs
        ]
    return body


def _end(ask: Ask, end: End) -> dict[str, Any]:
    kind = "word" if end.stop else {"stop": "eos", "length": "limit"}.get(end.reason, "none")
    return {
        "index": 0,
        "id_slot": 0,
        "stop": True,
        "model": ask.model,
        "tokens_predicted": end.usage.tokens,
        "tokens_evaluated": end.usage.prompt_tokens,
        "tokens_cached": end.usage.cached_tokens,
        "prompt": end.prompt if end.prompt is not None else "",
        "truncated": False,
        "stop_type": kind,
        "stopping_word": end.stop or "",
        "timings": timings(end.usage),
    }


def _chosen(token: Chosen) -> dict[str, Any]:
    return {"id": token.id, "token": token.token, "bytes": list(token.raw), "logprob": token.logprob}


def _piece(llm: LLM, id: int) -> str | list[int]:
    raw = llm.tokenizer.token_bytes(id) or llm.tokenizer.text(id).encode()
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


def _biases(given: Sequence[Sequence[Any]] | Mapping[str, float]) -> dict[int, float]:
    """`[[id, bias], ...]`, where False forbids a token, or a mapping."""
    pairs = given.items() if isinstance(given, Mapping) else [(pair[0], pair[-1]) for pair in given if pair]
    try:
        return {int(id): float("-inf") if bias is False else float(bias) for id, bias in pairs}
    except (ValueError, TypeError, OverflowError):
        raise Refused(400, "logit_bias: it must map token ids to numbers") from None


def _only_text(parts: Sequence[str | int]) -> str:
    """The text of a list of one; several are several prompts to llama-server, which are not supported."""
    if not all(isinstance(part, str) for part in parts):
        raise Refused(400, "prompt: text and token ids in one prompt are not supported")
    if len(parts) > 1:
        raise Refused(400, "more than one prompt in a request is not supported")
    return str(parts[0])
