"""How much memory this process may still take: cgroups (v1 and v2, nested), resource limits, and what is free."""

import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2^63 where there is no limit
LARGE = 1 << 20  # bytes of a block that goes back to the system when it is freed
_M_MMAP_THRESHOLD = -3  # of mallopt, glibc


class Limit(NamedTuple):
    """Bytes that may still be taken, who says so, and the limit itself where raising it would help."""

    free: int
    source: str
    most: int = 0


def available(root: Path = Path("/")) -> Limit:
    """The tightest of all limits; `root` is where `proc` and the cgroup mounts are looked for."""
    return min(limits(root), default=Limit(UNLIMITED, "no limit"))


def return_freed() -> None:
    """From now on the C library returns large blocks to the system when they are freed.

    Left to itself it keeps what a chunk of a prompt has used, in holes. Where the library has no such switch, nothing.
    """
    try:
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, LARGE)
        library.malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        pass


def limits(root: Path = Path("/")) -> Iterator[Limit]:
    """Every limit that applies, in any order."""
    free = _fields(root / "proc/meminfo").get("MemAvailable")
    if free is not None:
        yield Limit(free, "the free memory of this machine")
    elif root == Path("/"):  # not Linux: all that there is
        yield Limit(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "the memory of this machine")
    status = _fields(root / "proc/self/status")
    for name, kind, used in (
        ("RLIMIT_AS", resource.RLIMIT_AS, "VmSize"),
        ("RLIMIT_DATA", resource.RLIMIT_DATA, "VmData"),
    ):
        soft = resource.getrlimit(kind)[0]
        if soft != resource.RLIM_INFINITY:
            yield Limit(max(0, soft - status.get(used, 0)), name)
    yield from _cgroups(root)


def _cgroups(root: Path) -> Iterator[Limit]:
    """Every memory cgroup from this process's own up to the one that is mounted."""
    mounted_at = list(mounts(root))
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        v2 = number == "0" and not controllers
        if not v2 and "memory" not in controllers.split(","):
            continue
        for is_v2, mounted, point in mounted_at:
            if is_v2 != v2:
                continue
            inside = PurePosixPath(path)
            relative = inside.relative_to(mounted) if inside.is_relative_to(mounted) else PurePosixPath(".")
            top = root / point.lstrip("/")
            for folder in (top / relative, *[top / parent for parent in relative.parents]):
                limit = _group(folder, v2)
                if limit is not None:
                    yield limit


def _group(folder: Path, v2: bool) -> Limit | None:
    """What one cgroup leaves; page cache counts as free, the kernel takes it back before it refuses."""
    names = ("memory.max", "memory.current") if v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    most, used = (_text(folder / name).strip() for name in names)
    if v2:
        high = _text(folder / "memory.high").strip()
        most = min((text for text in (most, high) if text.isdigit()), key=int, default="")
    if not most.isdigit() or not used.isdigit() or int(most) >= UNLIMITED:
        return None
    stat = _fields(folder / "memory.stat")
    prefix = "" if v2 else "total_"
    cache = stat.get(prefix + "inactive_file", 0) + stat.get(prefix + "active_file", 0)
    free = max(0, int(most) - max(0, int(used) - cache))
    return Limit(free, f"the memory cgroup's limit of {int(most)} bytes", int(most))


def mounts(root: Path) -> Iterator[tuple[bool, str, str]]:
    """(is v2, what part of the hierarchy is mounted, where) of each cgroup mount that has memory."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) > 4 and len(kind) > 2:
            if kind[0] == "cgroup2":
                yield True, fields[3], fields[4]
            elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
                yield False, fields[3], fields[4]


def _fields(path: Path) -> dict[str, int]:
    """`name value` or `Name: value kB` lines."""
    found = {}
    for line in _text(path).splitlines():
        words = line.replace(":", " ").split()
        if len(words) > 1 and words[1].isdigit():
            found[words[0]] = int(words[1]) * (1024 if words[-1] == "kB" else 1)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
