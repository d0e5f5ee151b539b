"""How kernels are launched on a card: as shipped, unless a measurement there once found what is faster and kept it.

Answers only look up; `fastest` and `keep` are for who has the time. The file is JSON: a card's name -> the versions it
was measured with, and by kernel, format and class of shape the numbers of a choice.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

FILE = "tuned.json"  # in gmoe's home
GAIN = 0.97  # of the shipped choice's seconds; what is not that much faster is noise
FORM = 3  # of the file and of the kernels: what was measured for others says nothing

Choice = TypeVar("Choice", bound=Any)  # a NamedTuple of ints
Found = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Choices:
    """How kernels are launched: by key what was found faster than what is shipped. They never change."""

    found: Found = field(default_factory=dict)

    def of(self, key: str, shipped: Choice) -> Choice:
        """What was found, or what is shipped."""
        found = self.found.get(key)
        return shipped if found is None or found.keys() != set(shipped._fields) else shipped._replace(**found)


SHIPPED = Choices()


def key(kernel: str, format: str, *sizes: int) -> str:
    """Under which a choice is kept; sizes count up to the next power of two."""
    return " ".join((kernel, format, *(str(1 << max(0, size - 1).bit_length()) for size in sizes)))


def read(path: Path, card: str) -> tuple[Choices, list[str]]:
    """The choices that a file has for a card; in a sentence what is wrong with it, and then those that are shipped."""
    try:
        cards = _read(path)
    except FileNotFoundError:
        return SHIPPED, []
    except (OSError, ValueError) as error:
        return SHIPPED, [f"{path} is not used, kernels are launched as shipped: {error}"]
    if card not in cards:
        return SHIPPED, [f"{path} is not used, kernels are launched as shipped: it knows no {card}"]
    measured, found = cards[card]
    if measured != versions():
        return SHIPPED, [f"{path} is not used, kernels are launched as shipped: it was measured with {measured}"]
    return Choices(found), []


def keep(path: Path, card: str, found: Mapping[str, Any]) -> None:
    """Add choices (NamedTuples) to a card's; a file that cannot be read is replaced. OSError where it cannot be."""
    try:
        cards = _read(path)
    except (OSError, ValueError):
        cards = {}
    measured, before = cards.get(card, (versions(), {}))
    before = before if measured == versions() else {}
    cards[card] = versions(), dict(before) | {name: dict(value._asdict()) for name, value in found.items()}
    content = {name: {"versions": said, "choices": choices} for name, (said, choices) in cards.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_text(json.dumps({"form": FORM, "cards": content}, indent=1) + "\n")
    aside.replace(path)


def fastest(
    shipped: Choice,
    others: Iterable[Choice],
    run: Callable[[Choice], Any],
    seconds: Callable[[Callable[[], Any]], float],
) -> tuple[Choice, float, float]:
    """The best choice, its seconds and those of the shipped one; `seconds` times a call.

    Others that fail do not count; what the shipped choice raises is raised.
    """
    best, base = shipped, seconds(lambda: run(shipped))
    least, tried = base * GAIN, {shipped}
    for other in others:
        if other in tried:
            continue
        tried.add(other)
        try:
            taken = seconds(lambda: run(other))  # noqa: B023
        except Exception:  # a card that has not the memory for it says so in many ways
            continue
        if taken < least:
            best, least = other, taken
    return best, base if best is shipped else least, base


def versions() -> str:
    """What a measurement depends on beside the card."""
    try:
        return f"form {FORM}, triton {version('triton')}, torch {version('torch')}"
    except PackageNotFoundError as error:
        return f"form {FORM}, without {error.name}"


def _read(path: Path) -> dict[str, tuple[str, Found]]:
    """By card; ValueError where the file is damaged or no such file."""
    try:
        content = json.loads(path.read_text())
        if content["form"] != FORM:
            raise ValueError(f"it has form {content['form']}, this gmoe reads {FORM}")
        return {card: (str(row["versions"]), _checked(row["choices"])) for card, row in content["cards"].items()}
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
        raise ValueError("it is damaged") from None


def _checked(choices: Mapping[str, Mapping[str, Any]]) -> Found:
    for row in choices.values():
        for name, number in row.items():
            small = number in range(1, 6) if name == "num_stages" else number == 0 and name in ("split", "persistent")
            if type(number) is not int or not (small or (0 < number <= 4096 and number & (number - 1) == 0)):
                raise ValueError("it is damaged")
    return {key: dict(row) for key, row in choices.items()}
