"""The level with AMX, its registers emulated in memory, on CPUs that have what else it needs."""

import shutil
import subprocess
from pathlib import Path

import pytest
from gmoe.kernels import cpu_ops

from tools import check_neon

NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512vbmi", "avx512_bitalg", "gfni", "bmi2"}
FLAGS = [f"-m{name}" for name in (*sorted(flag.replace("_", "") for flag in NEEDED), "fma", "f16c")]
AMX = {
    "step_avx2": ["-O1", "-mavx2", "-mf16c", "-mfma"],
    "amx": ["-O1", *FLAGS, "-DGMOE_AMX_EMULATED", "-Davx512=portable"],  # one token is the portable level's
}


def has_the_rest() -> bool:
    info = Path("/proc/cpuinfo")
    return info.exists() and set(info.read_text().split()) >= NEEDED


@pytest.mark.skipif("amx" in cpu_ops.levels(), reason="runs here as it is, in test_kernels_cpu.py")
@pytest.mark.skipif(not has_the_rest() or shutil.which("g++") is None, reason="no AVX-512 here, or no compiler")
def test_emulated_tiles_have_the_portable_bits(tmp_path: Path) -> None:
    (tmp_path / "tables").write_bytes(check_neon.tables())
    program = check_neon.program("g++", tmp_path / "build", AMX)
    found = subprocess.run([program, tmp_path / "tables"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert "IQ4_XS" in found.stdout and "differs" not in found.stdout
