"""Miss policies: their decisions by hand, the contract of every file, exact at the neutral knob, and counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gmoe
from gmoe.experts import policy
from gmoe.experts.expert_id import MERGED, Action, ExpertId, Miss, Tier
from gmoe.experts.fallbacks import buddies, frequencies
from gmoe.experts.misses import describe, resolve
from gmoe.experts.policy import PolicyError
from gmoe.experts.split import PARTS, UNKNOWN, best_part
from gmoe.experts.trace import Header, Trace
from gmoe.passes.twin import twin
from tests.factory import Shape, write_model

IDS = [[3, 40, 7, 9, 22, 61, 5, 30, 100, 4, 50, 8], [7], [250, 9, 30], [7, 8]]
NEUTRAL: dict[str, dict[str, Any]] = {
    "hobbit": {"t1": 1.0}, "skip": {"drop": 0}, "buddy": {"tau": 1.0}, "twin": {"share": 0}, "merged": {"share": 0},
    "random_skip": {"part": 0}, "random_substitute": {"part": 0}, "load": {},
}  # fmt: skip
BOLD: dict[str, dict[str, Any]] = {
    "hobbit": {"t1": 0.3, "t2": 0.7}, "skip": {"drop": 1.0}, "buddy": {"tau": 0.1, "beta": 1.0}, "twin": {"share": 1},
    "merged": {"share": 1}, "random_skip": {"part": 1}, "random_substitute": {"part": 1},
}  # fmt: skip


class Here:
    """Four experts a layer of which 0 and 1 are resident; all have twins unless told otherwise."""

    def __init__(self, resident: tuple[int, ...] = (0, 1), twins: bool = True, n: int = 6):
        self.mask = np.isin(np.arange(n), resident)
        self.twins = twins

    def tier(self, id: ExpertId) -> Tier:
        return Tier.HOST if self.mask[id.expert] else Tier.DISK

    def resident(self, id: ExpertId) -> bool:
        return bool(self.mask[id.expert])

    def has_twin(self, id: ExpertId) -> bool:
        return self.twins

    def arriving(self, id: ExpertId) -> bool:
        return False

    def here(self, layer: int) -> np.ndarray:
        return self.mask


class Costs:
    """A load takes 3, the CPU 2 a token."""

    def load(self, tier: Tier) -> float:
        return 3.0

    def cpu(self, tokens: int) -> float:
        return 2.0 * tokens


GIVEN: dict[str, Any] = {
    "costs": Costs(), "buddies": {ExpertId(0, 4): [5, 3, 1, 0], ExpertId(0, 5): [1, 0]}, "merged": {0},
}  # fmt: skip


def miss(expert: int = 4, **said: Any) -> Miss:
    return Miss(ExpertId(0, expert), 0.2, 1, said.pop("tier", Tier.DISK), False, **said)


def named(name: str, **knobs: Any) -> policy.MissPolicy:
    made: policy.MissPolicy = policy.load("miss", name, knobs, **GIVEN)
    return made


@pytest.mark.parametrize("name", policy.names("miss"))
def test_every_answer_is_one_of_five_and_a_substitute_is_resident(name: str) -> None:
    made, rng = named(name), np.random.default_rng(0)
    for _ in range(200):
        here = Here(tuple(np.flatnonzero(rng.random(6) < 0.5)), bool(rng.random() < 0.5))
        wanted = frozenset(rng.permutation(6)[:3].tolist())
        shares = {"share": rng.random(), "above": rng.random(), "entropy": rng.random(), "missing": rng.random()}
        action = made.resolve(miss(4, tier=Tier(rng.integers(2)), k=3, wanted=wanted, **shares), here)
        assert action.how in ("load", "cpu", "twin", "skip", "substitute")
        if action.how == "substitute":
            assert action.expert == MERGED or (here.mask[action.expert] and action.expert not in wanted)
        if action.how == "twin":
            assert here.twins


@pytest.mark.parametrize("name", NEUTRAL)
def test_the_neutral_knob_only_loads(name: str) -> None:
    made, rng = named(name, **NEUTRAL[name]), np.random.default_rng(1)
    for _ in range(100):
        shares = {"share": rng.random(), "above": 1.0, "entropy": rng.random(), "missing": 0.0}
        assert made.resolve(miss(k=3, **shares), Here()) == Action("load")


def test_hobbit_counts_the_weight_ranked_before() -> None:
    made = named("hobbit", t1=0.6, t2=0.9)
    how = [made.resolve(miss(above=above), Here()).how for above in (0.0, 0.6, 0.61, 0.9, 0.91)]
    assert how == ["load", "load", "twin", "twin", "skip"]
    assert made.resolve(miss(above=0.7), Here(twins=False)).how == "load"
    assert named("hobbit", t1=0.6, t2=1.0).resolve(miss(above=1.0), Here()).how == "twin"


def test_skip_is_below_a_part_of_the_uniform_share() -> None:
    made = named("skip", drop=0.75)
    assert [made.resolve(miss(share=share, k=8), Here()).how for share in (0.09, 0.0938, 0.125)] == [
        "skip",
        "load",
        "load",
    ]


def test_buddy_has_two_gates_a_limit_and_takes_nobody_twice() -> None:
    made = named("buddy", tau=0.5, beta=0.6, most=1)
    open_ = {"entropy": 0.9, "missing": 0.3}
    assert made.resolve(miss(4, **open_), Here()) == Action("substitute", 1)  # 5 and 3 are not here
    assert made.resolve(miss(5, **open_), Here()).how == "load"  # one a layer
    made.meet([])
    assert made.resolve(miss(4, entropy=0.5, missing=0.3), Here()).how == "load"  # sure of its choice
    assert made.resolve(miss(4, entropy=0.9, missing=0.6), Here()).how == "load"  # too many are missing
    assert made.resolve(miss(4, wanted=frozenset({1}), **open_), Here()) == Action("substitute", 0)
    made = named("buddy", tau=0.5, beta=0.6, most=3)
    assert made.resolve(miss(4, **open_), Here()) == Action("substitute", 1)
    assert made.resolve(miss(5, **open_), Here()) == Action("substitute", 0)
    assert named("buddy").tau == 0.95


def test_balance_loads_what_weighs_most_and_computes_what_weighs_least() -> None:
    made = named("balance")

    def shared(*weights: float, tier: Tier = Tier.HOST, tokens: int = 1) -> list[str]:
        misses = [Miss(ExpertId(0, n), weight, tokens, tier, False) for n, weight in enumerate(weights)]
        made.meet(misses)
        return [made.resolve(miss, Here()).how for miss in misses]

    for _ in range(2):  # each layer and pass begins with empty queues, the same layer's next pass too
        # the CPU ends at 2, a load at 3, the CPU at 4, a load at 6, the CPU at 6
        assert shared(0.3, 0.1, 0.5, 0.2, 0.4) == ["cpu", "cpu", "load", "cpu", "load"]
    assert shared(0.5, 0.1, tokens=4) == ["load", "load"]  # 8 a miss on the CPU
    assert shared(0.5, 0.1, tier=Tier.DISK) == ["load", "load"]
    assert named("cpu").resolve(miss(tier=Tier.DISK), Here()).how == "load"


def test_merged_serves_the_light_ones() -> None:
    made = named("merged", share=0.2)
    assert made.resolve(miss(share=0.2), Here()) == Action("substitute", MERGED)
    assert made.resolve(miss(share=0.21), Here()).how == "load"


def test_a_miss_is_described_by_its_most_demanding_token() -> None:
    ids = np.array([[0, 4, 5], [4, 1, 0]], np.int32)
    weights = np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]], np.float32)
    four, five = describe([ExpertId(0, 4), ExpertId(0, 5)], ids, weights, Here())
    assert (four.tokens, four.k, four.wanted, four.missing) == (2, 3, frozenset({0, 1, 4, 5}), 0.5)
    np.testing.assert_allclose((four.share, four.above, five.share, five.above), (0.6, 0.0, 0.2, 0.8), rtol=1e-6)
    assert four.entropy < five.entropy < 1


def test_what_is_skipped_has_no_weight_and_the_others_get_what_the_router_gives() -> None:
    ids = np.array([[0, 4, 5], [0, 1, 4]], np.int32)
    weights = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]], np.float32)

    class Some(policy.MissPolicy):
        def resolve(self, miss: Miss, residency: Any) -> Action:
            return Action("skip") if miss.id.expert == 5 else Action("substitute", 1)

    def weigh(ids: np.ndarray) -> np.ndarray:  # of an architecture that renormalises
        kept = np.where(ids >= 0, weights, 0)
        return kept / kept.sum(-1, keepdims=True)

    scores = policy.Scores(weights, weights, weigh)
    served = resolve(Some(), [ExpertId(0, 4), ExpertId(0, 5)], ids, weights, Here(), lambda: scores)
    assert served.ids.tolist() == [[0, 1, -1], [0, 1, 1]]
    assert served.places.tolist() == [[0, 1, -1], [0, 1, 1]]
    np.testing.assert_allclose(served.weights, [[0.625, 0.375, 0], [0.5, 0.3, 0.2]], rtol=1e-6)
    assert [how for how, _ in served.tally] == ["substitute", "skip"]
    unsaid = resolve(Some(), [ExpertId(0, 5)], ids, weights, Here(), None)
    np.testing.assert_allclose(unsaid.weights[0], [0.5, 0.3, 0.0])


def test_knobs_out_of_range_are_refused() -> None:
    for name, knobs, text in [
        ("hobbit", {"t1": 1.5}, "the knob t1 is 1.5; it must be a number from 0 to 1"),
        ("hobbit", {"t1": 0.9, "t2": 0.6}, "t1 must not be above t2"),
        ("skip", {"drop": -1}, "the knob drop is -1; it must be a number from 0 to 1024"),
        ("buddy", {"beta": "x"}, "the knob beta is 'x'"),
        ("twin", {"twin_share": 1}, "from 0 to 0.99"),
        ("twin", {"behind": 2}, "the knob behind is 2"),
        ("hobbit", {"t3": 1}, "no knob is called 't3'; there are t1, t2, twin_share"),
    ]:
        with pytest.raises(PolicyError, match=text):
            named(name, **knobs)


def test_buddies_and_frequencies_of_a_trace() -> None:
    ids = np.array([[0, 1], [0, 1], [0, 2], [3, 2]], np.int16)
    columns = {name: np.zeros(4, kind) for name, kind in (("layer", np.int16), ("step", np.int32))}
    trace = Trace(Header("m", "f", 1, 4, (1,)), columns, ids, np.full((4, 2), 0.5, np.float32))
    assert buddies(trace)[ExpertId(0, 0)] == [1, 2]
    assert buddies(trace)[ExpertId(0, 3)] == [2]
    np.testing.assert_allclose(frequencies(trace), [[3 / 8, 2 / 8, 2 / 8, 1 / 8]])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("miss")
    path = write_model(folder / "tiny.gguf", quant="F16", shape=Shape(ff_exp=64, expert=16, used=4))
    twin(path, folder / "twin.gguf", "Q4_0")
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=64)) as llm:
        recorder = llm.record()
        for ids in IDS:
            llm.logits(ids)
        recorder.trace().save(folder / "tiny.trace")
    return path


def run(path: Path, **options: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=64, max_sequences=1, **options)) as llm:
        return [llm.logits(ids) for ids in IDS], llm.stats


def small(path: Path) -> str:
    """Memory for somewhat more than half of the experts."""
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=64)) as llm:
        return str(llm.budget.fixed + int(0.6 * llm.budget.experts))


@pytest.mark.parametrize("name", [name for name in NEUTRAL if name != "load"])
def test_neutral_is_bit_equal_and_a_choice_is_counted(model: Path, name: str) -> None:
    memory = small(model)
    given = {"twin": model.with_name("twin.gguf")} if name in ("hobbit", "twin") else {}
    want, _ = run(model)
    got, stats = run(model, host_memory=memory, miss=name, policy=NEUTRAL[name], **given)
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    assert stats["actions"]["load"]["count"] == stats["host"]["misses"] + stats["host"]["late"] > 0
    got, stats = run(model, host_memory=memory, miss=name, policy=BOLD[name], **given)
    done = {how for how, n in stats["actions"].items() if n["count"] and n["mass"] > 0}
    wanted = {"hobbit": {"load", "twin", "skip"}, "skip": {"skip", "load"}, "twin": {"twin"}, "merged": {"substitute"}}
    wanted |= {"random_skip": {"skip"}, "buddy": {"substitute"}}
    assert done >= wanted.get(name, {"substitute"})
    assert not all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    assert all(np.isfinite(a).all() for a in got)
    if given:
        assert stats["twin"]["misses"] > 0 and stats["twin"]["bytes_loaded"] > 0


def test_a_twin_is_nearer_than_nothing(model: Path) -> None:
    memory, want = small(model), run(model)[0][0]
    errors = []
    for options in (
        {"miss": "twin", "twin": model.with_name("twin.gguf")},
        {"miss": "skip", "policy": {"drop": 1024}},
    ):
        got = run(model, host_memory=memory, **options)[0][0]
        errors.append(float(np.sqrt(np.mean((got - want) ** 2)) / want.std()))
    assert 0 < errors[0] < errors[1]


def test_a_twin_may_bring_its_expert_behind(model: Path) -> None:
    given = {"host_memory": small(model), "miss": "twin", "twin": model.with_name("twin.gguf"), "prefetch": "none"}
    loaded = [run(model, **given, policy={"behind": n})[1]["host"]["bytes_loaded"] for n in (0, 1)]
    assert loaded[0] < loaded[1]


def test_the_twins_part_is_the_one_with_the_least_reading(model: Path) -> None:
    rng, passes, size = np.random.default_rng(0), 80, 1000
    ids = np.stack([rng.permutation(32)[:4] for _ in range(2 * passes)]).astype(np.int16)
    columns = {"layer": np.tile([0, 1], passes).astype(np.int16), "step": np.repeat(np.arange(passes), 2)}
    columns |= {name: np.ones(2 * passes, np.int32) for name in ("request", "phase", "position")}
    weights = np.tile(np.array([0.4, 0.3, 0.2, 0.1], np.float32), (2 * passes, 1))
    trace = Trace(Header("m", "f", 2, 32, (size, size)), columns, ids, weights)
    both, low = named("hobbit", t1=0.5, t2=1.0), [250, 250]

    def part(made: policy.MissPolicy, room: int = 24_000, **prices: float) -> float:
        return best_part(trace, made, room, low, lambda n: prices.get("full" if n == size else "low", 0.0))

    assert part(both, full=1.0) == PARTS[0]  # twins come for nothing
    assert part(both, low=1.0) > PARTS[2]  # the experts do
    assert PARTS[0] < part(both, full=1000.0, low=250.0) < PARTS[-1]
    assert part(named("hobbit", t1=1.0), full=1.0, low=1.0) == PARTS[0]  # never a twin
    assert part(both, room=2 * size, full=1.0) == UNKNOWN  # no room for a layer's four
    assert best_part(None, both, 24_000, low, float) == UNKNOWN
    for room, least in ((1000, (600, 390)), (1000, (850, 10)), (999_999, (500_001, 499_000)), (7, (3, 3))):
        part = best_part(None, both, room, low, float, least)  # both pools have their least where that can be
        assert int(room * part) >= least[1] and int(room * (1 - part)) >= least[0], (room, part)
    assert best_part(None, both, 1000, low, float, (600, 600)) == UNKNOWN  # neither way


def test_the_memory_that_is_named_is_enough_beside_a_twin(model: Path) -> None:
    given: dict[str, Any] = {"miss": "twin", "twin": model.with_name("twin.gguf")}
    for knobs in ({}, {"twin_share": 0.1}, {"twin_share": 0.3}, {"twin_share": 0.7}):
        memory, refused = "1", 0
        while refused < 3:  # the first knows nothing of the twin
            try:
                run(model, host_memory=memory, policy=knobs, **given)
                break
            except ValueError as error:
                memory, refused = str(error).split("needs at least ")[1].split(" of memory")[0], refused + 1
        assert refused == 2


def test_refusals(model: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.gguf", seed=3, quant="F16", shape=Shape(ff_exp=64, expert=16, used=4))
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (model, {"miss": "hobbit"}, "miss='hobbit' needs a low-precision twin of the model: --twin FILE"),
        (other, {"miss": "twin", "twin": model.with_name("twin.gguf")}, "the twin was made of tiny.gguf, not of"),
        (model, {"miss": "twin", "twin": model}, "the file is no twin"),
        (other, {"miss": "buddy"}, "miss='buddy' needs a routing trace of"),
        (other, {"miss": "buddy", "trace": model.with_name("tiny.trace")}, "a trace of another model"),
        (model, {"route": "adaptive_k"}, "the model was never calibrated"),
        (model, {"miss": "skip", "policy": {"t1": 0.5}}, "no knob is called 't1'; the chosen policies have drop"),
        (model, {"miss": "cpu"}, "miss='cpu' needs a device beside the CPU: device='cuda'"),
    ]
    for path, options, text in cases:
        with pytest.raises(ValueError) as error:
            run(path, **options)
        assert text in str(error.value) and "\n" not in str(error.value)
