"""What a GGUF file suggests for its answers: the keys of general.sampling as fields of `SamplingParams`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gmoe.engine.sampling import SamplingParams, lenient

PREFIX = "general.sampling."
FIELDS: Mapping[str, str] = {  # llama.cpp's name: ours
    **{name: name for name in ("top_k", "top_p", "min_p", "typical_p", "top_n_sigma", "presence_penalty")},
    **{name: name for name in ("frequency_penalty", "xtc_probability", "xtc_threshold")},
    **{name: name for name in ("mirostat", "mirostat_tau", "mirostat_eta")},
    **{"temp": "temperature", "penalty_last_n": "repeat_last_n", "penalty_repeat": "repeat_penalty"},
    "sequence": "samplers",
}
SAMPLER_NAMES = {"typ_p": "typical_p", "typ": "typical_p", "typical": "typical_p", "temp": "temperature"}


def suggested(metadata: Mapping[str, Any], file: str) -> tuple[dict[str, Any], list[str]]:
    """Fields of `SamplingParams`, and a sentence for each key that gives none."""
    found: dict[str, Any] = {}
    notices = []
    for key, value in metadata.items():
        name = key.removeprefix(PREFIX)
        if name == key:
            continue
        try:
            if name not in FIELDS:
                raise ValueError("it is not known")
            field = FIELDS[name]
            value = _read(field, value.item() if isinstance(value, np.generic) else value)
            SamplingParams(**{field: value})
            found[field] = value
        except ValueError as error:
            notices.append(f"{file}: {key} is not used: {error}")
    return found, notices


def samplers(text: str) -> tuple[str, ...]:
    """`samplers` of llama.cpp's text, names between semicolons, some with another spelling there."""
    names = (name.strip().replace("-", "_") for name in text.split(";"))
    return tuple(SAMPLER_NAMES.get(name, name) for name in names if name)


def _read(field: str, value: Any) -> Any:
    """A value as ours."""
    if field == "samplers" and isinstance(value, str):
        return samplers(value)
    return lenient({field: value})[field]
