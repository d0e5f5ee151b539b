"""What a server can say of a model: its family and size, what it is able to do, and its metadata."""

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np

from gmoe.gguf.file import GGUFFile
from gmoe.library.describe import human_number, type_name
from gmoe.library.modelfile import Modelfile
from gmoe.server.catalog import Entry
from gmoe.tokenizer.gofunctions import TemplateError
from gmoe.tokenizer.gotemplate import GoTemplate

THINKS = ("<think>", "enable_thinking", "reasoning_effort", "[THINK]", "<mm:think>", "thinking_effort")
LONG_ARRAY = 0  # arrays longer than this are null where nobody asks for all


def capabilities(metadata: Mapping[str, Any], modelfile: Modelfile) -> list[str]:
    """Ollama's words: completion, tools, insert, thinking."""
    source = modelfile.template
    own = (metadata.get(f"tokenizer.chat_template{name}", "") for name in ("", ".default", ".tool_use"))
    template = "\n".join(map(str, own))
    fields: frozenset[str] = frozenset()
    if source:
        with suppress(TemplateError):  # then the file's own is used
            template, fields = source, GoTemplate.parse(source).fields
    found = ["completion"]
    if "Tools" in fields or "tools" in template:
        found.append("tools")
    if "Suffix" in fields or {"tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"} & set(metadata):
        found.append("insert")
    if "Think" in fields or any(sign in template for sign in THINKS):
        found.append("thinking")
    return found


@lru_cache(256)
def facts(path: str, digest: str) -> dict[str, Any]:
    """Of a GGUF file, read once: as `facts_in`."""
    with GGUFFile.open(path) as file:
        return facts_in(file)


def facts_in(file: GGUFFile) -> dict[str, Any]:
    """Of an open file: `details`, and the `metadata` with long arrays left out."""
    family = file.architecture or ""
    number = sum(_product(info.shape) for info in file.tensors.values())
    kind = type_name(file, "unknown")
    metadata = {key: None if _is_long(value) else plain(value) for key, value in file.metadata.items()}
    embedding = file.metadata.get(f"{family}.embedding_length", 0)
    context = file.metadata.get(f"{family}.context_length", 0)
    return {
        "metadata": metadata,
        "parameters": number,
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": family,
            "families": [family],
            "parameter_size": human_number(number),
            "quantization_level": kind,
            "context_length": plain(context),
            "embedding_length": plain(embedding),
        },
    }


def facts_of(entry: Entry) -> dict[str, Any]:
    """The facts of a model's file."""
    return facts(str(entry.path), entry.digest)


def plain(value: Any) -> Any:
    """A value of GGUF as JSON has it; what JSON lacks is text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return [plain(item) for item in value]


def _is_long(value: Any) -> bool:
    return not isinstance(value, str | bytes) and hasattr(value, "__len__") and len(value) > LONG_ARRAY


def _product(shape: tuple[int, ...]) -> int:
    number = 1
    for size in shape:
        number *= size
    return number
