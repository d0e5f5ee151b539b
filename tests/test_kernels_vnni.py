"""The level with VNNI in 32-byte registers, built with AVX-512's form of the operation for CPUs that have no other."""

import shutil
import subprocess
from pathlib import Path

import pytest
from gmoe.kernels import cpu_ops

from tools import check_neon

VNNI = {
    "step_avx2": ["-O1", "-mavx2", "-mf16c", "-mfma"],
    "avxvnni": ["-O0", "-mavx2", "-mavx512f", "-mavx512vl", "-mavx512vnni", "-mf16c", "-mfma"],
}


def has_vnni() -> bool:
    flags = Path("/proc/cpuinfo")
    return flags.exists() and {"avx512_vnni", "avx512vl"} <= set(flags.read_text().split())


@pytest.mark.skipif("avxvnni" in cpu_ops.levels(), reason="runs here as it is, in test_kernels_cpu.py")
@pytest.mark.skipif(not has_vnni() or shutil.which("g++") is None, reason="no AVX-512 VNNI here, or no compiler")
def test_the_level_with_vnni_has_the_portable_bits(tmp_path: Path) -> None:
    (tmp_path / "tables").write_bytes(check_neon.tables())
    program = check_neon.program("g++", tmp_path / "build", VNNI)
    found = subprocess.run([program, tmp_path / "tables"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert "IQ4_XS" in found.stdout and "differs" not in found.stdout
