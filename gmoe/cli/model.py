"""Which file a user means by MODEL: a path, `demo`, or a name in the library."""

import os
from pathlib import Path

import gmoe

DEMO = Path(gmoe.__file__).parent / "demo" / "demo.gguf"


def home() -> Path:
    """GMOE_HOME, or ~/.gmoe."""
    return Path(os.environ.get("GMOE_HOME") or "~/.gmoe").expanduser()


def model_file(name: str) -> Path:
    """The GGUF of a model; an unknown one is a `ValueError`."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if name == "demo" and DEMO.is_file():
        return DEMO
    if path.is_dir():
        raise ValueError(f"{name} is a folder; name the GGUF file in it")
    raise ValueError(f"{name}: there is no such file, and no model of that name in the library")
