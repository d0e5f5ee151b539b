"""Anthropic's dialect: /v1/messages and /v1/messages/count_tokens."""

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

from gmoe.server.ask import Ask, End, Events, Piece, Refused, ToolCall, Usage, whole
from gmoe.server.body import Body, read, short
from gmoe.server.lacking import ELSEWHERE, checked
from gmoe.server.openai import DEFAULTS, chosen_tools, encode, media
from gmoe.server.stream import Chunk
from gmoe.tokenizer.thinking import thoughts

__all__ = ["encode", "media", "parse", "parse_count", "refuse", "render"]
TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
TYPES |= {413: "request_too_large", 503: "overloaded_error", 504: "timeout_error"}
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class AnthropicMessage(Body):
    """One turn of a conversation."""

    role: str
    content: str | list[dict[str, Any]]


class CountBody(Body):
    """POST /v1/messages/count_tokens"""

    model: str
    messages: list[AnthropicMessage]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None


class MessagesBody(CountBody):
    """POST /v1/messages"""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


def parse_count(body: Any) -> Ask:
    """POST /v1/messages/count_tokens: only the prompt is wanted."""
    return Ask(only_render=True, stream=False, truncate=False, **_conversation(read(CountBody, body)))


def parse(body: Any) -> Ask:
    """POST /v1/messages."""
    given = read(MessagesBody, body)
    if given.max_tokens < 1:
        raise Refused(400, "max_tokens: must be at least 1")
    sampling: dict[str, Any] = {"max_tokens": given.max_tokens}
    for name in ("temperature", "top_p", "top_k"):
        if getattr(given, name) is not None:
            sampling[name] = getattr(given, name)
    if given.stop_sequences:
        sampling["stop"] = [text for text in given.stop_sequences if text]
    warnings = checked(body, {*MessagesBody.model_fields, *ELSEWHERE}, {})
    return Ask(
        sampling=sampling, defaults=DEFAULTS, stream=bool(given.stream), warnings=warnings, **_conversation(given)
    )


def render(ask: Ask, events: Events) -> Iterator[Chunk]:
    """The events of a message, or the whole of it."""
    id = f"msg_{secrets.token_hex(12)}"
    if not ask.stream:
        piece, end = whole(events)
        content: list[dict[str, Any]] = []
        if piece.thinking:
            content.append({"type": "thinking", "thinking": piece.thinking, "signature": ""})
        if piece.content:
            content.append({"type": "text", "text": piece.content})
        content += [_use(call, call.arguments) for call in piece.tool_calls]
        yield _message(ask, id) | {"content": content, **_stop(ask, end), "usage": _usage(end.usage)}
        return
    blocks = _Blocks()
    begun = False
    for event in events:
        if not begun and isinstance(event, Piece | End):
            begun = True
            yield _event("message_start", message=_message(ask, id) | {"usage": _usage(Usage())})
        if isinstance(event, Piece):
            yield from blocks.push(event)
        elif isinstance(event, End):
            yield from blocks.close()
            yield _event("message_delta", delta=_stop(ask, event), usage=_usage(event.usage))
            yield _event("message_stop")


def refuse(error: Refused, late: bool) -> Chunk:
    """Anthropic's errors; within a stream an event of their own."""
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    body = {"type": "error", "error": {"type": kind, "message": error.text}}
    return ("error", body) if late else body


class _Blocks:
    """Content blocks: one open at a time, numbered."""

    def __init__(self) -> None:
        self._index = 0
        self._kind = ""

    def push(self, piece: Piece) -> Iterator[Chunk]:
        """What one piece adds."""
        if piece.thinking:
            yield from self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": piece.thinking})
        if piece.content:
            yield from self._open("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": piece.content})
        for call in piece.tool_calls:
            yield from self.close()
            yield from self._open("tool_use", _use(call, {}))
            text = json.dumps(call.arguments, ensure_ascii=False)
            yield self._delta({"type": "input_json_delta", "partial_json": text})

    def close(self) -> Iterator[Chunk]:
        """End the block that is open."""
        if self._kind:
            yield _event("content_block_stop", index=self._index)
            self._index += 1
            self._kind = ""

    def _open(self, kind: str, block: dict[str, Any]) -> Iterator[Chunk]:
        if kind != self._kind:
            yield from self.close()
            self._kind = kind
            yield _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> Chunk:
        return _event("content_block_delta", index=self._index, delta=delta)


def _conversation(given: CountBody) -> dict[str, Any]:
    if not given.messages:
        raise Refused(400, "messages: at least one message is required")
    messages: list[dict[str, Any]] = []
    system = _text(given.model, given.system) if given.system else ""
    if system:
        messages.append({"role": "system", "content": system})
    for message in given.messages:
        messages += _messages(given.model, message)
    tools, choice = _tools(given)
    enabled = (given.thinking or {}).get("type")
    return {
        "model": given.model,
        "messages": messages,
        "tools": tools,
        "tool_choice": choice,
        "one_call": (given.tool_choice or {}).get("disable_parallel_tool_use") is True,
        "think": None if enabled is None else enabled in ("enabled", "adaptive"),
        "think_strict": False,
    }


def _messages(model: str, message: AnthropicMessage) -> list[dict[str, Any]]:
    """One message as one or more of those that templates read: results of tools have their own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    results, texts, thought, calls = [], [], [], []
    for block in message.content:
        kind = block.get("type")
        if kind == "text":
            texts.append(str(block.get("text", "")))
        elif kind == "thinking":
            thought.append(str(block.get("thinking", "")))
        elif kind == "redacted_thinking":
            continue
        elif kind == "tool_use":
            function = {"name": str(block.get("name", "")), "arguments": block.get("input") or {}}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            text = _text(model, block.get("content") or "")
            results.append({"role": "tool", "content": text, "tool_call_id": block.get("tool_use_id")})
        elif kind == "image":
            raise Refused(400, f'"{model}" does not support image input')
        else:
            raise Refused(400, f"content of the type {short(kind)} is not supported")
    entry: dict[str, Any] = {"role": message.role, "content": "".join(texts)}
    if thought:
        entry |= thoughts("".join(thought))
    if calls:
        entry["tool_calls"] = calls
    return [*results, entry] if texts or calls or thought or not results else results


def _text(model: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Refused(400, "content must be text or a list of blocks")
    for block in content:
        if not isinstance(block, dict) or block.get("type") != "text":
            kind = block.get("type") if isinstance(block, dict) else block
            raise Refused(400, f'"{model}" does not support {short(kind)} input')
    return "".join(str(block.get("text", "")) for block in content)


def _tools(given: CountBody) -> tuple[list[dict[str, Any]], str]:
    tools = []
    for tool in given.tools or ():
        function = {"name": tool.get("name"), "description": tool.get("description", "")}
        function["parameters"] = tool.get("input_schema") or {"type": "object"}
        tools.append({"type": "function", "function": function})
    choice = given.tool_choice or {"type": "auto"}
    kind = choice.get("type")
    if kind == "tool":
        return chosen_tools(tools, {"name": choice.get("name")})
    return chosen_tools(tools, {"any": "required"}.get(str(kind), kind))


def _event(name: str, **body: Any) -> Chunk:
    return name, {"type": name, **body}


def _message(ask: Ask, id: str) -> dict[str, Any]:
    stop = {"stop_reason": None, "stop_sequence": None}
    return {"id": id, "type": "message", "role": "assistant", "model": ask.model, "content": [], **stop}


def _use(call: ToolCall, arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": re.sub("^call_", "toolu_", call.id), "name": call.name, "input": arguments}


def _stop(ask: Ask, end: End) -> dict[str, Any]:
    """The model's own stop texts are none of the client's: they end its turn."""
    stop = end.stop if end.stop in ask.sampling.get("stop", ()) else None
    return {"stop_reason": "stop_sequence" if stop else REASONS.get(end.reason, "end_turn"), "stop_sequence": stop}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.tokens,
    }
