"""The level with VNNI in 32-byte registers, built with AVX-512's form of the operation or with none, for other CPUs."""

import shutil
import subprocess
from pathlib import Path

import pytest
from gmoe.kernels import cpu_ops

from tools import check_neon

AVX2 = ["-mavx2", "-mf16c", "-mfma"]


def has(*flags: str) -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and set(flags) <= set(info.read_text().split())


@pytest.mark.skipif("avxvnni" in cpu_ops.levels(), reason="runs here as it is, in test_kernels_cpu.py")
@pytest.mark.skipif(not has("avx2", "f16c", "fma") or shutil.which("g++") is None, reason="no AVX2, or no compiler")
def test_the_level_with_vnni_has_the_portable_bits(tmp_path: Path) -> None:
    form = ["-mavx512f", "-mavx512vl", "-mavx512vnni"] if has("avx512_vnni", "avx512vl") else ["-DGMOE_VNNI_EMULATED"]
    (tmp_path / "tables").write_bytes(check_neon.tables())
    levels = {"step_avx2": ["-O1", *AVX2], "avxvnni": ["-O0", *AVX2, *form]}
    program = check_neon.program("g++", tmp_path / "build", levels)
    found = subprocess.run([program, tmp_path / "tables"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert "IQ4_XS" in found.stdout and "differs" not in found.stdout
