"""llama-quantize's mixes: which tensor of a model becomes which type under a name such as Q4_K_M."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import gguf

from gmoe.gguf.file import GGUFFile, TensorInfo, UnsupportedModel
from gmoe.kernels.formats import FORMATS
from gmoe.kernels.quantize import encodable

BASES: Mapping[str, str] = {  # llama-quantize's name -> the type of a tensor that no rule lifts
    "F32": "F32", "F16": "F16", "BF16": "BF16",
    "Q4_0": "Q4_0", "Q4_1": "Q4_1", "Q5_0": "Q5_0", "Q5_1": "Q5_1", "Q8_0": "Q8_0",
    "Q2_K": "Q2_K", "Q2_K_S": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K", "Q4_K_S": "Q4_K",
    "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K", "Q6_K": "Q6_K",
    "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS", "MXFP4_MOE": "MXFP4",
}  # fmt: skip
ALIASES: Mapping[str, str] = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}
FALLBACKS: Mapping[str, str] = {  # for rows that are not whole blocks
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip

_UNTOUCHED = re.compile(
    r"_norm\.weight$|ffn_gate_inp(_shexp)?\.weight$|^position_embd|^token_types|ssm_conv1d|shortconv\.conv\.|\.sinks|exp_probs_b"
    r"|ffn_gate_tid2eid|indexer\.[kq]_proj"
)


@dataclass(frozen=True)
class Override:
    """`--tensor-type REGEX=TYPE`: tensors whose name the expression is found in take that type."""

    pattern: re.Pattern[str]
    type_name: str

    @classmethod
    def parse(cls, text: str) -> "Override":
        """Read REGEX=TYPE; raises ValueError."""
        regex, sign, name = text.rpartition("=")
        if not sign or not regex or not name:
            raise ValueError(f"--tensor-type {text!r} is not REGEX=TYPE")
        if name.upper() not in encodable():
            raise ValueError(f"--tensor-type {text!r}: {name} cannot be written; known: {', '.join(encodable())}")
        try:
            return cls(re.compile(regex), name.upper())
        except re.error as error:
            raise ValueError(f"--tensor-type {text!r}: the expression is not valid: {error}") from None


def mix_named(name: str) -> str:
    """The mix's own spelling of `name`; raises ValueError naming those that exist."""
    found = ALIASES.get(name.upper(), name.upper())
    if found not in BASES:
        raise ValueError(f"{name} is not a type that can be written; known: {', '.join(BASES)}")
    return found


def file_type(mix: str) -> int:
    """The value of `general.file_type`."""
    member = "ALL_F32" if mix == "F32" else f"MOSTLY_{mix}"
    return int(gguf.LlamaFileType[member])


def fitting(type_name: str, n: int) -> str:
    """The type itself, or what stands in for it where a row of `n` elements is not whole blocks."""
    if n % FORMATS[type_name].block_size == 0:
        return type_name
    second = FALLBACKS.get(type_name, "IQ4_NL")
    return second if n % FORMATS[second].block_size == 0 else "F16"


def _whole(file: GGUFFile, key: str) -> int:
    value = file.metadata.get(key, 0)
    if not isinstance(value, int):
        raise UnsupportedModel(str(file.path), key, "must be a whole number")
    return value


class Plan:
    """The type of every tensor of `file` under a mix; `overrides` win over its rules."""

    def __init__(self, file: GGUFFile, mix: str, overrides: Iterable[Override] = (), weighted: bool = False):
        self.base, self.mix, self.weighted = BASES[mix], mix, weighted
        self.overrides = tuple(overrides)
        architecture = file.architecture
        self.n_layer, self.n_expert = (_whole(file, f"{architecture}.{key}") for key in ("block_count", "expert_count"))
        heads = [file.metadata.get(f"{architecture}.attention.{key}", 1) for key in ("head_count", "head_count_kv")]
        self.n_gqa = int(heads[0]) // max(int(heads[1]), 1) if all(isinstance(h, int) for h in heads) else 1
        self.tied = "output.weight" not in file.tensors
        names = [n for n in file.tensors if n.endswith(("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"))]
        self.values = {name: n for n, name in enumerate(names)}
        self.types = {name: self._type(info) for name, info in file.tensors.items()}

    def _type(self, info: TensorInfo) -> str:
        if len(info.shape) < 2 or not info.name.endswith("weight") or _UNTOUCHED.search(info.name):
            return info.format.name
        for override in self.overrides:
            if override.pattern.search(info.name):
                return fitting(override.type_name, info.shape[-1])
        return self.base if self.base in ("F32", "F16", "BF16") else fitting(self._rule(info), info.shape[-1])

    def _rule(self, info: TensorInfo) -> str:
        name, mix, base = info.name, self.mix, self.base
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            if base == "Q8_0" or mix == "MXFP4_MOE" or info.shape[-1] % FORMATS[base].block_size:
                return "Q8_0"
            return "Q6_K"
        if mix == "MXFP4_MOE":
            return "MXFP4" if len(info.shape) > 2 else "Q8_0"
        if name.endswith("attn_v.weight"):
            return self._attn_v(self.values[name])
        if name.endswith("attn_k.weight") and self.n_expert == 8:
            return "Q8_0"
        if "ffn_down" in name:
            layer = re.match(r"blk\.(\d+)\.", name)
            return self._ffn_down(int(layer[1]) if layer else 0)
        if name.endswith("attn_output.weight"):
            return self._attn_output()
        if name.endswith("attn_qkv.weight"):
            lifted = {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}
            return lifted.get(mix, base)
        return base

    def _often(self, i: int, n: int) -> bool:
        """The layers that deserve more bits: the first and last eighth, and every third between."""
        return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2

    def _attn_v(self, i: int) -> str:
        mix, n = self.mix, len(self.values)
        kind = self.base
        if mix == "Q2_K":
            kind = "Q4_K" if self.n_gqa >= 4 else "Q3_K"
        elif mix == "Q2_K_S" and self.n_gqa >= 4:
            kind = "Q4_K"
        elif mix == "Q3_K_M":
            kind = "Q5_K" if i < 2 else "Q4_K"
        elif mix == "Q3_K_L" or (mix in ("IQ4_NL", "IQ4_XS") and self.n_gqa >= 4) or (mix == "Q4_K_S" and i < 4):
            kind = "Q5_K"
        elif mix in ("Q4_K_M", "Q5_K_M") and self._often(i, n):
            kind = "Q6_K"
        return "Q8_0" if self.n_expert == 8 else kind

    def _ffn_down(self, i: int) -> str:
        mix, n, base = self.mix, self.n_layer, self.base
        if mix == "Q2_K":
            return "Q3_K"
        if mix == "Q2_K_S":
            return "Q4_K" if i < n // 8 else base
        if mix == "Q3_K_M":
            return "Q5_K" if i < n // 16 else "Q4_K"
        if mix == "Q3_K_L":
            return "Q5_K"
        if mix in ("Q4_K_M", "Q5_K_M"):
            return "Q6_K" if self._often(i, n) else base
        if i < n // 8:
            if mix == "Q4_K_S" or (mix in ("IQ4_NL", "IQ4_XS") and not self.weighted):
                return "Q5_K"
            if mix in ("Q4_0", "Q5_0") and self.weighted:
                return mix.replace("_0", "_1")
        return base

    def _attn_output(self) -> str:
        if self.n_expert == 8:
            lifted = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS")
            return "Q5_K" if self.mix in lifted else self.base
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(self.mix, self.base)
