"""What memory is left, read from made-up `/proc` and cgroup trees; and the budget made of it."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from gmoe.kernels.kv import BLOCK, KvLayer, KvShape

from gmoe.experts import memory
from gmoe.experts.budget import Budget, TooSmall
from gmoe.experts.device_budget import DeviceBudget
from gmoe.experts.memory import Limit, available, limits
from gmoe.gguf.file import GGUFFile
from gmoe.gguf.layout import ExpertLayout
from gmoe.options import memory_bytes
from tests.factory import write_model

MEMINFO = "MemTotal:       16000 kB\nMemFree: 10 kB\nMemAvailable:   8000 kB\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_cgroups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/meminfo": MEMINFO})
    assert available(root) == Limit(8000 * 1024, "the free memory of this machine")


def test_a_system_without_proc_has_the_memory_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_fields", lambda path: {})
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert Limit(whole, "the memory of this machine") in list(limits())


def test_nothing_to_read_is_no_limit(tmp_path: Path) -> None:
    assert available(tmp_path).free >= 1 << 60


def test_nested_v1_groups_count_cache_as_free(tmp_path: Path) -> None:
    top = "sys/fs/cgroup/memory"
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "5:cpu:/x\n4:memory:/a/b\n0::/\n",
            "proc/self/mountinfo": "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
            f"{top}/memory.limit_in_bytes": "9223372036854771712",
            f"{top}/memory.usage_in_bytes": "5",
            f"{top}/a/memory.limit_in_bytes": "3000000",
            f"{top}/a/memory.usage_in_bytes": "2900000",
            f"{top}/a/memory.stat": "cache 1\ntotal_inactive_file 100000\ntotal_active_file 200000\n",
            f"{top}/a/b/memory.limit_in_bytes": "2000000",
            f"{top}/a/b/memory.usage_in_bytes": "1000",
        },
    )
    assert {limit.free for limit in limits(root)} == {8000 * 1024, 400000, 1999000}
    assert available(root) == Limit(400000, "the memory cgroup's limit of 3000000 bytes", 3000000)


def test_v2_groups_and_a_mount_of_a_part(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/pod/me\n",
            "proc/self/mountinfo": "41 31 0:38 /pod /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "sys/fs/cgroup/memory.max": "max\n",
            "sys/fs/cgroup/memory.current": "7\n",
            "sys/fs/cgroup/me/memory.max": "6000000\n",
            "sys/fs/cgroup/me/memory.high": "5000000\n",
            "sys/fs/cgroup/me/memory.current": "1500000\n",
            "sys/fs/cgroup/me/memory.stat": "anon 9\ninactive_file 400000\nactive_file 100000\n",
        },
    )
    assert available(root).free == 4000000


@pytest.fixture
def layout(tmp_path: Path):
    with GGUFFile.open(write_model(tmp_path / "m.gguf", "qwen3moe")) as file:
        yield ExpertLayout(file, 2, 8)


def test_what_fits_is_used_straight_from_the_map(layout: ExpertLayout) -> None:
    experts = 16 * layout.expert_bytes(0)
    assert Budget("m", layout, 1000, 1000 + experts).whole
    assert not Budget("m", layout, 1000, 999 + experts).whole
    assert Budget("m", layout, 1000, None, Limit(1 << 30, "x")).whole
    assert not Budget("m", layout, 1000, None, Limit(1000 + experts, "x")).whole


def test_too_small_a_budget_says_the_least_that_would_do(layout: ExpertLayout) -> None:
    budget = Budget("m.gguf", layout, 5 << 20, 5 << 20)
    with pytest.raises(TooSmall, match="m.gguf needs at least 5156 KiB .* host_memory leaves 5 MiB"):
        budget.counts(0)
    budget = Budget("m.gguf", layout, 5 << 20, None, Limit(4 << 20, "the memory cgroup's limit of 9 bytes"))
    with pytest.raises(TooSmall, match="the memory cgroup's limit of 9 bytes leaves 4 MiB"):
        budget.counts(1 << 20)
    assert Budget("m", layout, 5 << 20, 6 << 20).counts(0)[0] >= 1


def test_the_least_that_is_named_would_do(layout: ExpertLayout) -> None:
    def budget(free: int) -> Budget:
        limit = Limit(free, "the memory cgroup's limit of 9 bytes", free + (50 << 20))
        return Budget("m.gguf", layout, 5 << 20, None, limit, lambda rows: rows << 16)

    for kv in (None, 3 << 20):
        with pytest.raises(TooSmall, match="a limit of [0-9]+ MiB would do") as refused:
            budget(20 << 20).counts(kv)
        least = int(str(refused.value).split("a limit of ")[1].split()[0]) << 20
        assert sum(budget(least - (50 << 20)).counts(kv)) >= 1
        with pytest.raises(TooSmall):
            budget(least - (52 << 20)).counts(kv)


@pytest.mark.parametrize("part", [1.0, 0.9, 0.3, 1 / 7])
@pytest.mark.parametrize("fixed", [1000, 3_456_789, 77_777_777])
def test_the_budget_that_is_named_is_enough(layout: ExpertLayout, fixed: int, part: float) -> None:
    for asked in (1, fixed - 1, fixed + 10_000):
        with pytest.raises(TooSmall) as refused:
            Budget("m.gguf", layout, fixed, asked).counts(0, part)
        named = re.search("needs at least (.+) of memory .* leaves (.+)", str(refused.value))
        assert named and memory_bytes(named[2], 0) <= asked
        enough = memory_bytes(named[1], 0)
        assert sum(Budget("m.gguf", layout, fixed, enough).counts(0, part)) >= 1
        groups = Budget("m.gguf", layout, fixed, enough).groups
        device = DeviceBudget("m.gguf", groups, 1 << 30, fixed, 1 << 20, 1 << 20, asked)
        with pytest.raises(TooSmall) as refused:
            device.counts(part)
        named = re.search("needs at least (.+) for its .* gpu_memory leaves (.+)", str(refused.value))
        assert named and replace(device, asked=memory_bytes(named[1], 0)).counts(part)[0] >= 1


def test_the_least_of_a_device_would_do(layout: ExpertLayout) -> None:
    groups = Budget("m.gguf", layout, 0, 1 << 30).groups
    device = DeviceBudget("m.gguf", groups, 300 << 20, 12_345_678, 3 << 20, 5 << 20)
    with pytest.raises(TooSmall, match="needs .* on the device .* 300 MiB are free") as refused:
        device.counts()
    named = str(refused.value).split("needs ")[1].split(" on the device")[0]
    assert replace(device, free=memory_bytes(named, 0)).counts()[0] >= 1


def test_a_chunk_takes_no_more_than_half_of_the_slots(layout: ExpertLayout) -> None:
    def budget(free: int, asked: int | None = None) -> Budget:
        return Budget("m", layout, 0, asked, Limit(free, "x"), lambda rows: rows << 20)

    kept = budget(0).reserve
    for free, chunk in ((8, 16), (16, 16), (48, 32), (2000, 512)):
        assert budget(kept + (free << 20)).chunk(0) == chunk
    assert budget(kept).lent(8) == 0 and budget(kept).lent(16) == 8 << 20
    assert budget(kept, asked=1 << 20).lent(512) == 0


def test_a_chunk_is_longer_where_each_reads_the_experts_anew(layout: ExpertLayout) -> None:
    def budget(free: int, asked: int | None = None) -> Budget:
        return Budget("m", layout, 0, asked, Limit(free, "x"), lambda rows: rows << 8)

    kept = budget(0).reserve
    for free, longest, chunk in ((600, 2048, 512), (1100, 2048, 1024), (2100, 2048, 2048), (2100, 512, 512)):
        assert budget(kept + (free << 10)).chunk(0, longest) == chunk  # of the slots no more than a quarter
    assert budget(1 << 40).whole and budget(1 << 40).chunk(0, 2048) == 512
    for asked, chunk in ((1 << 20, 512), (3 << 20, 1024)):
        small = Budget("m", layout, 8 << 20, asked, Limit(kept + (64 << 20), "x"), lambda rows: rows << 8)
        assert not small.whole and small.chunk(0, 2048) == chunk  # an eighth of what was asked for


@pytest.mark.parametrize("n_blocks", [1 << 45, 1 << 60])
def test_a_context_that_does_not_fit_is_said_in_tokens(n_blocks: int) -> None:
    with pytest.raises(MemoryError, match=f"^{n_blocks * BLOCK} tokens of KV cache .* a smaller context"):
        KvLayer(KvShape(2, 8, 8), n_blocks, "f16")
