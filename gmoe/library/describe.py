"""What a GGUF file says of itself, in the words of a model's config."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from gmoe.gguf.file import GGUFFile

FILE_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S"}
FILE_TYPES |= {12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K"}
FILE_TYPES |= {19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL"}
FILE_TYPES |= {26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16"}
FILE_TYPES |= {36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4"}


def describe(path: Path) -> dict[str, Any]:
    """The config of a model; raises `GGUFError`."""
    file = GGUFFile.open(path)
    try:
        weights: Counter[str] = Counter()
        for tensor in file.tensors.values():
            weights[tensor.format.name] += math.prod(tensor.shape)
        number, most = weights.total(), weights.most_common(1)
        kind = type_name(file, most[0][0] if most else "unknown")
        family = {"model_family": file.architecture, "model_families": [file.architecture]}
    finally:
        file.close()
    sizes = {"model_type": human_number(number), "file_type": kind}
    return {"model_format": "gguf", **family, **sizes, "architecture": "amd64", "os": "linux"}


def type_name(file: GGUFFile, otherwise: str) -> str:
    """What a file calls its mix of types; `otherwise` where it says nothing that is known."""
    number = file.metadata.get("general.file_type")
    return FILE_TYPES.get(number, otherwise) if isinstance(number, int) else otherwise


def human_number(number: int) -> str:
    """A count of parameters as Ollama writes it: 30.5B, 270M, 12K."""
    for unit, letter, digits in ((1e9, "B", 1), (1e6, "M", 2), (1e3, "K", 0)):
        if number >= unit:
            return f"{number / unit:.{0 if number % unit == 0 else digits}f}{letter}"
    return str(number)
