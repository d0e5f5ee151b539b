"""Ollama's dialect: /api/generate and /api/chat; a body to an Ask, events to chunks."""

import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from gmoe.server.answer import sampling_of
from gmoe.server.ask import Ask, Chosen, End, Event, Events, Loading, Piece, Refused, ToolCall, Usage, whole
from gmoe.server.body import Body, read, short
from gmoe.server.lacking import checked
from gmoe.server.stream import Chunk, to_bytes
from gmoe.tokenizer.thinking import thoughts

media = "application/x-ndjson"
DEFAULTS: Mapping[str, Any] = {}  # those of SamplingParams are Ollama's
INTEGERS = "num_ctx num_batch num_gpu main_gpu num_thread draft_num_predict num_keep seed num_predict top_k".split()
INTEGERS += ["repeat_last_n"]
FLOATS = "temperature top_p min_p typical_p repeat_penalty presence_penalty frequency_penalty".split()
A_LONG_TIME = 1e9  # seconds, which is as good as forever
LEVELS = ("low", "medium", "high", "max")
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(
    r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h)(?:(?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))*"
)
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


class Function(Body):
    """A call of a tool."""

    name: str = ""
    arguments: dict[str, Any] = {}


class Call(Body):
    """One of the calls in a message of the assistant."""

    id: str = ""
    function: Function = Function()


class ChatMessage(Body):
    """One turn of a conversation."""

    role: str
    content: str | None = ""
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Common(Body):
    """What both requests have."""

    model: str = ""
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None
    think: bool | str | None = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    progress: bool | None = Field(None, description="gmoe: lines that say how loading goes")
    task: str | None = Field(None, description="gmoe: requests of one task may be decoded together")
    target_seconds: float | None = Field(None, gt=0, description="gmoe: when the answer should have ended")
    debug_render_only: bool | None = Field(None, alias="_debug_render_only")


class GenerateBody(Common):
    """POST /api/generate"""

    prompt: str | None = None
    suffix: str | None = None
    images: list[Any] | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None


class ChatBody(Common):
    """POST /api/chat"""

    messages: list[ChatMessage] | None = None
    tools: list[dict[str, Any]] | None = None


class EmbedBody(Body):
    """POST /api/embed"""

    model: str
    input: str | list[str] | None = None  # nothing: the model is only loaded
    truncate: bool | None = None
    dimensions: int | None = Field(None, ge=1)
    keep_alive: float | str | None = None
    options: dict[str, Any] | None = None


class EmbeddingsBody(Body):
    """POST /api/embeddings"""

    model: str
    prompt: str = ""
    keep_alive: float | str | None = None
    options: dict[str, Any] | None = None


def parse_generate(body: Any) -> Ask:
    """POST /api/generate."""
    given = read(GenerateBody, body)
    refuse_images(given.model, given.images)
    if given.raw and (given.template or given.system or given.context):
        raise Refused(400, "raw mode does not support template, system, or context")
    return Ask(
        prompt=given.prompt or None,
        templated=not given.raw,
        suffix=given.suffix or None,
        system=given.system,
        template=given.template or None,
        context=given.context or (),
        extra={"raw": bool(given.raw)},
        **_common(given, body),
    )


def parse_chat(body: Any) -> Ask:
    """POST /api/chat."""
    given = read(ChatBody, body)
    messages = []
    for message in given.messages or ():
        refuse_images(given.model, message.images)
        entry: dict[str, Any] = {"role": message.role.lower(), "content": message.content or ""}
        if message.thinking:
            entry |= thoughts(message.thinking)
        if message.tool_calls:
            entry["tool_calls"] = [
                {"id": call.id, "type": "function", "function": call.function.model_dump()}
                for call in message.tool_calls
            ]
        for name in ("tool_name", "tool_call_id"):
            if getattr(message, name):
                entry[name] = getattr(message, name)
        if message.tool_name:
            entry["name"] = message.tool_name
        messages.append(entry)
    return Ask(messages=messages or None, tools=given.tools or (), **_common(given, body))


def render_generate(ask: Ask, events: Events) -> Iterator[Chunk]:
    """The lines of /api/generate, or its only object."""
    yield from _render(ask, events, _text)


def render_chat(ask: Ask, events: Events) -> Iterator[Chunk]:
    """The lines of /api/chat, or its only object."""
    yield from _render(ask, events, _message)


def encode(chunk: Chunk) -> bytes:
    """One line of a stream."""
    return to_bytes(chunk) + b"\n"


def refuse(error: Refused, late: bool) -> Chunk:
    """Ollama's errors are the same before and after the first byte."""
    return {"error": error.text}


def _render(ask: Ask, events: Events, say: Any) -> Iterator[Chunk]:
    if not ask.stream:
        piece, end = whole(events)
        yield _head(ask) | say(ask, piece) | _logprobs(piece) | _end(ask, end)
        return
    calls = 0
    for event in events:
        chunk = _head(ask) | _line(ask, event, say, calls)
        if isinstance(event, Loading) and not ask.progress:
            continue
        if isinstance(event, Piece) and not (event.content or event.thinking or event.tool_calls or event.logprobs):
            continue
        calls += len(event.tool_calls) if isinstance(event, Piece) else 0
        yield chunk


def _line(ask: Ask, event: Event, say: Any, calls: int) -> dict[str, Any]:
    if isinstance(event, Loading):
        share = {} if event.share is None else {"completed": round(event.share, 4), "total": 1}
        return say(ask, Piece()) | {"done": False, "status": "loading model"} | share
    if isinstance(event, Piece):
        return say(ask, event, calls) | {"done": False} | _logprobs(event)
    return say(ask, Piece()) | _end(ask, event)


def _head(ask: Ask) -> dict[str, Any]:
    return {"model": ask.model, "created_at": now()}


def _text(ask: Ask, piece: Piece, calls: int = 0) -> dict[str, Any]:
    return {"response": piece.content} | _spoken(piece, calls)


def _message(ask: Ask, piece: Piece, calls: int = 0) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": piece.content} | _spoken(piece, calls)}


def _spoken(piece: Piece, calls: int) -> dict[str, Any]:
    thinking = {"thinking": piece.thinking} if piece.thinking else {}
    return thinking | ({"tool_calls": _calls(piece.tool_calls, calls)} if piece.tool_calls else {})


def _calls(calls: tuple[ToolCall, ...], before: int) -> list[dict[str, Any]]:
    return [
        {"id": call.id, "function": {"index": n, "name": call.name, "arguments": call.arguments}}
        for n, call in enumerate(calls, before)
    ]


def _logprobs(piece: Piece) -> dict[str, Any]:
    if not piece.logprobs:
        return {}
    tokens = [_chosen(token) | {"top_logprobs": [_chosen(t) for t in token.top]} for token in piece.logprobs]
    return {"logprobs": tokens}


def _chosen(token: Chosen) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.raw)}


def _end(ask: Ask, end: End) -> dict[str, Any]:
    if ask.only_render and end.prompt is not None:
        return {"done": True, "_debug_info": {"rendered_template": end.prompt}}
    reason = "stop" if end.reason == "tool_calls" else end.reason
    last: dict[str, Any] = {"done": True, "done_reason": reason}
    if reason in ("load", "unload"):
        return last
    if ask.messages is None and not ask.extra.get("raw"):
        last["context"] = list(end.context)
    return last | durations(end.usage) | _experts(end.usage)


def durations(usage: Usage) -> dict[str, int]:
    """Ollama's figures: nanoseconds and tokens."""
    return {
        "total_duration": nanoseconds(usage.total_seconds),
        "load_duration": nanoseconds(usage.load_seconds),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": nanoseconds(usage.prompt_seconds),
        "eval_count": usage.tokens,
        "eval_duration": nanoseconds(usage.decode_seconds),
    }


def _experts(usage: Usage) -> dict[str, Any]:
    return {"experts": usage.experts} if usage.experts else {}


def _common(given: Common, body: Any) -> dict[str, Any]:
    if not given.model:
        raise Refused(400, "model is required")
    options, warnings = options_of(given.options or {})
    top = given.top_logprobs or 0
    if not 0 <= top <= 20:
        raise Refused(400, "top_logprobs must be between 0 and 20")
    if isinstance(given.think, str) and given.think not in LEVELS:
        must = 'must be "high", "medium", "low", "max", true, or false'
        raise Refused(400, f'invalid think value: "{short(given.think)}" ({must})')
    sampling: dict[str, Any] = sampling_of(options)
    if given.logprobs:
        sampling["logprobs"] = top
    sampling |= format_of(given.format)
    return {
        "model": given.model,
        "sampling": sampling,
        "defaults": DEFAULTS,
        "num_ctx": options.get("num_ctx") or None,
        "num_thread": options.get("num_thread") or None,
        "num_keep": options.get("num_keep", 4),
        "truncate": given.truncate is not False,
        "shift": given.shift is not False,
        "keep_alive": keep_alive_of(given.keep_alive),
        "stream": given.stream is not False,
        "think": given.think,
        "progress": bool(given.progress),
        "task": given.task,
        "target_seconds": given.target_seconds,
        "only_render": bool(given.debug_render_only),
        "warnings": checked(body, {*type(given).model_fields, "_debug_render_only"}, {}) + warnings,
    }


def options_of(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Ollama's options with their types, and a warning for each that is unknown; a wrong type is `Refused`."""
    known: dict[str, Any] = {}
    warnings = []
    for name, value in options.items():
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in INTEGERS:
            if not number or abs(value) > 2**63:
                raise Refused(400, f'option "{name}" must be of type integer')
            known[name] = int(value)
        elif name in FLOATS:
            if not number:
                raise Refused(400, f'option "{name}" must be of type float32')
            known[name] = float(value)
        elif name == "use_mmap":
            if not isinstance(value, bool):
                raise Refused(400, f'option "{name}" must be of type boolean')
        elif name == "stop":
            value = [value] if isinstance(value, str) else value  # which its documentation allows and its server not
            if not isinstance(value, list):
                raise Refused(400, f'option "{name}" must be of type array')
            if not all(isinstance(text, str) for text in value):
                raise Refused(400, f'option "{name}" must be of an array of strings')
            known[name] = [text for text in value if text]
        else:
            warnings.append(f"invalid option provided: {name}")
    return known, warnings


def format_of(format: Any) -> dict[str, Any]:
    """`format` as fields of `SamplingParams`: "json", a JSON schema, or nothing."""
    if format in (None, ""):
        return {}
    if format == "json":
        return {"json_schema": {"type": "object"}}
    if isinstance(format, dict):
        return {"json_schema": format}
    raise Refused(400, f'invalid format: "{format}"; expected "json" or a valid JSON Schema object')


def keep_alive_of(value: float | str | None) -> float | None:
    """Seconds; negative: forever. Text is a Go duration such as "5m", "1h30m" or "-1s"."""
    if value is None:
        return None
    seconds = duration(value) if isinstance(value, str) else float(value)
    return seconds if seconds < A_LONG_TIME else -1.0


def duration(text: str) -> float:
    """A Go duration in seconds."""
    if text in ("0", "+0", "-0"):
        return 0.0
    if not _DURATION.fullmatch(text):
        missing = re.fullmatch(r"[+-]?\d+(\.\d*)?", text)
        raise Refused(400, f'time: {"missing unit in" if missing else "invalid"} duration "{text}"')
    seconds = sum(float(number) * UNITS[unit] for number, unit in _PART.findall(text))
    return -seconds if text.startswith("-") else seconds


def refuse_images(model: str, images: Any) -> None:
    """gmoe has no vision."""
    if images:
        raise Refused(400, f'"{model}" does not support image input')


def now() -> str:
    """The time as Go writes it: UTC, nanoseconds."""
    seconds, nanos = divmod(time.time_ns(), 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanos:09d}Z"


def nanoseconds(seconds: float) -> int:
    """At least one, since clients leave out what is zero."""
    return max(1, int(seconds * 1e9))
