"""What the CPU kernels must not do: read past the weights, change bits with company, take cores they were not given."""

import ctypes
import mmap
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from gmoe.kernels import cpu_ops
from gmoe.kernels.cpu import _cpu
from gmoe.kernels.formats import FORMATS, QuantTensor

from tests.test_kernels_cpu import NAMES, activations, assert_near, columns, random_rows, table

PAGE = mmap.PAGESIZE


class EndOfPage:
    """A copy of bytes that ends where a page begins that must not be touched."""

    def __init__(self, data: np.ndarray):
        size = data.nbytes + -data.nbytes % PAGE
        self.map = mmap.mmap(-1, size + PAGE)
        self.whole = np.frombuffer(self.map, dtype=np.uint8)
        self.libc = ctypes.CDLL(None, use_errno=True)
        assert self.protect(size, 0) == 0
        self.size = size
        self.data = self.whole[size - data.nbytes : size].reshape(data.shape)
        self.data[...] = data

    def protect(self, offset: int, mode: int) -> int:
        address = ctypes.c_void_p(self.whole.ctypes.data + offset)
        return int(self.libc.mprotect(address, ctypes.c_size_t(PAGE), mode))

    def release(self) -> None:
        assert self.protect(self.size, mmap.PROT_READ | mmap.PROT_WRITE) == 0


@pytest.mark.parametrize("level", cpu_ops.levels())
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_past_the_end(name: str, level: str) -> None:
    for cols in columns(FORMATS[name]):
        w = random_rows(name, 19, cols)
        held = EndOfPage(w.data)
        last = QuantTensor(held.data, w.format, w.shape)
        for tokens in (1, 5):
            x = activations(tokens, cols)
            assert torch.equal(cpu_ops.matmul(x, last, level=level), cpu_ops.matmul(x, w, level=level))
        held.release()


@pytest.mark.parametrize(
    "name", ["Q4_K", "Q6_K", "Q8_0", "Q4_0", "MXFP4", "NVFP4", "IQ4_XS", "IQ3_XXS", "IQ2_XS", "BF16"]
)
def test_any_number_of_tokens_gives_the_same_bits(name: str) -> None:
    cols = 272 if FORMATS[name].block_size == 1 else 768
    w, x = random_rows(name, 83, cols), activations(300, cols)
    whole = cpu_ops.matmul(x, w, threads=2)
    assert_near(whole, x, w)
    for tokens in (*range(1, 34), 127, 128, 129, 255, 256, 257):
        assert torch.equal(cpu_ops.matmul(x[:tokens], w, threads=1), whole[:tokens]), tokens


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 255, 256, 257])
def test_odd_rows(rows: int) -> None:
    for name in ("Q4_K", "Q8_0", "F16"):
        w, x = random_rows(name, rows, 512), activations(9, 512)
        whole = cpu_ops.matmul(x, w, threads=3)
        assert_near(whole, x, w)
        assert torch.equal(cpu_ops.matmul(x[4:5], w), whole[4:5])


@pytest.mark.parametrize("tokens", [1, 2, 7, 60])
def test_uneven_experts_on_any_number_of_threads(tokens: int) -> None:
    t = table(("Q4_K", "Q6_K", "MXFP4"), n=8)
    x = activations(tokens, 256)
    rng = np.random.default_rng(tokens)
    ids = torch.from_numpy((7 * rng.random((tokens, 3)) ** 6).astype(np.int32))  # most to 0, none to 7
    ids[0, 0] = -1
    out = torch.full((tokens, 3, 256), -7.0)
    cpu_ops.expert_rows(x, ids, t, "swiglu", out, threads=1)
    assert (out[ids < 0] == -7).all()
    for threads in (2, 3, 8, 16):
        other = torch.full_like(out, -7.0)
        cpu_ops.expert_rows(x, ids, t, "swiglu", other, threads=threads)
        assert torch.equal(other, out)
    for row in (0, tokens - 1):
        alone = torch.full((1, 3, 256), -7.0)
        cpu_ops.expert_rows(x[row : row + 1], ids[row : row + 1], t, "swiglu", alone)
        assert torch.equal(alone[0], out[row])


def test_activations_are_the_same_bits_on_every_level() -> None:
    t = table(("Q8_0", "Q8_0", "Q8_0"))
    x, ids = 30 * activations(4, 256), torch.tensor([[0, 1], [2, 3], [1, 4], [0, 0]], dtype=torch.int32)
    for name in ("swiglu", "geglu", "reglu", "swiglu_oai", "swiglu_within:7.0", "swiglu_under:7.0", "situ:7.0:5.0"):
        outs = [torch.empty(4, 2, 256) for _ in cpu_ops.levels()]
        for out, level in zip(outs, cpu_ops.levels(), strict=True):
            cpu_ops.expert_rows(x, ids, t, name, out, level=level)
        assert all(torch.equal(out, outs[0]) for out in outs)


def test_a_forked_child_computes() -> None:
    w, x = random_rows("Q4_K", 600, 1024), activations(3, 1024)
    expected = cpu_ops.matmul(x, w, threads=2)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(cpu_ops.matmul(x, w, threads=2), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_callers_on_several_threads() -> None:
    w, x = random_rows("Q6_K", 300, 512), activations(4, 512)
    expected, wrong = cpu_ops.matmul(x, w), []

    def work(threads: int) -> None:
        for _ in range(50):
            if not torch.equal(cpu_ops.matmul(x, w, threads=threads), expected):
                wrong.append(threads)

    callers = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3, 5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_idle_threads_use_no_core() -> None:
    w, x = random_rows("Q4_K", 600, 1024), activations(3, 1024)
    cpu_ops.matmul(x, w, threads=4)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


def test_quotas_of_both_versions(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    def cores(memberships: str) -> int:
        return int(_cpu.quota_cores(memberships, str(tmp_path)))

    write("a/b/cpu.max", "max 100000\n")
    assert cores("0::/a/b\n") == 0
    write("a/cpu.max", "250000 100000\n")
    assert cores("0::/a/b\n") == 3
    write("a/b/cpu.max", "50000 100000\n")
    assert cores("0::/a/b\n") == 1
    write("cpu,cpuacct/box/cpu.cfs_quota_us", "-1\n")
    write("cpu,cpuacct/box/cpu.cfs_period_us", "100000\n")
    assert cores("3:cpu,cpuacct:/box\n2:cpuset:/\n") == 0
    write("cpu,cpuacct/box/cpu.cfs_quota_us", "400000\n")
    assert cores("3:cpu,cpuacct:/box\n2:cpuset:/\n") == 4
    assert cores("garbage\n") == cores("") == 0
