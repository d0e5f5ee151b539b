"""Admission: the interface of the policies in admission/, found by file name."""

from collections.abc import Sequence as Ids
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from gmoe.engine.sequence import Sequence


class Admission(Protocol):
    """Chooses among those that wait; one that has run already and was sent back comes first without being asked."""

    def choose(self, waiting: "Ids[Sequence]", running: "Ids[Sequence]", now: float) -> "Sequence | None":
        """One of `waiting`, of which the oldest stands first; None: nobody yet, which only counts while somebody runs.

        `now` is of the clock that `Sequence.arrived` was taken from.
        """
        ...

    def stepped(self, tokens: int, seconds: float) -> None:
        """A step over this many tokens took this long."""
        ...

    def ended(self, seq: "Sequence") -> None:
        """A sequence will never run again."""
        ...


def names() -> tuple[str, ...]:
    """The policies that there are."""
    folder = Path(__file__).parent / "admission"
    return tuple(sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__"))


def load(name: str) -> Admission:
    """A new policy; an unknown name is a `ValueError`."""
    if name not in names():
        raise ValueError(f"admission is {name!r}; it must be one of {', '.join(names())}")
    return cast(Admission, import_module(f"gmoe.engine.admission.{name}").Policy())
