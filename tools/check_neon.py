"""The NEON level of the CPU kernels, cross-compiled and emulated: the same bits as the portable level there and here.

Needs Debian's g++-aarch64-linux-gnu and qemu-user (`missing()` says which)."""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from gmoe.kernels.grids import grid, sign_bytes

CPU = Path(__file__).parents[1] / "kernels" / "cpu"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
OLD = "cortex-a72"  # a CPU without dot products
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-pthread"]
SHARED = [
    "cpu_features",
    "portable",
    "step_portable",
    "experts",
    "step",
    "states",
    "cores",
    "pool",
    "shared",
    "check_levels",
]
NEON = {
    "step_neon": ["-O1"],
    "neon": ["-O1", "-march=armv8.2-a+dotprod"],
    "neon_i8mm": ["-O1", "-march=armv8.2-a+dotprod+i8mm"],
}
HERE = {"step_portable": ["-O1"], "portable": ["-O1"]}
GRIDS = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")


def missing() -> list[str]:
    """The tools that are not installed."""
    return [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]


def tables() -> bytes:
    """The grids as `check_levels.cpp` reads them: IQ1's, the others, the signs."""
    parts = [(grid("IQ1_S") + 1).astype(np.uint8).tobytes()]
    parts += [grid(name).astype(np.uint8).tobytes() for name in GRIDS]
    return b"".join(len(part).to_bytes(4, "little") + part for part in [*parts, sign_bytes().tobytes()])


def program(compiler: str, folder: Path, levels: dict[str, list[str]]) -> Path:
    """A program that checks a level of the step and some of the kernels, sources, against the portable ones."""
    step, *kernels = levels
    found = ", ".join(f"&{name}" for name in kernels)
    names = {
        **levels,
        **{name: ["-O1", f"-DLEVELS={found}", f"-DSTEP={step}"] for name in SHARED if name not in levels},
    }
    folder.mkdir()

    def compile_one(name: str) -> None:
        options = [*FLAGS, *names[name], "-c", CPU / f"{name}.cpp", "-o", folder / f"{name}.o"]
        subprocess.run([compiler, *options], check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, names))
    objects = [folder / f"{name}.o" for name in names]
    subprocess.run([compiler, *objects, "-o", folder / "check", "-static", "-pthread"], check=True)
    return folder / "check"


def check() -> list[str]:
    """The lines "name hash", of formats and of the step's functions, that the emulated program writes.

    Raises where NEON and portable differ in a bit, or the step on a CPU without dot products."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "tables"
        data.write_bytes(tables())
        there, here = program(COMPILER, Path(folder) / "arm", NEON), program("g++", Path(folder) / "x86", HERE)

        def same(cpu: str, *given: Path | str) -> str:
            """What both say of the same."""
            runs = [[EMULATOR, "-cpu", cpu, there, *given], [here, *given]]
            arm, x86 = [subprocess.run(run, check=True, capture_output=True, text=True).stdout for run in runs]
            if arm != x86:
                raise SystemExit(f"bits differ between the machines:\n{arm}\n{x86}")
            return arm

        same(OLD, data, "step")
        return same("max", data).splitlines()


if __name__ == "__main__":
    if missing():
        raise SystemExit(f"not installed: {', '.join(missing())}")
    print("\n".join(check()), file=sys.stdout)
    print("neon = neon_i8mm = portable, there and here, bit for bit")
