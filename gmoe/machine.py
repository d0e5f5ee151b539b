"""What this machine gives the process: cores, and how fast memory and disk can be read."""

import mmap
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gmoe.kernels import cpu_ops

SAMPLE = 256 << 20  # bytes read for a measurement


def usable_cores() -> int:
    """Cores that the process may use: its affinity, and the quota of its control group."""
    return cpu_ops.usable_cores()


def cpu_name() -> str:
    """The model of the CPU, or its kind where the system does not say."""
    try:
        rows = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        rows = []
    return next((row.partition(":")[2].strip() for row in rows if row.startswith("model name")), platform.machine())


def memory_bandwidth(data: np.ndarray, threads: int) -> float:
    """Bytes a second at which all threads read `data` uint8, the best of four times."""
    return _best(lambda: cpu_ops.read(data, threads=threads), data.nbytes, 4)


def disk_bandwidth(path: Path) -> float | None:
    """Bytes a second past the page cache, the best of two times; None where the file system does not allow it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except (OSError, AttributeError):
        return None
    size = min(SAMPLE, path.stat().st_size) // (8 << 20) * (8 << 20)
    try:
        with mmap.mmap(-1, 8 << 20) as buffer:

            def read() -> None:
                for at in range(0, size, len(buffer)):
                    os.preadv(fd, [buffer], at)

            return _best(read, size, 2) if size else None
    except OSError:
        return None
    finally:
        os.close(fd)


def _best(work: Callable[[], object], nbytes: int, times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return nbytes / min(taken)


def memory_beside(path: Path) -> int:
    """Bytes of the process's peak that are not pages of this file; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
        mapped = resident(path)
    except OSError:
        return 0
    peak = next(int(row.split()[1]) for row in status.splitlines() if row.startswith("VmHWM"))
    return peak * 1024 - mapped


def resident(path: Path) -> int:
    """Bytes of this file's pages that the process has mapped; raises OSError where the system does not say."""
    mapped, ours = 0, False
    for row in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in row.split(" ", 1)[0]:
            ours = row.endswith(str(path.resolve()))
        elif ours and row.startswith("Rss:"):
            mapped += int(row.split()[1])
    return mapped * 1024
