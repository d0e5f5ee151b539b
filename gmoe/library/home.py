"""Where gmoe keeps what is the user's: `GMOE_HOME`, or ~/.gmoe."""

import os
from pathlib import Path


def home() -> Path:
    """The folder; it may not exist yet. A `ValueError` for a user who has none."""
    path = os.environ.get("GMOE_HOME") or "~/.gmoe"
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path}: there is no such home folder; GMOE_HOME may name another") from None


def expanded(path: str | Path) -> Path:
    """A path whose `~` is a user's home, where there is such a user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
