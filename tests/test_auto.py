"""auto: what is chosen saves, a prefetcher stays only while it pays, and MODEL.trace carries it to the next run."""

import itertools
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from traces import synthetic

import gmoe
from gmoe.experts.auto import AutoEviction, AutoPrefetch, AutoWorkingSet
from gmoe.experts.chooser import EVICT, Chooser, Verdict, compare
from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import load
from gmoe.experts.pool import SlotPool
from gmoe.experts.recorder import Recorder
from gmoe.experts.schedule import Schedule
from gmoe.experts.simulate import Replay
from gmoe.experts.trace import Header, Trace, TraceError
from gmoe.experts.trace_file import TraceFile, joined
from tests.factory import write_model

TRACE = synthetic(steps=40)
SCHEDULE = Schedule(TRACE)
SHAPE = SCHEDULE.shape


def build(kind):
    return lambda name: load(kind, name, shape=SHAPE)


@pytest.mark.parametrize("name", EVICT)
def test_a_policy_is_exchanged_while_it_runs(name):
    """After a change the pool is as it was, and every victim is resident and unpinned."""
    policy = AutoEviction(build("evict"))
    pool = SlotPool(12, policy)
    for n, turn in enumerate(SCHEDULE.turns):
        if n == 100:
            before = set(pool)
            policy.change(name, SCHEDULE.turns[:100])
            assert set(pool) == before and policy.name == name
        policy.observe(turn.layer, turn.ids, turn.weights, None)
        for id in pool.absent(turn.wanted):
            held = set(pool)
            assert set(pool.place(id, turn.pinned).evicted) <= held - turn.pinned
        assert set(policy.residents) == set(pool)


def trial(off, on, passes=3000):
    """The share of passes with the prefetcher on, after the first trial; `off`, `on`: seconds of a pass."""
    noise = np.random.default_rng(1).normal(0, 0.02, passes)
    policy = AutoPrefetch(build("prefetch"), ("transition",))
    used = []
    for n in range(passes):
        used.append(policy.on)
        policy.passed((on if policy.on else off) * (1 + noise[n]))
    return np.mean(used[200:])


def test_a_prefetcher_stays_only_while_it_pays():
    assert trial(off=0.10, on=0.08) > 0.9
    assert trial(off=0.10, on=0.13) < 0.02
    assert trial(off=0.10, on=0.10) < 0.05


def test_a_prefetcher_that_is_off_foretells_nothing():
    policy = AutoPrefetch(build("prefetch"), ("transition",))
    assert list(policy.predict(0, None, TRACE.ids[:1], TRACE.weights[:1], None)) == []


def test_comparison_finds_what_reads_least():
    groups = [(range(SHAPE[0]), 20)]
    verdict = next(found for found in compare(SCHEDULE, groups) if found is not None)
    reads = {name: Replay(SCHEDULE, SCHEDULE.bytes, name, groups=groups).run().decode.bytes for name in EVICT}
    assert reads[verdict.evict] <= min(reads.values()) * 1.05
    assert set(EVICT) < set(verdict.saved)


def test_chooser_decides_in_small_steps():
    """It waits until enough has run, then works a slice a pass by a clock that goes on by itself."""
    now = itertools.count()
    recorder = Recorder(Header("m", "", 2, 8, (100, 100)), 10_000)
    policy = AutoEviction(build("evict"))
    chooser = Chooser(recorder, [(range(2), 4)], [policy], None, None, clock=lambda: 0.001 * next(now))
    one = np.zeros(1, np.int32)
    for step in range(600):
        chooser.step(one, np.ones(1, np.uint8))
        recorder.begin_step(one, np.ones(1), np.array([step]))
        for layer in range(2):  # a hot expert, and a scan that LRU keeps in vain
            recorder.record(layer, np.array([[0, 1 + step % 7]]), np.full((1, 2), 0.5))
    assert len(chooser.verdicts) == 1 and policy.name == chooser.verdicts[0].evict


def test_chooser_gives_a_working_set():
    working_set = AutoWorkingSet(build("working_set"))
    chooser = Chooser(
        Recorder(TRACE.header), [(range(SHAPE[0]), 20)], [AutoEviction(build("evict"))], working_set, None
    )
    chooser.decide(Verdict("lfu", "quota", {}))
    assert (working_set.name, chooser.evicts[0].name) == ("quota", "lfu")
    chooser.learn(TRACE, 100)
    assert len(chooser.verdicts) == 2


def test_trace_file_grows(tmp_path: Path):
    model = tmp_path / "m.gguf"
    first = TraceFile(model, None, TRACE.header)
    assert first.trace is None and first.hottest(3) == []
    first.save(TRACE)
    assert (tmp_path / "m.trace").is_file()
    again = TraceFile(model, None, TRACE.header)
    assert again.trace is not None and len(again.trace) == len(TRACE)
    assert again.matrices is not None and len(again.matrices) == 6  # three requests, prompts and answers
    again.save(TRACE)
    third = TraceFile(model, None, TRACE.header)
    assert third.trace is not None and len(third.trace) == 2 * len(TRACE) and len(third.matrices) == 12
    assert len(np.unique(third.trace.rows["request"])) == 6
    count = np.bincount(TRACE.ids[TRACE.rows["layer"] == 0].ravel())
    assert ExpertId(0, int(count.argmax())) in third.hottest(8)


def test_joined_traces_number_on():
    both = joined(TRACE, TRACE)
    both.check()
    assert np.diff(both.rows["step"]).min() >= 0
    assert [turn.wanted for turn in Schedule(both).turns] == 2 * [turn.wanted for turn in SCHEDULE.turns]


def test_joined_traces_begin_at_0_and_never_overflow() -> None:
    last = {name: np.full_like(TRACE.rows[name], np.iinfo(np.int32).max) for name in ("step", "request")}
    both = joined(replace(TRACE, rows={**TRACE.rows, **last}), TRACE)
    both.check()
    for name in ("step", "request"):
        assert np.unique(both.rows[name]).tolist() == list(range(1 + len(np.unique(TRACE.rows[name]))))


def test_what_requests_were_about_is_kept_where_more_is_learnt(tmp_path: Path) -> None:
    told = replace(TRACE, header=replace(TRACE.header, tasks=("tea", "ore")))
    told.save(tmp_path / "m.trace")
    TraceFile(tmp_path / "m.gguf", None, TRACE.header).save(TRACE)
    both = Trace.load(tmp_path / "m.trace")
    n = len(np.unique(TRACE.rows["request"]))
    assert both.header.tasks == tuple(("tea", "ore", *2 * n * [""])[: 2 * n])
    assert joined(TRACE, TRACE).header.tasks == ()


def test_a_trace_of_other_experts_is_left_alone_or_refused(tmp_path: Path) -> None:
    path, header = tmp_path / "m.trace", TRACE.header
    dense = replace(header, expert_bytes=(0, *header.expert_bytes[1:]))
    for odd, mine in ((replace(header, n_expert=header.n_expert + 1), header), (header, dense)):
        replace(TRACE, header=odd).save(path)
        found = TraceFile(tmp_path / "m.gguf", None, mine)
        assert found.trace is None and "a trace of another model" in found.notices[0]
        with pytest.raises(TraceError, match="a trace of another model"):
            TraceFile(tmp_path / "m.gguf", path, mine)


def test_experts_have_the_sizes_of_the_file_that_is_run(tmp_path: Path) -> None:
    replace(TRACE, header=replace(TRACE.header, expert_bytes=(0,) * TRACE.header.n_layer)).save(tmp_path / "m.trace")
    found = TraceFile(tmp_path / "m.gguf", tmp_path / "m.trace", TRACE.header)
    assert found.trace is not None and found.trace.header.expert_bytes == TRACE.header.expert_bytes


def test_another_models_trace_is_left_alone(tmp_path: Path):
    TRACE.save(tmp_path / "m.trace")
    other = replace(TRACE.header, fingerprint="beef")
    found = TraceFile(tmp_path / "m.gguf", None, other)
    assert found.trace is None and "another model" in found.notices[0]
    found.save(TRACE)
    assert Trace.load(tmp_path / "m.trace").header.fingerprint == "f00d"
    with pytest.raises(TraceError, match="another model"):
        TraceFile(tmp_path / "m.gguf", tmp_path / "m.trace", other)
    (tmp_path / "m.trace").write_bytes(b"PK broken")
    assert "damaged" in TraceFile(tmp_path / "m.gguf", None, other).notices[0]


def test_a_given_trace_changes_nothing_about_the_one_that_is_found(tmp_path: Path) -> None:
    model, path, given = tmp_path / "m.gguf", tmp_path / "m.trace", tmp_path / "given.trace"
    TRACE.tail(9).save(given)
    TraceFile(model, given, TRACE.header).save(TRACE)
    assert len(Trace.load(path)) == len(TRACE)
    known = TraceFile(model, given, TRACE.header)
    assert known.trace is not None and len(known.trace) == len(TRACE.tail(9)) and not known.notices
    known.save(TRACE)
    grown = Trace.load(path)
    assert len(grown) == 2 * len(TRACE) and grown.matrices is not None and len(grown.matrices) == 12
    replace(TRACE, header=replace(TRACE.header, fingerprint="beef")).save(path)
    known = TraceFile(model, given, TRACE.header)
    known.save(TRACE)
    assert Trace.load(path).header.fingerprint == "beef" and "another model" in known.notices[0]


def test_a_trace_that_is_merely_damaged_is_replaced(tmp_path: Path) -> None:
    path, mine = tmp_path / "m.trace", TRACE.header
    TRACE.save(path)
    written = path.read_bytes()
    np.savez_compressed(tmp_path / "other.npz", weights=np.ones(3))

    def after(found: bytes, header: Header = mine) -> bytes:
        path.write_bytes(found)
        known = TraceFile(tmp_path / "m.gguf", None, header)
        assert known.trace is None and known.notices
        known.save(TRACE)
        return path.read_bytes()

    for cut in (0, 2, len(written) // 2):
        after(written[:cut])
        assert len(Trace.load(path)) == len(TRACE)
    strangers = (b"some text", (tmp_path / "other.npz").read_bytes())
    assert all(after(stranger) == stranger for stranger in strangers)
    assert after(written, replace(mine, fingerprint="beef")) == written


def test_what_cannot_be_written_is_a_warning(tmp_path: Path, caplog, monkeypatch):
    known = TraceFile(tmp_path / "m.gguf", None, TRACE.header)

    def full(self, path):
        raise OSError(28, "No space left on device")

    with caplog.at_level(logging.WARNING), monkeypatch.context() as patch:
        patch.setattr(Trace, "save", full)
        known.save(TRACE)
    assert "No space left on device" in caplog.text


def test_a_run_learns_and_the_next_begins_with_it(tmp_path: Path):
    model = write_model(tmp_path / "m.gguf")
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(context=64)) as llm:
        budget = llm.budget
        want = llm.logits([5, 6, 7])
    assert not (tmp_path / "m.trace").exists()  # everything fits: nothing to learn
    options = gmoe.RuntimeOptions(
        context=64, max_sequences=1, host_memory=str(budget.fixed + 6 * max(g.slot_bytes for g in budget.groups))
    )
    params = gmoe.SamplingParams(max_tokens=20, temperature=0)
    with gmoe.LLM.load(model, options) as llm:
        assert not llm.store.whole
        list(llm.run([5, 6, 7], params, ignore_end=True))
    assert Trace.load(tmp_path / "m.trace").matrices is not None
    with gmoe.LLM.load(model, options) as llm:
        assert llm.cache.chooser.verdicts
        assert (llm.logits([5, 6, 7]) == want).all()
    with gmoe.LLM.load(model, replace(options, working_set="pattern")) as llm:
        llm.logits([5, 6, 7])
        llm.read([5, 6, 7, 8], 3)
        assert len(llm.dispatch.working_set.patterns) == 1  # to policies a text that is measured is a request
        llm.embed([5, 6, 7])
        assert len(llm.dispatch.working_set.patterns) == 2
    with pytest.raises(ValueError, match="another model"):
        other = write_model(tmp_path / "other.gguf", seed=9)
        gmoe.LLM.load(other, gmoe.RuntimeOptions(context=64, trace=tmp_path / "m.trace"))
