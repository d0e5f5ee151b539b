"""Rotary position embedding: pairing styles, and the scalings as GGUF states them (linear, YaRN, LongRoPE, llama 3)."""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gmoe.gguf.file import UnsupportedModel
from gmoe.gguf.hparams import Hparams
from gmoe.kernels.ops import Rotation, lay
from gmoe.layers.weights import Weights

Style = Literal["norm", "neox"]  # "norm" pairs neighbours, "neox" pairs halves
Factors = Literal["some", "none", "one"]
WHOLE = 0.1  # the log multiplier that converters write for an `mscale_all_dim` of 1


def rope(
    w: Weights,
    style: Style,
    n_rot: int | None = None,
    *,
    factors: Factors = "some",
    n_factors: int | None = None,
    scaled: bool = True,
) -> Rotation:
    """The rotary embedding of the first n_rot of each head, as the metadata and `factors` say.

    "some" are the tensors that a file may have, "none" looks at none, and "one" needs `rope_freqs`. They have a number
    for each pair, or `n_factors`, of which the first count. Unless `scaled`, `rope.scaling` counts for nothing. Blocks
    for which all this is the same have one embedding in common.
    """
    hp = w.hparams
    width = n_rot or hp.rope_dimension_count or hp.n_head_k
    key = "rope", style, width, hp.rope_freq_base, hp.rope_scaling_factor, factors, n_factors, scaled
    return w.shared(key, lambda: _build(w, style, width, factors, n_factors or width // 2, scaled))


class Tail:
    """A rotation of the last numbers of each head, not of the first."""

    def __init__(self, turn: Rotation):
        self.turn, self.n_rot = turn, 2 * len(turn.frequencies)

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [T, H, d], positions [T] -> x, in its memory."""
        last = x[..., x.shape[2] - self.n_rot :]
        lay(self.turn(lay(last), positions), last)
        return x


def in_sections(w: Weights) -> bool:
    """Whether the file has sections of pairs that time, height and width turn; some architectures pair halves then."""
    key = f"{w.hparams.architecture}.rope.dimension_sections"
    sections = np.asarray(w.file.metadata.get(key, (0, 0, 0, 0)))
    if sections.shape != (4,) or sections.dtype.kind not in "iu":
        w.refuse(key, "four whole numbers are supported")
    return bool((sections[:2] > 0).all())


def yarn_magnitude(hp: Hparams, log_multiplier: float = 1.0) -> float:
    """YaRN's growth of attention with the scaling factor (1 where there is no YaRN)."""
    if hp.rope_scaling_type != "yarn" or hp.rope_scaling_factor <= 1.0:
        return 1.0
    return 1.0 + 0.1 * log_multiplier * math.log(hp.rope_scaling_factor)


def only_whole_yarn(w: Weights) -> None:
    """Refuse scaled positions, unless by YaRN with that log multiplier, with which it is what it is in deepseek2."""
    hp = w.hparams
    scaled = hp.rope_scaling_type != "none" and hp.rope_scaling_factor not in (0.0, 1.0)
    if scaled and not (hp.rope_scaling_type == "yarn" and math.isclose(hp.yarn_log_multiplier, WHOLE, rel_tol=1e-6)):
        why = f"{hp.yarn_log_multiplier:g} and {hp.rope_scaling_type}; only {WHOLE} and yarn are supported"
        w.refuse(f"{hp.architecture}.rope.scaling.yarn_log_multiplier", why)


def _build(w: Weights, style: Style, n_rot: int, which: Factors, n_factors: int, scaled: bool) -> Rotation:
    hp = w.hparams
    if n_rot % 2 or n_rot <= 0:
        raise UnsupportedModel(hp.file, f"{hp.architecture}.rope.dimension_count", f"{n_rot} is not even and positive")
    kind = hp.rope_scaling_type if scaled else "none"
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedModel(
            hp.file, f"{hp.architecture}.rope.scaling.type", f"{kind!r} is not one of none, linear, yarn, longrope"
        )
    frequencies = hp.rope_freq_base ** (-torch.arange(0, n_rot, 2, dtype=torch.float64) / n_rot)
    factors = None if which == "none" else _factors(w, n_factors)
    if factors is None and which == "one":
        w.refuse("rope_freqs.weight", f"this tensor is required by architecture {hp.architecture}")
    if factors is not None:
        frequencies = frequencies / factors[: n_rot // 2]
    factor = hp.rope_scaling_factor or hp.rope_scale_linear or 1.0
    magnitude = hp.rope_attn_factor if scaled else 1.0
    if kind == "yarn":
        ramp = _yarn_ramp(hp, n_rot) * hp.yarn_ext_factor
        frequencies = frequencies / factor * (1 - ramp) + frequencies * ramp
        # DeepSeek puts the growth into the softmax scale instead (its log multiplier says so).
        magnitude *= 1.0 if hp.yarn_log_multiplier else yarn_magnitude(hp)
    elif kind != "none":
        frequencies = frequencies / factor
    return Rotation(frequencies.float().to(w.device), magnitude, style == "neox", w.on)


def _factors(w: Weights, n: int) -> Tensor | None:
    """Divisors of n frequencies: llama 3's, or LongRoPE's for a short or a long context."""
    hp = w.hparams
    long = w.n_ctx > (hp.n_ctx_orig or hp.n_ctx_train)
    tables = {name: _anywhere(w, name) for name in ("rope_factors_long", "rope_factors_short", "rope_freqs")}
    chosen = tables["rope_freqs"]
    if tables["rope_factors_short"] is not None:
        chosen = tables["rope_factors_long" if long else "rope_factors_short"]
    if chosen is not None and chosen.numel() != n:
        name = next(name for name, table in tables.items() if table is chosen)
        raise UnsupportedModel(hp.file, f"{name}.weight", f"{chosen.numel()} factors for {2 * n} rotated dimensions")
    return None if chosen is None else chosen.cpu().double().flatten()


def _anywhere(w: Weights, name: str) -> Tensor | None:
    """A table that some files keep once and others repeat in each block."""
    found = None
    for layer in range(w.hparams.n_block):
        table = w.block(layer).get(name)
        found = table if found is None else found
    root = Weights(w.file, w.hparams, w.n_ctx, w.activations, device=w.device, on=w.on)
    root.used = w.used
    table = root.get(name)
    return table if table is not None else found


def _yarn_ramp(hp: Hparams, n_rot: int) -> Tensor:
    """How much of each frequency is kept unscaled, 0 to 1, [n_rot / 2]; ggml rounds the two corners outwards."""

    def corner(turns: float) -> float:
        length = (hp.n_ctx_orig or hp.n_ctx_train) / (turns * 2 * math.pi)
        return n_rot * math.log(length) / (2 * math.log(hp.rope_freq_base))

    low = max(0.0, math.floor(corner(hp.yarn_beta_fast)))
    high = min(n_rot - 1.0, math.ceil(corner(hp.yarn_beta_slow)))
    steps = torch.arange(n_rot // 2, dtype=torch.float64)
    return 1 - ((steps - low) / max(0.001, high - low)).clamp(0, 1)
