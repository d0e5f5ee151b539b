"""What a policy of one's own must keep to: where it does not, this is said, and nothing else is computed instead."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gmoe
from gmoe.experts import policy
from gmoe.experts.evict import lru
from gmoe.experts.expert_id import Action, ExpertId
from gmoe.experts.policy import PolicyError
from gmoe.experts.pool import SlotPool
from gmoe.experts.schedule import Schedule
from gmoe.experts.simulate import Replay
from tests.factory import Shape, write_model
from tests.test_miss import small
from tests.traces import synthetic

SCHEDULE = Schedule(synthetic())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("policy") / "tiny.gguf", quant="F16", shape=Shape(ff_exp=64, expert=16))


@pytest.fixture
def llm(model: Path) -> Any:
    model.with_suffix(".trace").unlink(missing_ok=True)
    plain = {"evict": "lru", "prefetch": "none", "working_set": "none"}
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(context=64, host_memory=small(model), **plain)) as loaded:
        yield loaded


def logits(llm: gmoe.LLM) -> np.ndarray:
    return llm.logits(list(range(3, 40)))


def predicts(predict: Callable[..., Any]) -> policy.Prefetcher:
    return type("Policy", (policy.Prefetcher,), {"predict": lambda self, *given: predict(*given)})()


class Pinned(lru.Policy):
    """Gives up the newest, pinned or not."""

    def victim(self, pinned: Any) -> ExpertId:
        return next(reversed(self.order))


class Absent(lru.Policy):
    """Gives up somebody who is not here."""

    def victim(self, pinned: Any) -> ExpertId:
        return ExpertId(0, 77)


@pytest.mark.parametrize(("evict", "why"), [(Pinned, "pinned"), (Absent, "not resident")])
def test_a_victim_that_may_not_leave_is_refused_and_nothing_has_changed(evict: Any, why: str) -> None:
    pool = SlotPool(2, evict())
    a, b = ExpertId(0, 0), ExpertId(0, 1)
    pool.place(a)
    pool.place(b)
    with pytest.raises(PolicyError, match=f"the victim is ExpertId.*, which is {why}"):
        pool.place(ExpertId(0, 2), {b})
    assert set(pool) == {a, b}


def test_neither_a_run_nor_a_replay_goes_on_over_a_pinned_victim(llm: gmoe.LLM, monkeypatch: Any) -> None:
    monkeypatch.setattr(lru.Policy, "victim", Pinned.victim)
    with pytest.raises(PolicyError, match="which is pinned"):
        logits(llm)
    with pytest.raises(PolicyError, match="which is pinned"):
        Replay(SCHEDULE, 9000).run()


@pytest.mark.parametrize("changes", [lambda layer, hidden, ids, weights, told: ids.fill(0),
                                     lambda layer, hidden, ids, weights, told: weights.fill(0),
                                     lambda layer, hidden, ids, weights, told: np.asarray(hidden).fill(0)])  # fmt: skip
def test_what_a_prefetcher_is_given_is_for_reading(llm: gmoe.LLM, changes: Callable[..., Any]) -> None:
    llm.dispatch.prefetch = predicts(changes)
    with pytest.raises(ValueError, match="read-only"):
        logits(llm)


def test_what_a_replay_gives_is_for_reading_and_serves_the_next_one() -> None:
    replay = Replay(SCHEDULE, 9000, prefetch="transition")
    replay.prefetcher = predicts(lambda layer, hidden, ids, weights, told: ids.fill(0))
    with pytest.raises(ValueError, match="read-only"):
        replay.run()


def test_a_copy_of_the_hidden_state_is_its_own(llm: gmoe.LLM) -> None:
    want = logits(llm)

    def scale(layer: int, hidden: Any, ids: Any, weights: Any, told: Any) -> list[ExpertId]:
        own = np.array(hidden)
        own *= 0
        assert np.asarray(hidden).any()
        return []

    llm.dispatch.prefetch = predicts(scale)
    assert np.array_equal(logits(llm), want)


def test_predictions_behind_the_last_layer_are_passed_over_and_no_expert_s_number_is_refused(
    llm: gmoe.LLM, monkeypatch: Any
) -> None:
    want = logits(llm)
    llm.dispatch.prefetch = predicts(lambda layer, *rest: [ExpertId(layer + 1, 1), ExpertId(layer + 50, 0)])
    assert np.array_equal(logits(llm), want)
    llm.dispatch.prefetch = predicts(lambda layer, *rest: [ExpertId(layer, 99)])
    with pytest.raises(PolicyError, match=r"expert=99\) is foretold, and a layer has 16 experts"):
        logits(llm)
    replay = Replay(SCHEDULE, 9000, prefetch="transition")
    replay.prefetcher = predicts(lambda layer, *rest: [ExpertId(layer + 50, 0), ExpertId(-1, 0)])
    assert replay.run().decode.bytes == Replay(SCHEDULE, 9000).run().decode.bytes
    replay = Replay(SCHEDULE, 9000, working_set="quota")
    monkeypatch.setattr(replay.working_set, "plan", lambda slots: [ExpertId(0, -1)])
    with pytest.raises(PolicyError, match=r"expert=-1\) is foretold"):
        replay.run()


@pytest.mark.parametrize("action", [Action("twin"), Action("cpu"), Action("substitute"), Action("substitute", 99),
                                    Action("leap")])  # type: ignore[arg-type] # fmt: skip
def test_an_answer_to_a_miss_that_cannot_be_done_is_refused(llm: gmoe.LLM, action: Action) -> None:
    llm.dispatch.miss = type("Policy", (policy.MissPolicy,), {"resolve": lambda self, miss, residency: action})()
    with pytest.raises(PolicyError, match="is no answer to the absence of ExpertId"):
        logits(llm)


def test_a_substitute_that_is_not_here_is_refused(llm: gmoe.LLM) -> None:
    def resolve(self: Any, miss: Any, residency: Any) -> Action:
        return Action("substitute", int(np.flatnonzero(~residency.here(miss.id.layer))[0]))

    llm.dispatch.miss = type("Policy", (policy.MissPolicy,), {"resolve": resolve})()
    with pytest.raises(PolicyError, match="a substitute is resident"):
        logits(llm)


def route_by(route: Callable[..., Any]) -> policy.RoutePolicy:
    return type("Policy", (policy.RoutePolicy,), {"route": lambda self, *given: route(*given)})()


def test_a_route_is_of_the_same_shape_and_of_experts_that_there_are(llm: gmoe.LLM) -> None:
    want = logits(llm)
    llm.dispatch.route = route_by(
        lambda layer, ids, weights, *rest: (ids.astype("i8"), np.asfortranarray(weights, "f8"))
    )
    assert np.array_equal(logits(llm), want)  # other types of the same numbers are taken
    for route in (lambda layer, ids, weights, *rest: (ids[:, :1], weights[:, :1]),
                  lambda layer, ids, weights, *rest: (ids + 16, weights),
                  lambda layer, ids, weights, *rest: (ids - 20, weights)):  # fmt: skip
        llm.dispatch.route = route_by(route)
        with pytest.raises(PolicyError, match="asked for .* 16 experts"):
            logits(llm)
    llm.dispatch.route = route_by(lambda layer, ids, weights, *rest: (ids, weights.__imul__(0)))
    with pytest.raises(ValueError, match="read-only"):
        logits(llm)


def test_a_file_that_is_no_policy_is_told_by_name(tmp_path: Path, monkeypatch: Any) -> None:
    from gmoe.experts import evict

    monkeypatch.setattr(evict, "__path__", [*evict.__path__, str(tmp_path)])
    monkeypatch.setattr(policy, "names", lambda kind: ["empty_one", "half_one"])
    (tmp_path / "empty_one.py").write_text("")
    base = "from gmoe.experts.policy import ScoredEviction\n\n\nclass Policy(ScoredEviction):\n    pass\n"
    (tmp_path / "half_one.py").write_text(base)
    with pytest.raises(PolicyError, match=r"empty_one\.py: there is no class Policy"):
        policy.load("evict", "empty_one")
    with pytest.raises(PolicyError, match=r"half_one\.py: Policy lacks score"):
        policy.share_out({"evict": "half_one"}, {})


def test_a_policy_may_come_later(tmp_path: Path, monkeypatch: Any) -> None:
    from gmoe.experts import evict

    with pytest.raises(PolicyError, match="no policy is called 'late_one'"):
        policy.load("evict", "late_one")
    (tmp_path / "late_one.py").write_text("from gmoe.experts.evict.lfu import Policy as Policy\n")
    monkeypatch.setattr(evict, "__path__", [*evict.__path__, str(tmp_path)])
    monkeypatch.setattr(policy, "names", lambda kind: ["late_one"])
    assert policy.knobs_of("evict", "late_one") == policy.knobs_of("evict", "late_one") == ["aging"]


@pytest.mark.parametrize(("kind", "name", "knob", "value"), [
    ("evict", "lfu", "aging", 0), ("evict", "lfu", "aging", "x"), ("evict", "lfu", "aging", 1.5),
    ("evict", "lfu", "shape", 3), ("evict", "score_window", "window", 0), ("evict", "score_window", "window", 10**8),
    ("evict", "hobbit", "lru", float("nan")), ("evict", "hobbit", "fld", float("inf")),
    ("evict", "activation", "capacity", 0), ("evict", "probability", "memory", 2),
    ("prefetch", "transition", "smoothing", 0), ("prefetch", "activation_matrix", "scope", 1),
    ("prefetch", "activation_matrix", "scope", "week"), ("prefetch", "expert_map", "distance", -5),
    ("working_set", "task", "period", 0), ("working_set", "quota", "memory", -1),
    ("working_set", "pattern", "capacity", 0), ("working_set", "task", "capacity", 0),
])  # fmt: skip
def test_a_knob_that_does_not_fit_is_refused_by_name(kind: str, name: str, knob: str, value: Any) -> None:
    with pytest.raises(PolicyError, match=rf"{knob}"):
        policy.load(kind, name, {knob: value}, shape=(4, 16))


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert policy.load("evict", "score_window", {"window": 8.0}, shape=(4, 16)).history.shape == (8, 4, 16)
