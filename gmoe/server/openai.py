"""OpenAI's dialect: /v1/chat/completions and /v1/models, and what its other routes share."""

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from gmoe.server.ask import Ask, Chosen, End, Events, Loading, Piece, Refused, ToolCall, Usage, Whole, together, wholes
from gmoe.server.body import Body, read, short
from gmoe.server.catalog import Entry
from gmoe.server.lacking import ELSEWHERE, OPENAI, checked
from gmoe.server.llama_options import SamplingBody, sampled
from gmoe.server.ollama import LEVELS, keep_alive_of
from gmoe.server.stream import Chunk, to_bytes
from gmoe.tokenizer.thinking import thoughts

media = "text/event-stream"
DEFAULTS: Mapping[str, Any] = {"temperature": 1.0, "top_p": 1.0}
DONE = "[DONE]"
MOST_ANSWERS = 512
LONGEST_MS = 2**53
TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}


class Sampled(SamplingBody):
    """What chats and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = Field(None, ge=1, le=2**31)
    t_max_predict_ms: int | None = Field(None, le=LONGEST_MS)
    cache_prompt: bool | None = None
    timings_per_token: bool | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    keep_alive: float | str | None = None
    task: str | None = Field(None, description="gmoe: requests of one task may be decoded together")
    target_seconds: float | None = Field(None, gt=0, description="gmoe: when the answer should have ended")


class ChatMessage(Body):
    """One turn of a conversation."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class ChatBody(Sampled):
    """POST /v1/chat/completions"""

    messages: list[ChatMessage]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    reasoning: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


def parse_chat(body: Any) -> Ask:
    """POST /v1/chat/completions."""
    given = read(ChatBody, body)
    if not given.messages:
        raise Refused(400, "[] is too short - 'messages'")
    tools, choice = chosen_tools(given.tools or [], given.tool_choice)
    if given.max_completion_tokens is not None:
        given.max_tokens = given.max_completion_tokens
    wanted = sampling(given)
    if given.top_logprobs is not None and not given.logprobs:
        raise Refused(400, "top_logprobs needs logprobs to be true")
    if given.logprobs:
        if not 0 <= (given.top_logprobs or 0) <= 20:
            raise Refused(400, "top_logprobs must be between 0 and 20")
        wanted["logprobs"] = given.top_logprobs or 0
    wanted |= response_format(given.response_format)
    effort = given.reasoning_effort or (given.reasoning or {}).get("effort")
    ask = Ask(
        messages=[message_of(given.model, message) for message in given.messages],
        tools=tools,
        tool_choice=choice,
        one_call=given.parallel_tool_calls is False,
        think=think_of(effort),
        template_values=given.chat_template_kwargs or {},
        **common(given, wanted, body),
    )
    return several([ask], given.n)


def render_chat(ask: Ask, events: Events) -> Iterator[Chunk]:
    """Chunks of a chat completion, or the whole of it."""
    first = head("chatcmpl", ask)
    if not ask.stream:
        answers = wholes(events)
        choices = [_choice(n, answer) for n, answer in enumerate(answers)]
        taken = together([end for _, end in answers], ask)
        yield first | {"object": "chat.completion", "choices": choices, **usage(taken)}
        return
    first["object"] = "chat.completion.chunk"
    calls: dict[int, int] = {}  # of each answer that has begun
    ends: list[End] = []
    for event in events:
        if isinstance(event, Loading):
            continue
        n = event.choice
        if n not in calls:
            calls[n] = 0
            yield first | {"choices": [_delta(n, {"role": "assistant", "content": ""})], **no_usage(ask)}
        if isinstance(event, End):
            ends.append(event)
            yield first | {"choices": [_delta(n, {}, event.reason)], **no_usage(ask)}
            continue
        delta: dict[str, Any] = {"content": event.content} if event.content else {}
        delta |= _thinking(event)
        if event.tool_calls:
            delta["tool_calls"] = [{"index": calls[n] + i, **_call(call)} for i, call in enumerate(event.tool_calls)]
            calls[n] += len(event.tool_calls)
        if delta or event.logprobs or event.read:
            choices = [_delta(n, delta, logprobs=_chat_logprobs(event))]
            yield first | {"choices": choices, **no_usage(ask), **so_far(event)}
    if wants_usage(ask):
        yield first | {"choices": [], **usage(together(ends, ask))}
    yield DONE


def encode(chunk: Chunk) -> bytes:
    """One server-sent event."""
    if isinstance(chunk, tuple):
        return f"event: {chunk[0]}\n".encode() + encode(chunk[1])
    return b"data: " + (chunk.encode() if isinstance(chunk, str) else to_bytes(chunk)) + b"\n\n"


def refuse(error: Refused, late: bool) -> Chunk:
    """OpenAI's errors; the same within a stream."""
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"error": {"message": error.text, "type": kind, "param": None, "code": None}}


def model(entry: Entry) -> dict[str, Any]:
    """A model as /v1/models lists it."""
    owner = entry.name.rsplit("/", 1)[0] if "/" in entry.name else "library"
    return {"id": entry.name, "object": "model", "created": int(entry.modified), "owned_by": owner}


def message_of(name: str, message: ChatMessage) -> dict[str, Any]:
    """A message as chat templates read it."""
    role = "system" if message.role == "developer" else "tool" if message.role == "function" else message.role
    entry: dict[str, Any] = {"role": role, "content": text_of(name, message.content)}
    if thought := message.reasoning_content or message.reasoning:
        entry |= thoughts(thought)
    if message.tool_calls:
        entry["tool_calls"] = [read_call(call) for call in message.tool_calls]
    for key in ("name", "tool_call_id"):
        if getattr(message, key):
            entry[key] = getattr(message, key)
    return entry


def text_of(name: str, content: Any) -> str:
    """The text of a content that may be parts; other kinds of parts are `Refused`."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise Refused(400, "content must be text or a list of parts, each an object")
    texts = []
    for part in content:
        kind = part.get("type", "text")
        if kind in ("text", "input_text", "output_text", "reasoning_text", "summary_text", "refusal"):
            texts.append(str(part.get("text") or part.get("refusal") or ""))
        elif "image" in str(kind):
            raise Refused(400, f'"{name}" does not support image input')
        else:
            raise Refused(400, f"content of the type {short(kind)} is not supported; supported: text")
    return "".join(texts)


def chosen_tools(tools: list[dict[str, Any]], choice: Any) -> tuple[list[dict[str, Any]], str]:
    """The tools that may be called, and "none", "auto", "required" or the name of the one that must be."""
    for tool in tools:
        if not isinstance(tool.get("function"), dict) or not isinstance(tool["function"].get("name"), str):
            raise Refused(400, "tools: each needs a type of 'function' and a function with a name")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        tools, choice = _allowed(tools, choice.get("allowed_tools") or choice)
    if isinstance(choice, dict):
        name = (choice.get("function") or choice).get("name")
        tools = [tool for tool in tools if tool["function"]["name"] == name]
        if not tools:
            raise Refused(400, f"tool_choice: there is no tool {name!r}")
        return tools, str(name)
    if choice not in (None, "none", "auto", "required"):
        raise Refused(400, f"tool_choice is {short(choice)}; it must be none, auto, required or a function")
    if choice == "required" and not tools:
        raise Refused(400, "tool_choice is 'required', and there are no tools")
    return ([] if choice == "none" else tools), choice or "auto"


def _allowed(tools: list[dict[str, Any]], choice: dict[str, Any]) -> tuple[list[dict[str, Any]], Any]:
    """Those of the tools that are allowed, and whether one of them must be called."""
    given = choice.get("tools")
    listed = [tool for tool in given if isinstance(tool, dict)] if isinstance(given, list) else []
    names = {str((tool.get("function") or tool).get("name")) for tool in listed}
    if not names or (unknown := names - {tool["function"]["name"] for tool in tools}):
        what = f"there is no tool {min(unknown)!r}" if names else "allowed_tools needs a list of tools"
        raise Refused(400, f"tool_choice: {what}")
    return [tool for tool in tools if tool["function"]["name"] in names], choice.get("mode", "auto")


def response_format(given: Any) -> dict[str, Any]:
    """`response_format` as fields of `SamplingParams`."""
    if given is not None and not isinstance(given, Mapping):
        raise Refused(400, f"response_format is {short(given)}; it must be an object")
    kind = (given or {}).get("type", "text")
    if given is None or kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": given.get("schema") or {"type": "object"}}
    if kind == "json_schema":
        held = given.get("json_schema") or given
        schema = held.get("schema") if isinstance(held, dict) else None
        if not isinstance(schema, dict):
            raise Refused(400, "response_format: json_schema needs a schema")
        return {"json_schema": schema}
    raise Refused(400, f"response_format: the type {short(kind)} is not one of text, json_object, json_schema")


def think_of(effort: Any) -> bool | str | None:
    """A reasoning effort as Ollama's `think`."""
    if effort in (None, "auto"):
        return None
    if effort in ("none", "off"):
        return False
    level = {"minimal": "low", "xhigh": "max", "ultra": "max"}.get(str(effort), str(effort))
    if level not in LEVELS:
        known = ", ".join(["none", "minimal", *LEVELS, "xhigh", "ultra"])
        raise Refused(400, f"reasoning effort is {short(effort)}; it must be one of {known}")
    return level


def sampling(given: Sampled) -> dict[str, Any]:
    """Fields of `SamplingParams`."""
    names = ("max_tokens", "grammar", "json_schema")
    wanted = sampled(given) | {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if wanted.get("top_k", 0) < 0:  # off, as for llama-server
        wanted["top_k"] = 0
    if wanted.get("max_tokens", 1) < 1:
        wanted["max_tokens"] = None
    if given.stop is not None:
        wanted["stop"] = [text for text in ([given.stop] if isinstance(given.stop, str) else given.stop) if text]
    if given.logit_bias:
        try:
            wanted["logit_bias"] = {int(token): bias for token, bias in given.logit_bias.items()}
        except ValueError:
            raise Refused(400, "logit_bias: it must map token ids to numbers") from None
    return wanted


def common(given: Sampled, sampling: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """What every Ask of this dialect has; `Refused` for an option in the body that gmoe has not."""
    return {
        "warnings": checked(body, {*type(given).model_fields, *ELSEWHERE}, OPENAI),
        "model": given.model,
        "sampling": sampling,
        "defaults": DEFAULTS,
        "keep_alive": keep_alive_of(given.keep_alive),
        "stream": bool(given.stream),
        "mute": given.max_tokens == 0,
        "predict_seconds": (given.t_max_predict_ms or 0) / 1e3,
        "reuse": given.cache_prompt is not False,
        "timed": bool(given.timings_per_token),
        "tells": bool(given.stream and given.return_progress),
        "think_strict": False,
        "task": given.task,
        "target_seconds": given.target_seconds,
        "extra": {"include_usage": bool((given.stream_options or {}).get("include_usage"))},
    }


def several(asks: Sequence[Ask], n: int | None) -> Ask:
    """One request for `n` answers to each of these."""
    wanted = len(asks) * (n or 1)
    if wanted > MOST_ANSWERS:
        raise Refused(400, f"{wanted} answers are asked for; one request may have {MOST_ANSWERS}")
    parts = [replace(ask, copy=copy) for ask in asks for copy in range(n or 1)]
    return parts[0] if len(parts) == 1 else replace(parts[0], parts=parts)


def head(prefix: str, ask: Ask) -> dict[str, Any]:
    """What every body begins with."""
    id = f"{prefix}-{secrets.token_hex(12)}"
    return {"id": id, "object": "", "created": int(time.time()), "model": ask.model, "system_fingerprint": "fp_gmoe"}


def wants_usage(ask: Ask) -> bool:
    """Whether a last chunk with the usage is asked for."""
    return bool(ask.extra.get("include_usage"))


def no_usage(ask: Ask) -> dict[str, Any]:
    """What the other chunks have then."""
    return {"usage": None} if wants_usage(ask) else {}


def so_far(piece: Piece) -> dict[str, Any]:
    """The figures of a piece, where they are asked for; of a piece of the prompt how far that is."""
    said: dict[str, Any] = {"timings": piece.usage.timings()} if piece.usage else {}
    if piece.read:
        total, cached, computed, seconds = piece.read
        said["prompt_progress"] = {"total": total, "cache": cached, "processed": computed, "time_ms": seconds * 1e3}
    return said


def _choice(index: int, answer: Whole) -> dict[str, Any]:
    piece, end = answer
    message: dict[str, Any] = {"role": "assistant", "content": piece.content or None, **_thinking(piece)}
    message["content"] = piece.content if piece.content or not piece.tool_calls else None
    if piece.tool_calls:
        message["tool_calls"] = [_call(call) for call in piece.tool_calls]
    return {"index": index, "message": message, "logprobs": _chat_logprobs(piece), "finish_reason": end.reason}


def _delta(index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _thinking(piece: Piece) -> dict[str, str]:
    return {"reasoning": piece.thinking, "reasoning_content": piece.thinking} if piece.thinking else {}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": call.id, "type": "function", "function": function}


def read_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call in a message, with its arguments as an object."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Refused(400, "tool_calls: each needs a function with a name")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            raise Refused(400, f"tool_calls: the arguments of {function['name']} are not JSON") from None
    return {"id": call.get("id"), "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def usage(usage: Usage) -> dict[str, Any]:
    """What an answer took."""
    body = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.tokens,
        "total_tokens": usage.prompt_tokens + usage.tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.thinking_tokens},
    }
    return {"usage": body, "timings": usage.timings()}


def _chat_logprobs(piece: Piece) -> dict[str, Any] | None:
    return {"content": logprobs_of(piece.logprobs)} if piece.logprobs else None


def logprobs_of(tokens: Sequence[Chosen]) -> list[dict[str, Any]]:
    """How probable tokens were, and those likeliest in their places."""
    return [_chosen(token) | {"top_logprobs": [_chosen(top) for top in token.top]} for token in tokens]


def _chosen(token: Chosen) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.raw)}
