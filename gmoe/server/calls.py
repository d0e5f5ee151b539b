"""The ids of tool calls in a conversation: clients may leave them out, some templates want them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gmoe.server.ask import Message
from gmoe.tokenizer.parsers.choose import call_id, taken_id


def with_ids(messages: Sequence[Message], dialect: str) -> Iterator[Message]:
    """The messages; calls have ids as this dialect takes them, made up where there are none, and results theirs."""
    count = 0
    taken: dict[str, str] = {}  # by the ids that the client sent
    open: list[Mapping[str, Any]] = []  # calls whose results have not come
    for message in messages:
        if message.get("tool_calls"):
            open = []
            for n, call in enumerate(message["tool_calls"], count):
                name, given = call["function"]["name"], str(call.get("id") or "")
                id = taken[given] = taken_id(dialect, given, name, n) if given else call_id(dialect, name, n)
                open.append({**call, "id": id})
            count += len(open)
            message = {**message, "tool_calls": list(open)}
        elif message["role"] == "tool":
            name, given = message.get("name"), str(message.get("tool_call_id") or "")
            if given:
                message = {**message, "tool_call_id": taken.get(given) or taken_id(dialect, given, name or "", count)}
            elif open:
                call = next((call for call in open if call["function"]["name"] == name), open[0])
                message = {**message, "tool_call_id": call["id"]}
            open = [call for call in open if call["id"] != message.get("tool_call_id")]
        yield message
