"""OpenAI's /v1/responses, stateless: nothing is kept, and an earlier response cannot be named."""

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from gmoe.server.ask import Ask, End, Events, Piece, Refused, Usage, whole
from gmoe.server.body import Body, read, short
from gmoe.server.lacking import ELSEWHERE, checked
from gmoe.server.openai import (
    DEFAULTS,
    chosen_tools,
    encode,
    logprobs_of,
    media,
    read_call,
    refuse,
    response_format,
    text_of,
    think_of,
)
from gmoe.server.stream import Chunk
from gmoe.tokenizer.thinking import thoughts

LOGPROBS = "message.output_text.logprobs"  # as `include` has it
__all__ = ["encode", "media", "parse", "refuse", "render"]


class ResponsesBody(Body):
    """POST /v1/responses"""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None  # of tools that a service runs itself: here there are none
    include: list[str] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    truncation: Literal["auto", "disabled"] | None = None
    stream_options: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    prompt: Any = None
    metadata: dict[str, Any] | None = None


def parse(body: Any) -> Ask:
    """POST /v1/responses."""
    given = read(ResponsesBody, body)
    for name in ("previous_response_id", "conversation", "background", "prompt"):
        if getattr(given, name):
            raise Refused(400, f"{name} is not supported: this server keeps nothing of a request")
    messages: list[dict[str, Any]] = []
    if given.instructions:
        messages.append({"role": "system", "content": given.instructions})
    items = [{"role": "user", "content": given.input}] if isinstance(given.input, str) else given.input
    for item in items:
        message = _message(given.model, item)
        if messages and _of_one_turn(messages[-1], message):
            messages[-1] = _merged(messages[-1], message)
        else:
            messages.append(message)
    tools = []
    for tool in given.tools or ():
        if tool.get("type") != "function":
            raise Refused(400, f"a tool of the type {short(tool.get('type'))} is not supported; supported: function")
        names = ("name", "description", "parameters")
        tools.append({"type": "function", "function": {name: tool[name] for name in names if tool.get(name)}})
    tools, choice = chosen_tools(tools, given.tool_choice)
    wished = {"max_tokens": given.max_output_tokens, "temperature": given.temperature, "top_p": given.top_p}
    sampling = {name: value for name, value in wished.items() if value is not None}
    sampling |= response_format((given.text or {}).get("format"))
    if given.top_logprobs is not None or LOGPROBS in (given.include or ()):
        sampling["logprobs"] = given.top_logprobs or 0
    shortened = given.truncation == "auto"
    return Ask(
        model=given.model,
        messages=messages or [{"role": "user", "content": ""}],
        tools=tools,
        tool_choice=choice,
        one_call=given.parallel_tool_calls is False,
        truncate=shortened,
        shift=shortened,
        think=think_of((given.reasoning or {}).get("effort")),
        think_strict=False,
        sampling=sampling,
        defaults=DEFAULTS,
        stream=bool(given.stream),
        warnings=checked(body, {*ResponsesBody.model_fields, *ELSEWHERE}, {}),
        extra={"given": given},
    )


def render(ask: Ask, events: Events) -> Iterator[Chunk]:
    """The events of a response, or the whole of it."""
    response = _response(ask)
    if not ask.stream:
        all = list(events)
        piece, end = whole(iter(all))
        output: list[dict[str, Any]] = []
        if piece.thinking:
            output.append(_reasoning(_id("rs"), piece.thinking))
        if piece.content or not piece.tool_calls:
            logprobs = _of_text([event for event in all if isinstance(event, Piece)])
            output.append(_said(_id("msg"), piece.content, logprobs))
        output += [_called(_id("fc"), call.id, call.name, _json(call.arguments)) for call in piece.tool_calls]
        yield _ended(response, output, end)
        return
    stream = _Stream(response)
    for event in events:
        if isinstance(event, Piece):
            yield from stream.push(event)
        elif isinstance(event, End):
            yield from stream.end(event)


class _Stream:
    """Numbers the events and keeps the item that is open."""

    def __init__(self, response: dict[str, Any]):
        self._response = response
        self._number = -1
        self._output: list[dict[str, Any]] = []
        self._kind = self._id = self._text = ""
        self._logprobs: list[dict[str, Any]] = []  # of the open message, as far as they were told
        self._untold: list[dict[str, Any]] = []  # of tokens that gave no text yet

    def push(self, piece: Piece) -> Iterator[Chunk]:
        """What one piece adds."""
        yield from self._begin()
        self._untold = _untold(self._untold, piece)
        for kind, text in (("reasoning", piece.thinking), ("message", piece.content)):
            if text:
                yield from self._open(kind)
                self._text += text
                yield self._of_part("delta", delta=text)
        for call in piece.tool_calls:
            yield from self._close()
            item = _called(_id("fc"), call.id, call.name, "") | {"status": "in_progress"}
            yield self._event("response.output_item.added", output_index=len(self._output), item=item)
            where = {"item_id": item["id"], "output_index": len(self._output)}
            arguments = _json(call.arguments)
            yield self._event("response.function_call_arguments.delta", delta=arguments, **where)
            yield self._event("response.function_call_arguments.done", name=call.name, arguments=arguments, **where)
            item = item | {"arguments": arguments, "status": "completed"}
            yield self._event("response.output_item.done", output_index=len(self._output), item=item)
            self._output.append(item)

    def end(self, end: End) -> Iterator[Chunk]:
        """The last events."""
        yield from self._begin()
        if not self._output and not self._kind:
            yield from self._open("message")
        yield from self._close()
        response = _ended(self._response, self._output, end)
        yield self._event("response.incomplete" if end.reason == "length" else "response.completed", response=response)

    def _begin(self) -> Iterator[Chunk]:
        if self._number < 0:
            yield self._event("response.created", response=self._response)
            yield self._event("response.in_progress", response=self._response)

    def _open(self, kind: str) -> Iterator[Chunk]:
        if kind == self._kind:
            return
        yield from self._close()
        self._kind, self._text, self._logprobs = kind, "", []
        self._id = _id("rs" if kind == "reasoning" else "msg")
        item = _reasoning(self._id, "") if kind == "reasoning" else _said(self._id, "")
        item |= {"content": [], "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=len(self._output), item=item)
        yield self._part("response.content_part.added", _part(kind, ""))

    def _close(self) -> Iterator[Chunk]:
        if not self._kind:
            return
        yield self._of_part("done", text=self._text)
        logprobs = self._logprobs
        yield self._part("response.content_part.done", _part(self._kind, self._text, logprobs))
        item = _reasoning(self._id, self._text) if self._kind == "reasoning" else _said(self._id, self._text, logprobs)
        yield self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._kind = ""

    def _of_part(self, what: str, **body: Any) -> Chunk:
        name, more = "reasoning_text", dict[str, Any]()
        if self._kind == "message":
            name, more = "output_text", {"logprobs": self._untold}
            self._logprobs, self._untold = [*self._logprobs, *self._untold], []
            more = more if what == "delta" else {"logprobs": self._logprobs}
        where = {"item_id": self._id, "output_index": len(self._output), "content_index": 0}
        return self._event(f"response.{name}.{what}", **where, **body, **more)

    def _part(self, name: str, part: dict[str, Any]) -> Chunk:
        return self._event(name, item_id=self._id, output_index=len(self._output), content_index=0, part=part)

    def _event(self, event: str, /, **body: Any) -> Chunk:
        self._number += 1
        return event, {"type": event, "sequence_number": self._number, **body}


def _message(model: str, item: Mapping[str, Any]) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind == "message":
        role = {"developer": "system"}.get(str(item.get("role")), str(item.get("role") or "user"))
        return {"role": role, "content": text_of(model, item.get("content"))}
    if kind == "function_call":
        call = {"id": item.get("call_id"), "function": {"name": item.get("name"), "arguments": item.get("arguments")}}
        return {"role": "assistant", "content": "", "tool_calls": [read_call(call)]}
    if kind == "function_call_output":
        return {"role": "tool", "content": text_of(model, item.get("output")), "tool_call_id": item.get("call_id")}
    if kind == "reasoning":
        text = text_of(model, item.get("content") or item.get("summary"))
        return {"role": "assistant", "content": "", **thoughts(text)}
    raise Refused(400, f"input: an item of the type {short(kind)} is not supported")


def _of_one_turn(before: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
    """Whether the second goes on with what the first began: an answer's thoughts, text and calls are items each."""
    said = before["content"] and message["content"]
    return before["role"] == message["role"] == "assistant" and not said


def _merged(before: Mapping[str, Any], message: Mapping[str, Any]) -> dict[str, Any]:
    thought = [one["thinking"] for one in (before, message) if one.get("thinking")]
    calls = [*before.get("tool_calls", ()), *message.get("tool_calls", ())]
    merged: dict[str, Any] = {"role": "assistant", "content": before["content"] or message["content"]}
    if thought:
        merged |= thoughts("\n\n".join(thought))
    return merged | ({"tool_calls": calls} if calls else {})


def _response(ask: Ask) -> dict[str, Any]:
    given: ResponsesBody = ask.extra["given"]
    return {
        "id": _id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": given.instructions,
        "max_output_tokens": given.max_output_tokens,
        "metadata": given.metadata or {},
        "model": ask.model,
        "output": [],
        "parallel_tool_calls": given.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": (given.reasoning or {}).get("effort"), "summary": None},
        "store": False,
        "temperature": given.temperature if given.temperature is not None else 1.0,
        "text": given.text or {"format": {"type": "text"}},
        "tool_choice": given.tool_choice or "auto",
        "tools": given.tools or [],
        "top_p": given.top_p if given.top_p is not None else 1.0,
        "top_logprobs": given.top_logprobs or 0,
        "truncation": given.truncation or "disabled",
        "usage": None,
        "user": None,
    }


def _ended(response: dict[str, Any], output: list[dict[str, Any]], end: End) -> dict[str, Any]:
    cut = end.reason == "length"
    return response | {
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": output,
        "usage": _usage(end.usage),
    }


def _untold(before: list[dict[str, Any]], piece: Piece) -> list[dict[str, Any]]:
    """How probable tokens were that no text has come of yet; what ended in a thought or a call will give none."""
    return [] if piece.thinking or piece.tool_calls else before + logprobs_of(piece.logprobs)


def _of_text(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """How probable the tokens of an answer's text were."""
    told: list[dict[str, Any]] = []
    untold: list[dict[str, Any]] = []
    for piece in pieces:
        untold = _untold(untold, piece)
        if piece.content:
            told += untold
            untold = []
    return told + untold


def _said(id: str, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    part = _part("message", text, logprobs)
    return {"id": id, "type": "message", "status": "completed", "role": "assistant", "content": [part]}


def _reasoning(id: str, text: str) -> dict[str, Any]:
    return {"id": id, "type": "reasoning", "summary": [], "content": [_part("reasoning", text)], "status": "completed"}


def _part(kind: str, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def _called(id: str, call_id: str, name: str, arguments: str) -> dict[str, Any]:
    call = {"id": id, "type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}
    return call | {"status": "completed"}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.tokens,
        "output_tokens_details": {"reasoning_tokens": usage.thinking_tokens},
        "total_tokens": usage.prompt_tokens + usage.tokens,
    }


def _json(arguments: Mapping[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False)


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"
