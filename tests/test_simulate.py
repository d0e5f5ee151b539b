"""The simulator: hit rates that others measured, times that can be worked out by hand, and no torch."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from traces import SHARED, synthetic

from gmoe.cli.simulate import budgets, number, simulate
from gmoe.cli.trace import trace as trace_command
from gmoe.experts import policy
from gmoe.experts.expert_id import ExpertId, Tier
from gmoe.experts.machine import Machine
from gmoe.experts.policy import PolicyError, Prefetcher, names
from gmoe.experts.recorder import Recorder
from gmoe.experts.route_csv import from_route_csv
from gmoe.experts.schedule import Schedule
from gmoe.experts.simulate import Replay, equal_slots
from gmoe.experts.trace import Header

PUBLISHED = {  # decode hit rates of qwen.route.csv by the recorder's own replay, per cent
    "belady": {1000: 62.7, 2000: 79.4, 3000: 87.8, 4000: 92.7, 6000: 96.6},
    "lru": {1000: 37.7, 2000: 56.5, 3000: 70.6, 4000: 80.3, 6000: 92.1},
    "lfu": {1000: 40.2, 2000: 58.6, 3000: 71.3, 4000: 80.8, 6000: 92.0},
}


@pytest.fixture(scope="module")
def qwen():
    return Schedule(from_route_csv(SHARED / "qwen.route.csv"))


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/traces is not here")
@pytest.mark.parametrize("evict,budget", [(e, b) for e, rates in PUBLISHED.items() for b in rates])
def test_published_hit_rates(qwen, evict, budget):
    decode = Replay(qwen, budget << 20, evict).run().decode
    assert 100 * decode.hit_rate == pytest.approx(PUBLISHED[evict][budget], abs=0.5)
    assert decode.tokens == 128


def by_hand(*experts, n_layer=1, size=1000):
    """One decode step for each list of layers' experts."""
    recorder = Recorder(Header("m", "", n_layer, 8, (size,) * n_layer))
    for step in experts:
        recorder.begin_step(np.zeros(1), np.ones(1), np.zeros(1))
        for layer, expert in enumerate(step):
            recorder.record(layer, np.array([[expert]]), np.ones((1, 1)))
    return recorder.trace()


def test_time_by_hand():
    """A miss: 1 s to read, 0.1 to compute, 0.5 for the layer; a hit reads nothing."""
    machine = Machine(bandwidth=1000, expert_seconds=0.1, layer_seconds=0.5)
    decode = Replay(Schedule(by_hand([0], [0], [1], [0])), 1000, machine=machine).run().decode
    assert (decode.asked, decode.hits, decode.bytes, decode.tokens) == (4, 1, 3000, 4)
    assert decode.seconds == pytest.approx(3 * 1.6 + 0.6)


def test_prefetch_hides_reads_where_the_disk_is_idle():
    trace = by_hand(*[[n % 4, n % 4] for n in range(80)], n_layer=2)
    slow, fast = (Machine(bandwidth, expert_seconds=0.1, layer_seconds=0.5) for bandwidth in (100, 10_000))
    for machine, late, hidden in ((slow, True, 0.6), (fast, False, 0.1)):  # seconds of each read that are hidden
        plain = Replay(Schedule(trace), 2000, machine=machine).run()
        ahead = Replay(Schedule(trace), 2000, prefetch="transition", machine=machine).run()
        assert ahead.decode.hits > plain.decode.hits
        assert ahead.decode.late == (ahead.decode.hits if late else 0)
        assert plain.decode.seconds - ahead.decode.seconds == pytest.approx(ahead.decode.hits * hidden)


def test_a_tier_between():
    """What the host holds comes over the link only; what it lacks comes from the disk as well."""
    schedule = Schedule(by_hand(*[[n % 4] for n in range(40)]))
    plain = Replay(schedule, 1000, machine=Machine(bandwidth=1000, link=10_000)).run().decode
    between = Replay(schedule, 1000, machine=Machine(bandwidth=1000, link=10_000, host=4000)).run().decode
    assert plain.hits == between.hits == 0
    assert plain.seconds - between.seconds == pytest.approx(36 * 0.9)


def test_grouped_pools_have_equal_slots():
    recorder = Recorder(Header("m", "", 2, 4, (1000, 3000)))
    for n in range(8):
        recorder.begin_step(np.zeros(1), np.ones(1), np.zeros(1))
        for layer in range(2):
            recorder.record(layer, np.array([[n % 4]]), np.ones((1, 1)))
    schedule = Schedule(recorder.trace())
    replay = Replay(schedule, 8000, groups=equal_slots(schedule, 8000))
    assert [pool.capacity for pool in replay.pools] == [2, 2]
    assert replay.run().decode.hits == 0
    replay, asked = Replay(schedule, schedule.bytes, working_set="task", groups=equal_slots(schedule, 8000)), set()
    replay.working_set.plan = lambda slots: asked.add(slots) or ()
    replay.run()
    assert asked == {2}  # half of the slots that there are


def test_recorded_scores_reach_the_policies_that_ask():
    trace = synthetic(steps=20)
    flat = replace(trace, scores=np.full((len(trace), trace.header.n_expert), 1 / 16, np.float16))
    for evict, heard in (("lru", False), ("score_window", True), ("probability", True)):
        bare, scored = (Replay(Schedule(of), 20_000, evict).run() for of in (trace, flat))
        assert (bare != scored) == heard
    plain, scored = (Replay(Schedule(of), 20_000, "lru", "expert_map").run() for of in (trace, flat))
    assert plain.decode.bytes != scored.decode.bytes


def test_what_is_foretold_stays_until_its_layer_has_come():
    """Three fit; when layer 0 runs the 0 of layer 3 is here and will be the oldest, when layer 2 wants a place."""
    trace = by_hand(*[[0, n % 8, 7 - n % 8, 0] for n in range(40)], n_layer=4)
    replay = Replay(Schedule(trace), 3000, prefetch="transition")
    told = {0: [ExpertId(3, 0)]}
    replay.prefetcher.predict = lambda layer, *rest: told.get(layer, [])
    assert Replay(Schedule(trace), 3000).run().decode.hits == 0
    report = replay.run()
    assert (report.decode.hits, report.decode.bytes) == (40, 1000 * (4 * 40 - 39))  # at first it is read ahead


def test_what_is_kept_stays_where_more_is_foretold_than_there_is_room_for():
    replay = Replay(Schedule(by_hand([0, 0], n_layer=2)), 3000, prefetch="transition", working_set="task")
    everyone = [ExpertId(1, expert) for expert in (5, 6, 7)]
    for id in everyone:
        replay.place(id, frozenset())
    replay.kept, replay.foretold = frozenset(everyone[:1]), {1: frozenset(everyone[1:])}
    replay.place(ExpertId(0, 0), frozenset())
    assert [id in replay.pools[1] for id in everyone] == [True, False, True]


def test_requests_are_about_what_the_trace_says():
    trace = synthetic(steps=5)
    replay = Replay(Schedule(replace(trace, header=replace(trace.header, tasks=("tea", "", "ore")))), 9000)
    heard = []
    replay.working_set.begin = heard.append
    replay.run()
    assert heard == ["tea", "", "ore"]
    plain, told = (
        Replay(Schedule(replace(trace, header=replace(trace.header, tasks=tasks))), 9000, working_set="task").run()
        for tasks in ((), ("tea", "ore", "tea"))
    )
    assert plain.decode != told.decode


def test_a_replay_offers_what_a_run_does(monkeypatch):
    class Mine(Prefetcher):
        """The same number in the next layer, unless it is here."""

        def __init__(self, shape, residency, matrices):
            self.shape, self.residency, self.asked = shape, residency, []

        def predict(self, layer, hidden, ids, weights, probabilities):
            there = ExpertId((layer + 1) % self.shape[0], int(ids[0, 0]))
            here = self.residency
            self.asked.append((here.resident(there), here.arriving(there)))
            assert here.here(there.layer)[there.expert] == here.resident(there) == (here.tier(there) == Tier.HOST)
            return () if here.resident(there) or here.arriving(there) else [there]

    known = policy._policy
    monkeypatch.setattr(policy, "_policy", lambda kind, name: Mine if kind == "prefetch" else known(kind, name))
    replay = Replay(Schedule(by_hand(*[[1, 1, 1]] * 3, n_layer=3)), 3000, prefetch="mine", machine=Machine(1e9))
    report = replay.run()
    assert replay.prefetcher.asked == [(False, False)] * 2 + [(True, False)] * 7
    assert report.decode.bytes == 3000 and report.decode.hits == 8


def test_wasted_bytes():
    trace = by_hand(*[[0, n % 8] for n in range(80)], n_layer=2)  # what follows expert 0 cannot be foretold
    report = Replay(Schedule(trace), 3000, prefetch="transition", machine=Machine(1e6)).run()
    prefetched = report.decode.bytes - 1000 * (report.decode.asked - report.decode.hits)
    assert 10_000 < report.wasted <= prefetched


@pytest.mark.parametrize("working_set", names("working_set"))
@pytest.mark.parametrize("prefetch", sorted({*names("prefetch")} - {"next_gate"}))
def test_every_policy_replays_alike_twice(prefetch, working_set):
    trace = synthetic(steps=20)
    first, again = (Replay(Schedule(trace), 20_000, "lru", prefetch, working_set).run() for _ in range(2))
    assert first == again
    assert first.decode.asked == 3 * 19 * 4 * 2
    assert first.decode.bytes + first.prefill.bytes >= 1000 * (first.decode.asked - first.decode.hits)


def test_everything_fits():
    report = Replay(Schedule(synthetic()), 64_000).run()
    assert report.decode.bytes + report.prefill.bytes <= 64_000


def test_budget_below_a_layer_and_below_an_expert():
    trace = synthetic(steps=5)
    decode = Replay(Schedule(trace), 1000).run().decode
    assert decode.bytes == 1000 * decode.asked
    with pytest.raises(ValueError, match="smaller than one expert, 1000 bytes"):
        Replay(Schedule(trace), 999).run()


def test_next_gate_needs_the_model():
    with pytest.raises(PolicyError, match="next_gate: needs routers"):
        Replay(Schedule(synthetic(steps=5)), 9000, prefetch="next_gate")


def test_command(tmp_path):
    path = tmp_path / "t.npz"
    synthetic(steps=20).save(path)
    table = CliRunner().invoke(simulate, [str(path), "--budget", "25%,50KB", "--prefetch", "none,transition", "--csv"])
    assert table.exit_code == 0, table.output
    assert len(table.output.splitlines()) == 1 + 2 * 2 * 5
    exported = path.with_suffix(".csv")
    assert CliRunner().invoke(trace_command, ["export", str(path), "-o", str(exported)]).exit_code == 0
    flags = ["--budget", "25%,50KB", "--prefetch", "none,transition", "--csv"]
    assert CliRunner().invoke(simulate, [str(exported), *flags]).output == table.output
    drawn = CliRunner().invoke(simulate, [str(path), "--budget", "25%,50KB", "--plot", str(tmp_path / "curves.png")])
    assert drawn.exit_code == 0 and (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    wrong = CliRunner().invoke(simulate, [str(path), "--evict", "lru,nope"])
    assert wrong.exit_code == 2 and "no policy is called 'nope'" in wrong.output
    endless = CliRunner().invoke(simulate, [str(path), "--budget", "10%..99999999%"])
    assert endless.exit_code == 2 and "a range ends at 100%" in endless.output
    for given in (["--budget", "90%..10%"], ["--expert-us", "nan"], ["--layer-us", "-1"], ["--expert-us", "inf"]):
        assert CliRunner().invoke(simulate, [str(path), *given]).exit_code == 2
    knob = CliRunner().invoke(simulate, [str(path), "--evict", "hobbit:lru=1.0:fld=0.0", "--budget", "25%"])
    assert knob.exit_code == 0 and "hobbit" in knob.output
    knobs = CliRunner().invoke(simulate, [str(path), "--evict", "random:seed=3,activation:scope=request"])
    assert knobs.exit_code == 0
    for given, said in (
        (["--evict", "random:foo=1"], "evict.random: no knob is called 'foo'; there are seed"),
        (["--evict", "static:seed=1"], "evict.static: no knob is called 'seed'; there are none"),
        (["--evict", "random:seed=-1"], "the knob seed is -1"),
        (["--evict", "hobbit:heavy=a"], "the knob heavy is 'a'"),
        (["--evict", "lru:"], "a knob is key=value"),
        (["--budget", "."], "'.' is no size"),
        (["--link", "1GB/s", "--host", "1"], "the host memory is smaller than one expert, 1000 bytes"),
    ):
        wrong = CliRunner().invoke(simulate, [str(path), "--budget", "25%", *given])
        assert wrong.exit_code and said in wrong.output + str(wrong.exception), wrong.output
    nothing = tmp_path / "nothing.npz"
    Recorder(Header("m", "", 0, 0, ())).trace().save(nothing)
    drawn = CliRunner().invoke(simulate, [str(nothing), "--budget", "10", "--plot", str(tmp_path / "curves.png")])
    assert drawn.exit_code == 0, drawn.exception
    shown = CliRunner().invoke(trace_command, ["show", str(nothing), "--plot", str(tmp_path / "p.png")])
    assert shown.exit_code == 1 and "the trace is empty" in shown.output
    assert budgets("25%,10%..30%", Schedule(synthetic(steps=5))) == [16_000, 6400, 12_800, 19_200]
    assert number("0.8GB/s") == 8e8 and number("2GiB") == 2**31


def test_no_torch():
    code = "import sys, gmoe.cli.simulate, gmoe.cli.trace, gmoe.experts.pool, gmoe.experts.chooser, gmoe.experts.cost\n"
    code += "from gmoe.experts.policy import load, names\n"
    code += "for kind in ('evict', 'prefetch', 'working_set'):\n"
    code += "    for n in names(kind): __import__(f'gmoe.experts.{kind}.{n}')\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
