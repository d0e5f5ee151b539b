"""The module of the CPU kernels on CPUs that this machine is not: emulated where valgrind or Debian's qemu-user is."""

import os
import platform
import shutil
import subprocess
import sys

import pytest
from gmoe.kernels.cpu import _cpu

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="levels of x86")

# Neither torch nor the package, which take an emulator minutes.
PROGRAM = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("_cpu", {_cpu.__file__!r})
cpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cpu)
print(" ".join(cpu.levels()), "|", " ".join(cpu.step_levels()))
"""


def told(*emulator: str) -> str:
    """The levels of the kernels and of the step that the module finds on an emulated CPU."""
    if shutil.which(emulator[0]) is None:
        pytest.skip(f"{emulator[0]} is not installed")
    python = [sys.executable, "-I", "-S", "-c", PROGRAM]
    chosen = {name: value for name, value in os.environ.items() if name != "GMOE_CPU_LEVEL"}
    found = subprocess.run([*emulator, *python], capture_output=True, text=True, env=chosen)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.mark.timeout(300)
def test_no_cpu_runs_what_it_has_not() -> None:
    """valgrind emulates up to AVX2, and ends at an instruction of AVX-512, whatever this machine has."""
    kernels, _, step = told("valgrind", "-q", "--tool=none").partition(" | ")
    assert kernels.split() in (["portable"], ["portable", "avx2"])
    assert step == kernels


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("cpu", "levels"), [("Conroe", "portable"), ("Nehalem", "portable"), ("Haswell", "portable avx2")]
)
def test_levels_of_older_cpus(cpu: str, levels: str) -> None:
    assert told("qemu-x86_64", "-cpu", cpu) == f"{levels} | {levels}"
