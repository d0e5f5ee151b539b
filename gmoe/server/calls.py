"""The ids of tool calls in a conversation: clients may leave them out, some templates want them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gmoe.server.ask import Message
from gmoe.tokenizer.parsers.choose import call_id, taken_id


def with_ids(messages: Sequence[Message], dialect: str) -> Iterator[Message]:
    """The messages; calls have ids as this dialect takes them, made up where there are none, and results theirs."""
    count = 0
    open: list[Mapping[str, Any]] = []  # calls whose results have not come
    for message in messages:
        if message.get("tool_calls"):
            calls = message["tool_calls"]
            open = [
                {**call, "id": taken_id(dialect, str(call.get("id") or call_id(dialect, call["function"]["name"], n)))}
                for n, call in enumerate(calls, count)
            ]
            count += len(calls)
            message = {**message, "tool_calls": list(open)}
        elif message["role"] == "tool":
            if id := message.get("tool_call_id"):
                message = {**message, "tool_call_id": taken_id(dialect, str(id))}
            elif open:
                name = message.get("name")
                call = next((call for call in open if call["function"]["name"] == name), open[0])
                message = {**message, "tool_call_id": call["id"]}
            open = [call for call in open if call["id"] != message.get("tool_call_id")]
        yield message
