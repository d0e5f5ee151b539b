"""The NEON level of the CPU kernels, cross-compiled and emulated: the same bits as the portable level and as AVX2 here.

Needs Debian's g++-aarch64-linux-gnu and qemu-user (`missing()` says which)."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gmoe.kernels.grids import grid, sign_bytes

CPU = Path(__file__).parents[1] / "kernels" / "cpu"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-pthread"]
SHARED = ["portable.cpp", "experts.cpp", "cores.cpp", "pool.cpp", "shared.cpp", "check_levels.cpp"]
GRIDS = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")


def missing() -> list[str]:
    """The tools that are not installed."""
    return [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]


def tables() -> bytes:
    """The grids as `check_levels.cpp` reads them: IQ1's, the others, the signs."""
    parts = [(grid("IQ1_S") + 1).astype(np.uint8).tobytes()]
    parts += [grid(name).astype(np.uint8).tobytes() for name in GRIDS]
    return b"".join(len(part).to_bytes(4, "little") + part for part in [*parts, sign_bytes().tobytes()])


def compile_level(compiler: str, out: Path, level: str, options: list[str]) -> None:
    """A program that checks `level` (a source file) against the portable one."""
    part = out.with_suffix(".o")
    subprocess.run([compiler, *FLAGS, *options, "-c", CPU / f"{level}.cpp", "-o", part], check=True)
    sources = [CPU / name for name in SHARED]
    subprocess.run([compiler, *FLAGS, f"-DLEVEL={level}", *sources, part, "-o", out, "-static"], check=True)


def check() -> list[str]:
    """The lines "format hash" of the emulated program, which fails where NEON and portable differ in a bit."""
    with tempfile.TemporaryDirectory() as folder:
        program, data = Path(folder) / "check", Path(folder) / "tables"
        data.write_bytes(tables())
        compile_level(COMPILER, program, "neon", ["-march=armv8.2-a+dotprod"])
        arm = subprocess.run([EMULATOR, "-cpu", "max", program, data], check=True, capture_output=True, text=True)
        compile_level("g++", program, "avx2", ["-mavx2", "-mf16c", "-mfma"])
        here = subprocess.run([program, data], check=True, capture_output=True, text=True)
        if arm.stdout != here.stdout:
            raise SystemExit(f"bits differ between the machines:\n{arm.stdout}\n{here.stdout}")
    return arm.stdout.splitlines()


if __name__ == "__main__":
    if missing():
        raise SystemExit(f"not installed: {', '.join(missing())}")
    print("\n".join(check()), file=sys.stdout)
    print("neon = portable = avx2, bit for bit")
