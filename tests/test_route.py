"""Route policies: choices by hand, exact at the neutral knob, and the softmax traps of each kind of router."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gmoe.kernels.ops import Router

import gmoe
from gmoe.experts import policy
from gmoe.experts.expert_id import ExpertId
from gmoe.experts.policy import PolicyError, Scores
from gmoe.gguf.hparams import Gating
from gmoe.layers.router import topk
from tests.factory import Shape, write_model
from tests.test_miss import IDS, Here, small

NEUTRAL: dict[str, dict[str, Any]] = {
    "exact": {}, "cache_prior": {"prior": 0}, "smoe": {"alpha": 0}, "adaptive_k": {"threshold": 0}, "odp": {"beta": 0},
    "little": {"mass": 1.0}, "resident_only": {"keep": 1024},
}  # fmt: skip
LOSSY: dict[str, dict[str, Any]] = {
    "cache_prior": {"prior": 5.0}, "smoe": {"alpha": 1.0}, "adaptive_k": {"threshold": 1.0}, "odp": {"beta": 1.0},
    "little": {"mass": 0.3}, "resident_only": {},
}  # fmt: skip


def hparams(k: int = 2, groups: int = 1) -> Any:
    return SimpleNamespace(n_expert=6, n_expert_used=k, n_expert_groups=groups, n_group_used=1)


def routed(logits: list[list[float]], **router: Any) -> tuple[np.ndarray, np.ndarray, Scores]:
    hp = hparams(router.pop("k", 2), router.pop("groups", 1))
    route = topk(
        SimpleNamespace(hparams=hp, on=None, get=lambda *given: None),
        router.pop("gating", Gating.SOFTMAX),
        renormalize=router.pop("renormalize", True),
        **router,
    )
    routing = route(torch.tensor(logits))
    assert routing.scores is not None
    return routing.topk_ids.numpy(), routing.topk_weights.numpy(), routing.scores()


def named(name: str, **knobs: Any) -> policy.RoutePolicy:
    made: policy.RoutePolicy = policy.load("route", name, knobs, sensitivity=[1.0] * 8)
    return made


LOGITS = [[0.0, 1.0, 1.9, 3.0, 2.0, -1.0]]


@pytest.mark.parametrize("name", NEUTRAL)
def test_the_neutral_knob_returns_the_router_s_own_arrays(name: str) -> None:
    made, rng = named(name, **NEUTRAL[name]), np.random.default_rng(0)
    for rows in (1, 5):
        ids, weights, scores = routed(rng.standard_normal((rows, 6)).tolist(), k=3)
        got = made.route(0, ids, weights, Here((0, 2)), scores)
        assert got[0] is ids and got[1] is weights


@pytest.mark.parametrize("name", policy.names("route"))
def test_every_choice_is_of_distinct_experts_with_finite_weights(name: str) -> None:
    made, rng = named(name, **LOSSY.get(name, {})), np.random.default_rng(1)
    for _ in range(100):
        rows, bias = int(rng.integers(1, 4)), torch.from_numpy(rng.standard_normal(6).astype(np.float32))
        gating = [Gating.SOFTMAX, Gating.SIGMOID, Gating.SOFTMAX_WEIGHT][int(rng.integers(3))]
        router: dict[str, Any] = {"gating": gating, "renormalize": bool(rng.integers(2)), "k": 3}
        router |= {"groups": 2} if rng.integers(2) else {}
        router |= {"bias": bias} if gating is Gating.SIGMOID else {}
        ids, weights, scores = routed(rng.standard_normal((rows, 6)).tolist(), **router)
        here = Here(tuple(np.flatnonzero(rng.random(6) < 0.5)))
        fresh, weighed = made.route(0, ids, weights, here, scores)
        assert fresh.shape == ids.shape and fresh.dtype == ids.dtype and weighed.dtype == weights.dtype
        assert np.isfinite(weighed).all() and (weighed >= 0).all() and not weighed[fresh < 0].any()
        for row in fresh:
            kept = row[row >= 0].tolist()
            assert len(set(kept)) == len(kept) > 0


def test_weights_after_a_drop_are_renormalised_only_where_the_architecture_does() -> None:
    dropped = np.array([[3, -1]])
    p = np.exp(np.array(LOGITS[0])) / np.exp(np.array(LOGITS[0])).sum()
    for router, want in [
        ({"renormalize": True}, 1.0),
        ({"renormalize": False}, p[3]),  # the softmax is over all experts: who stays must not inherit
        ({"gating": Gating.SOFTMAX_WEIGHT, "renormalize": False}, 1.0),  # over the chosen only
        ({"gating": Gating.SIGMOID, "renormalize": False}, 1 / (1 + np.exp(-3.0))),
        ({"renormalize": False, "scale": 2.5}, 2.5 * p[3]),
    ]:
        weigh = routed(LOGITS, **router)[2].weigh
        np.testing.assert_allclose(weigh(dropped), [[want, 0.0]], rtol=1e-6)
        assert not weigh(np.array([[-1, -1]])).any()


def test_a_selection_bias_moves_the_choice_and_never_the_weights() -> None:
    bias = torch.tensor([0.0, 5.0, 0, 0, 0, 0])
    ids, weights, scores = routed(LOGITS, gating=Gating.SIGMOID, renormalize=False, bias=bias)
    assert set(ids[0]) == {1, 3}
    np.testing.assert_allclose(scores.weigh(ids), weights)
    np.testing.assert_allclose(scores.probabilities[0, 1], 1 / (1 + np.exp(-1.0)), rtol=1e-6)
    assert scores.selection[0, 1] == scores.selection[0].max()


def test_experts_outside_the_chosen_groups_are_nobody_s_choice() -> None:
    ids, weights, scores = routed([[0.0, 1.0, 0.5, 3.0, 2.0, 2.5]], groups=2)
    assert np.isneginf(scores.selection[0, :3]).all()
    for name in ("cache_prior", "resident_only", "smoe"):
        fresh, _ = named(name, **LOSSY[name]).route(0, ids, weights, Here((0, 1, 2)), scores)
        assert (fresh >= 3).all()


def test_cache_prior_lifts_residents_and_keeps_the_first() -> None:
    ids, weights, scores = routed(LOGITS)
    assert ids.tolist() == [[3, 4]]
    fresh, weighed = named("cache_prior", prior=0.2).route(0, ids, weights, Here((2,)), scores)
    assert fresh.tolist() == [[3, 2]]
    np.testing.assert_allclose(weighed, scores.weigh(np.array([[3, 2]])))  # weights of the true scores
    near = named("cache_prior", prior=0.02).route(0, ids, weights, Here((2,)), scores)
    assert near[0] is ids  # 0.02 * 4 is less than the distance of 0.1
    far = named("cache_prior", prior=9, keep=1).route(0, ids, weights, Here((0, 5)), scores)[0]
    assert far.tolist() == [[3, 0]]
    assert set(named("cache_prior", prior=9, keep=0).route(0, ids, weights, Here((0, 5)), scores)[0][0]) == {0, 5}


def test_smoe_swaps_within_the_band() -> None:
    p = np.array([[0.05, 0.18, 0.17, 0.36, 0.2, 0.04]])
    ids, weights, scores = routed(np.log(p).tolist())
    assert ids.tolist() == [[3, 4]]  # S is 0.18
    swap = named("smoe", alpha=0.2).route(0, ids, weights, Here((2,)), scores)[0]
    assert swap.tolist() == [[3, 2]]  # 0.2 < 1.2 * 0.18 gives way to 0.17 > 0.8 * 0.18
    assert named("smoe", alpha=0.05).route(0, ids, weights, Here((2,)), scores)[0] is ids
    assert named("smoe", alpha=0.2).route(0, ids, weights, Here((2, 4)), scores)[0] is ids
    assert named("smoe", alpha=0.2).route(0, ids, weights, Here((0, 5)), scores)[0] is ids


def test_smoe_sees_who_comes_for_another_token() -> None:
    """Nobody can stand in for the first token's 4: it is loaded, and the second token keeps it too."""
    p = np.array([[0.04, 0.18, 0.05, 0.36, 0.2, 0.17], [0.05, 0.18, 0.17, 0.36, 0.2, 0.04]])
    ids, weights, scores = routed(np.log(p).tolist())
    made = named("smoe", alpha=0.2)
    assert ids.tolist() == [[3, 4], [3, 4]]
    assert made.route(0, ids, weights, Here((2,)), scores)[0] is ids
    fresh = made.route(0, ids[1:], weights[1:], Here((2,)), Scores(scores.selection[1:], scores.probabilities[1:],
                                                                   lambda ids: ids * 0.5))[0]  # fmt: skip
    assert fresh.tolist() == [[3, 2]]


def test_smoe_looks_at_all_within_the_band_where_a_bias_orders_them_otherwise() -> None:
    p = np.array([[0.5, 0.3, 0.25, 0.1, 0.28, 0.02]])
    bias = torch.tensor([0.0, 0, 0, 0.16, 0, 0])
    logits = np.log(p / (1 - p)).tolist()
    ids, weights, scores = routed(logits, gating=Gating.SIGMOID, renormalize=False, bias=bias)
    assert ids.tolist() == [[0, 1]]  # then 4, which is the cut, 3 by its bias, and 2
    fresh = named("smoe", alpha=0.2).route(0, ids, weights, Here((0, 2)), scores)[0]
    assert fresh.tolist() == [[0, 2]]


def test_adaptive_k_drops_the_tail_for_one_token_only() -> None:
    ids, weights, scores = routed(np.log([[0.05, 0.1, 0.15, 0.4, 0.2, 0.1]]).tolist(), k=4)
    made = policy.load("route", "adaptive_k", {"threshold": 0.05}, sensitivity=[1.0, 0.1, 1000.0])
    assert (made.route(0, ids, weights, Here(), scores)[0] >= 0).sum() == 3  # 0.118, then 0.294 of the weight
    assert (made.route(1, ids, weights, Here(), scores)[0] >= 0).sum() == 1
    assert made.route(2, ids, weights, Here(), scores)[0] is ids
    two = np.repeat(ids, 2, 0), np.repeat(weights, 2, 0)
    assert made.route(1, *two, Here(), scores)[0] is two[0]
    with pytest.raises(PolicyError, match="a layer's sensitivity must be"):
        policy.load("route", "adaptive_k", sensitivity=[-1.0])


def test_little_and_odp_drop_the_light_ones() -> None:
    ids, weights, scores = routed(np.log([[0.02, 0.03, 0.05, 0.5, 0.3, 0.1]]).tolist(), k=4)
    assert ids.tolist() == [[3, 4, 5, 2]]
    little = named("little", mass=0.8).route(0, ids, weights, Here(), scores)
    assert little[0].tolist() == [[3, 4, -1, -1]]
    np.testing.assert_allclose(little[1][0], [0.625, 0.375, 0, 0], rtol=1e-5)
    assert named("little", mass=0.9).route(0, ids, weights, Here(), scores)[0] is ids
    assert named("odp", beta=0.4).route(0, ids, weights, Here(), scores)[0].tolist() == [[3, 4, -1, -1]]


def test_resident_only_asks_for_the_absent_where_too_few_are_here() -> None:
    ids, weights, scores = routed(LOGITS)
    made = named("resident_only")
    assert made.route(0, ids, weights, Here((0, 1, 5)), scores)[0].tolist() == [[1, 0]]
    assert made.route(0, ids, weights, Here((5,)), scores)[0].tolist() == [[5, 3]]
    assert named("resident_only", keep=1).route(0, ids, weights, Here((0, 1)), scores)[0].tolist() == [[3, 1]]


def test_knobs_out_of_range_are_refused() -> None:
    for name, knob, value in [("cache_prior", "prior", -1), ("smoe", "alpha", 2), ("little", "mass", 1.1),
                              ("odp", "beta", "x"), ("adaptive_k", "threshold", -1)]:  # fmt: skip
        with pytest.raises(PolicyError, match=f"the knob {knob} is .*; it must be a number"):
            named(name, **{knob: value})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("route")
    return write_model(folder / "tiny.gguf", quant="F16", shape=Shape(ff_exp=64, expert=16, used=4))


def run(path: Path, **options: Any) -> tuple[list[np.ndarray], dict[str, Any]]:
    path.with_suffix(".trace").unlink(missing_ok=True)  # nothing learnt from the run before
    plain = {"evict": "lru", "prefetch": "none", "working_set": "none"}
    with gmoe.LLM.load(path, gmoe.RuntimeOptions(context=64, max_sequences=1, **plain, **options)) as llm:
        return [llm.logits(ids) for ids in IDS], llm.stats


@pytest.mark.parametrize("name", [name for name in NEUTRAL if name not in ("exact", "adaptive_k")])
def test_a_model_is_bit_equal_at_the_neutral_knob_and_changes_are_counted(model: Path, name: str) -> None:
    memory = small(model)
    want, plain = run(model, host_memory=memory, route="exact", policy={})
    got, stats = run(model, host_memory=memory, route=name, policy=NEUTRAL[name])
    assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    assert stats["rerouted"] == {"count": 0, "mass": 0.0} and stats["routed"]["count"] > 0
    assert stats["host"]["misses"] == plain["host"]["misses"]
    got, stats = run(model, host_memory=memory, route=name, policy=LOSSY[name])
    assert 0 < stats["rerouted"]["count"] < stats["routed"]["count"]
    assert 0 < stats["rerouted"]["mass"] < stats["routed"]["mass"]
    assert stats["host"]["misses"] < plain["host"]["misses"]
    assert not all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(("evict", "asks"), [("score_window", True), ("probability", True), ("lru", False),
                                             ("auto", False)])  # fmt: skip
def test_what_the_router_thought_is_reckoned_for_those_who_ask_and_only_once(
    model: Path, monkeypatch: pytest.MonkeyPatch, evict: str, asks: bool
) -> None:
    thoughts, reckoned = Router.thoughts, list[int]()

    def counted(self: Router, logits: torch.Tensor) -> Any:
        reckoned.append(len(logits))
        return thoughts(self, logits)

    monkeypatch.setattr(Router, "thoughts", counted)
    plain = {"prefetch": "expert_map" if asks else "none", "working_set": "none"}
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(host_memory=small(model), context=64, evict=evict, **plain)) as llm:
        llm.logits(IDS[0])
        layers = len(llm.layout.layers)
    assert reckoned == [len(IDS[0])] * layers * asks


def test_prefetchers_hear_the_router_s_own_choice(model: Path) -> None:
    heard: list[tuple[int, int]] = []

    class Spy(policy.Prefetcher):
        def predict(
            self, layer: int, hidden: Any, ids: policy.Ids, weights: policy.Floats, *told: Any
        ) -> list[ExpertId]:
            heard.append((int(ids.min()), ids.shape[1]))
            return []

    with gmoe.LLM.load(model, gmoe.RuntimeOptions(host_memory=small(model), context=64, route="odp")) as llm:
        llm.dispatch.prefetch = Spy()
        llm.logits(IDS[0])
        assert llm.stats["rerouted"]["count"] > 0
    assert heard and all(least >= 0 and k == 4 for least, k in heard)


def test_an_expert_that_nobody_asks_for_is_no_hit(model: Path) -> None:
    _, exact = run(model)
    _, stats = run(model, route="odp", policy={"beta": 1.0})
    assert stats["host"]["hits"] + stats["rerouted"]["count"] == exact["host"]["hits"] == stats["routed"]["count"]
