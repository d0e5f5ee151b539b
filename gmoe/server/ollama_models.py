"""Ollama's dialect: what it says of models, in /api/tags, /api/ps and /api/show."""

from datetime import UTC, datetime
from typing import Any

from gmoe.gguf.file import GGUFFile
from gmoe.library.create import FILE_TYPES, human_number
from gmoe.server.catalog import Entry


def summary(entry: Entry) -> dict[str, Any]:
    """A model as /api/tags lists it."""
    return {
        "name": entry.name,
        "model": entry.name,
        "modified_at": stamp(entry.modified),
        "size": entry.size,
        "digest": entry.digest,
        "details": details(entry),
    }


def details(entry: Entry) -> dict[str, Any]:
    """The family and the size of a model."""
    with GGUFFile.open(entry.path) as file:
        family = file.architecture
        number = sum(_product(info.shape) for info in file.tensors.values())
        kind = FILE_TYPES.get(file.metadata.get("general.file_type", -1), "unknown")
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": human_number(number),
        "quantization_level": kind,
    }


def stamp(seconds: float) -> str:
    """A time as Go writes it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _product(shape: tuple[int, ...]) -> int:
    number = 1
    for size in shape:
        number *= size
    return number
