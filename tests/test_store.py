"""The store over a scripted transfer: right bytes or none, no slot twice, no leak; and the real one over real files."""

import errno
import os
import random
from pathlib import Path

import numpy as np
import pytest
from gmoe.kernels.formats import FORMATS

from gmoe.experts import transfer as transfer_module
from gmoe.experts.evict.lru import Policy as Lru
from gmoe.experts.expert_id import ExpertId
from gmoe.experts.slots import PAGE, Group, Read, extent, extents, groups, least, share
from gmoe.experts.store import ExpertStore
from gmoe.experts.transfer import State, ThreadTransfer, TransferError
from gmoe.gguf.file import GGUFFile
from gmoe.gguf.layout import ExpertLayout, Span
from tests.factory import Shape, write_model
from tests.scripted_transfer import ScriptedTransfer

SHAPE = Shape(layer=3, expert=8, embd=96, ff_exp=96)
F32 = FORMATS["F32"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory):
    with GGUFFile.open(write_model(tmp_path_factory.mktemp("store") / "m.gguf", "qwen3moe", shape=SHAPE)) as file:
        yield file


def opened(file: GGUFFile, slots: int, transfer) -> ExpertStore:
    layout = ExpertLayout(file, SHAPE.layer, SHAPE.expert)
    store, where = ExpertStore(layout), extents(layout)
    store.offload(groups(layout, where), [slots], where, Lru, transfer)
    return store


def scripted(file: GGUFFile, **how) -> ScriptedTransfer:
    return ScriptedTransfer([np.fromfile(path, dtype=np.uint8) for path in file.parts], **how)


def check(store: ExpertStore, layout: ExpertLayout) -> int:
    """Every address leads to the bytes of the file, no two overlap; returns how many experts are here."""
    seen = []
    for layer, stacks in layout.layers.items():
        table = store.table(layer)
        for matrix, stack in zip((table.gate, table.up, table.down), stacks, strict=True):
            for expert in np.flatnonzero(matrix.address):
                data = matrix.data(int(expert))
                assert np.array_equal(data, stack.matrices[expert])
                seen.append((data.ctypes.data, data.nbytes))
    seen.sort()
    assert all(a + n <= b for (a, n), (b, _) in zip(seen, seen[1:], strict=False))
    return len(seen) // 3


@pytest.mark.parametrize("slots", [1, 2, 7, 20])
def test_ten_thousand_random_steps_leak_nothing(file: GGUFFile, slots: int) -> None:
    transfer = scripted(file, seed=slots, errors=0.02)
    store = opened(file, slots, transfer)
    layout = ExpertLayout(file, SHAPE.layer, SHAPE.expert)
    choose = random.Random(slots)
    failures = 0
    for step in range(2500):
        layer = choose.randrange(SHAPE.layer)
        wanted = choose.sample(range(SHAPE.expert), choose.randint(1, 4))
        if step % 40 == 0:
            store.lend(choose.choice([0, 1, store._groups[0].slot_bytes * choose.randrange(30)]))
        if choose.random() < 0.05:
            store.keep([ExpertId(0, expert) for expert in choose.sample(range(SHAPE.expert), 3)])
        here, absent = store.lookup(layer, wanted)
        assert all(store.resident(id) for id in here)
        pinned, flying = set(here), []
        if choose.random() < 0.7:
            told = [ExpertId(choose.randrange(SHAPE.layer), choose.randrange(SHAPE.expert))]
            choose.choice([store.prefetch, store.foretell])(told, pinned)
        try:
            while absent or flying:
                while absent and (ticket := store.fetch(absent[0], pinned)):
                    pinned.add(absent.pop(0))
                    flying.append(ticket)
                assert all(store.resident(id) for id in here if id in pinned)
                if not flying:
                    pinned.difference_update(here)
                    continue
                arrived = store.wait(flying)
                flying = [ticket for ticket in flying if ticket not in arrived]
                assert all(store.resident(ticket.id) for ticket in arrived)
                pinned.difference_update(ticket.id for ticket in arrived)
        except TransferError:
            failures += 1
        if step % 50 == 0:
            assert check(store, layout) <= slots
    store.settle()
    store.lend(0)
    assert store._pools[0].capacity == slots
    assert not transfer.flying and transfer.most > 0
    assert 0 < failures < 800
    assert check(store, layout) == len(store._pools[0]) <= slots
    pool = store._pools[0]
    numbers = [*pool._free, *pool._slots.values()]
    assert sorted(numbers) == list(range(len(numbers))) and len(numbers) <= slots
    assert store.stats.hits + store.stats.misses > 2500 and store.stats.bytes_loaded > 0


def test_extents_are_aligned_and_merged() -> None:
    apart = extent([Span(0, 5000, 100, F32), Span(0, 90000, 9000, F32), Span(1, 0, 10, F32)])
    assert [(r.part, r.offset, r.nbytes, r.at, r.needed) for r in apart.reads] == [
        (0, 4096, 4096, 0, 1004),
        (0, 86016, 16384, 4096, 12984),
        (1, 0, 4096, 20480, 10),
    ]
    assert apart.starts == (904, 4096 + 3984, 20480) and apart.nbytes == 24576
    together = extent([Span(0, 3000, 2000, F32), Span(0, 5000, 5000, F32), Span(0, 1000, 2000, F32)])
    assert len(together.reads) == 1 and together.starts == (3000, 5000, 1000)
    assert together.reads[0][1:] == (0, 12288, 0, 10000)
    assert all(r.offset % PAGE == r.nbytes % PAGE == r.at % PAGE == 0 for r in (*apart.reads, *together.reads))


def test_a_budget_is_shared_evenly() -> None:
    alike = [Group((0,), 10, 100), Group((1, 2), 20, 200)]
    assert share(alike, 10**9) == [10, 20] and least(alike) == 300
    assert share(alike, 2500) == [5, 10]
    assert share(alike, 2600) == [6, 10]
    assert share(alike, 300) == [1, 1] and share(alike, 1) == [1, 1]


@pytest.mark.parametrize("mapped", [False, True])
def test_threads_read_what_the_file_holds(file: GGUFFile, mapped: bool) -> None:
    layout = ExpertLayout(file, SHAPE.layer, SHAPE.expert)
    store = opened(file, 24, ThreadTransfer(file.parts, mapped=mapped))
    ids = [ExpertId(layer, expert) for layer in range(3) for expert in range(8)]
    store.prefetch(ids[:4], ())
    tickets = [store.fetch(id, ()) for id in ids]
    while tickets := [ticket for ticket in tickets if ticket not in store.wait(tickets)]:
        pass
    assert check(store, layout) == 24
    store.close()


def test_what_is_foretold_stays_until_its_layer_has_come(file: GGUFFile) -> None:
    store = opened(file, 3, scripted(file))

    def ask(layer: int, expert: int) -> None:
        store.lookup(layer, [expert])
        if not store.resident(id := ExpertId(layer, expert)):
            ticket = store.fetch(id, ())
            while ticket not in store.wait([ticket]):
                pass

    for expert in (5, 6, 7):
        ask(2, expert)
    store.foretell([ExpertId(2, 5)], ())  # the oldest, and here
    ask(0, 0)
    assert store.resident(ExpertId(2, 5)) and not store.resident(ExpertId(2, 6))
    store.foretell([ExpertId(2, 5), ExpertId(2, 7), ExpertId(1, 0), ExpertId(0, 0)], ())
    ask(1, 1)  # nobody else can leave
    assert store.resident(ExpertId(1, 1))
    store.lookup(2, [])
    store.lookup(0, [])
    oldest = next(iter(store._pools[0].evict.order))
    ask(1, 2)
    assert not store.resident(oldest)
    store.close()


def test_what_is_kept_stays_where_more_is_foretold_than_there_is_room_for(file: GGUFFile) -> None:
    store = opened(file, 3, scripted(file))
    store.keep([ExpertId(2, 5)])
    store.wait(list(store._flying.values()))
    for expert in (6, 7):
        store.wait([store.fetch(ExpertId(2, expert), ())])
    store.foretell([ExpertId(2, 6), ExpertId(2, 7)], ())
    store.wait([store.fetch(ExpertId(0, 0), ())])
    assert [store.resident(ExpertId(2, expert)) for expert in (5, 6, 7)] == [True, False, True]
    store.close()


def test_a_read_that_cannot_begin_leaves_nothing_behind(file: GGUFFile, monkeypatch: pytest.MonkeyPatch) -> None:
    store, id = opened(file, 3, transfer := scripted(file)), ExpertId(0, 0)

    def broken(*given) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "submit", broken)
        for begin in (lambda: store.fetch(id, ()), lambda: store.prefetch([id], ())):
            with pytest.raises(MemoryError):
                begin()
            assert not len(store._pools[0]) and not store.arriving(id)
    store.wait([store.fetch(id, ())])
    assert store.resident(id)
    store.close()


def test_the_system_need_not_take_a_hint(file: GGUFFile) -> None:
    part = transfer_module._MappedFile(file.path)
    part.announce(Read(0, 1, 10, 0, 10))  # no page begins there
    part.close()


def test_a_system_without_direct_reading_reads_the_same(file: GGUFFile, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("O_DIRECT", "posix_fadvise"):
        monkeypatch.delattr(os, name)
    test_threads_read_what_the_file_holds(file, mapped=False)


@pytest.mark.parametrize("mapped,call", [(False, "preadv"), (True, "fstat")])
@pytest.mark.parametrize("error", [OSError(errno.ESTALE, "Stale file handle"), RuntimeError("Stale file handle")])
def test_a_reader_lives_on_whatever_a_read_raises(
    file: GGUFFile, monkeypatch: pytest.MonkeyPatch, mapped: bool, call: str, error: Exception
) -> None:
    transfer = ThreadTransfer(file.parts, in_flight=0, mapped=mapped)
    store = opened(file, 24, transfer)
    ticket = store.fetch(ExpertId(0, 0), ())

    def broken(*given) -> None:
        transfer._open = bool(transfer._urgent)  # the last read lets the reader come to its end
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, call, broken)
        transfer._work()
    with pytest.raises(TransferError, match="m.gguf cannot be read: Stale file handle"):
        store.wait([ticket])
    transfer._open = True
    store.close()


def test_a_file_that_refuses_direct_reads_is_closed_all_the_same(
    file: GGUFFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, old = os.listdir("/dev/fd"), os.preadv
    transfer = ThreadTransfer(file.parts)
    direct = {part.direct for part in transfer.files}

    def refusing(fd: int, *more) -> int:
        if fd in direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return old(fd, *more)

    monkeypatch.setattr(os, "preadv", refusing)
    store = opened(file, 24, transfer)
    ticket = store.fetch(ExpertId(0, 0), ())
    assert store.wait([ticket]) == [ticket] and store.resident(ExpertId(0, 0))
    store.close()
    assert os.listdir("/dev/fd") == before


@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_cut_off_while_in_use_fails_only_what_it_lost(tmp_path: Path, mapped: bool) -> None:
    path = write_model(tmp_path / "m.gguf", "qwen3moe", shape=SHAPE)
    with GGUFFile.open(path) as file:
        layout = ExpertLayout(file, SHAPE.layer, SHAPE.expert)
        store = opened(file, 8, ThreadTransfer(file.parts, mapped=mapped))
        last = layout.spans(2, 7).down
        os.truncate(path, last.offset + 10)
        ticket = store.fetch(ExpertId(2, 7), ())
        with pytest.raises(TransferError, match="m.gguf ends at byte .*: it was cut off while in use"):
            store.wait([ticket])
        assert ticket.state is State.FAILED and not store.resident(ExpertId(2, 7)) and not len(store._pools[0])
        ticket = store.fetch(ExpertId(0, 0), ())
        assert store.wait([ticket]) == [ticket] and store.resident(ExpertId(0, 0))
        store.close()


@pytest.mark.parametrize("mapped", [False, True])
def test_closing_twice_closes_nothing_of_anybody_else(file: GGUFFile, mapped: bool) -> None:
    transfer = ThreadTransfer(file.parts, in_flight=0, mapped=mapped)
    transfer.close()
    others = [os.open(file.path, os.O_RDONLY) for _ in range(4)]  # the numbers that have become free
    transfer.close()
    for fd in others:
        os.close(fd)


def test_what_waits_is_cancelled_and_what_is_wanted_goes_first(file: GGUFFile) -> None:
    transfer = ThreadTransfer(file.parts, in_flight=0)  # nobody reads: the order is seen
    store = opened(file, 24, transfer)
    foretold = [ExpertId(1, n) for n in range(3)]
    store.prefetch(foretold, ())
    assert store.arriving(foretold[0]) and not store.resident(foretold[0])
    wanted = store.fetch(ExpertId(0, 5), ())
    hurried = store.fetch(foretold[2], ())
    assert transfer._urgent[0][0] is wanted
    assert {job[0] for job in transfer._urgent} == {wanted, hurried}
    assert {job[0].id for job in transfer._later} == set(foretold[:2])
    assert transfer.cancel(wanted) and wanted.state is State.CANCELLED
    store.close()
    assert hurried.state is State.CANCELLED


def test_the_page_cache_is_used_where_it_has_the_experts(file: GGUFFile, monkeypatch: pytest.MonkeyPatch) -> None:
    where = extents(ExpertLayout(file, SHAPE.layer, SHAPE.expert))
    monkeypatch.setattr(transfer_module, "WORTH_MEASURING", 0)

    def reader(mode: str = "auto") -> tuple[bool, str]:
        transfer = transfer_module.open_transfer(file.parts, where.values(), mode)
        transfer.close()
        return transfer.mapped, transfer.notice

    for path in file.parts:
        path.read_bytes()
    assert reader() == (True, "experts are used out of the page cache, which has 100% of them")
    assert reader("direct") == (False, "")
    monkeypatch.setattr(transfer_module, "_cached", lambda paths, extents: 0.9)
    for rates, mapped in (((100.0, 149.0), False), ((100.0, 151.0), True)):
        monkeypatch.setattr(transfer_module, "_bandwidths", lambda paths, extents, rates=rates: rates)
        assert reader()[0] == mapped
