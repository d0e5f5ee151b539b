"""The NEON level under an emulator, where a cross compiler and one are installed."""

import platform

import pytest
from gmoe.kernels import cpu_ops
from gmoe.kernels.formats import FORMATS

from tools import check_neon


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with an x86-64 machine's level")
@pytest.mark.skipif(bool(check_neon.missing()), reason=f"not installed: {', '.join(check_neon.missing())}")
def test_neon_has_the_same_bits() -> None:
    names = [line.rsplit(" ", 1)[0] for line in check_neon.check()]
    formats = [name for name in FORMATS if cpu_ops.supported(name)]
    assert sorted(names[: len(formats)]) == sorted(formats)
    caches = [f"attend {number}" for number in ("f32", "f16", "bf16", "q8_0")]
    assert names[len(formats) :] == ["norm", "rotate", "gate", "streams", "choose", *caches, "recurrence"]
