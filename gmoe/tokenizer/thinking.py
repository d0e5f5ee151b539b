"""What the chat templates of different models call thinking."""

from typing import Any


def think_values(think: bool | str | None, source: str = "") -> dict[str, Any]:
    """What templates read about thinking, whatever they call it: on, off, a level, or nothing where nobody says.

    `source` is the template: in some, thinking is off where no level is named.
    """
    if think is None:
        return {}
    values: dict[str, Any] = {"enable_thinking": bool(think), "thinking": bool(think), "reasoning": bool(think)}
    values["thinking_mode"] = "enabled" if think else "disabled"
    if isinstance(think, str):
        return values | {"reasoning_effort": "high" if think == "max" else think, "thinking_effort": think}
    if not think and "<|think|><|end|>" in source:  # Solar Open's, which thinks unless little is asked for
        return values | {"reasoning_effort": "minimal"}
    return values | ({"reasoning_effort": "high"} if think and "'no_think'" in source else {})


def thoughts(text: str) -> dict[str, str]:
    """The thinking of an earlier message, by every name that templates have for it."""
    return dict.fromkeys(("thinking", "reasoning_content", "reasoning"), text)
