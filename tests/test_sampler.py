"""The sampler's chain, against the same chain written again token by token in plain Python."""

import math
from dataclasses import replace

import numpy as np
import pytest

from gmoe.engine import dry
from gmoe.engine.sampler import Sampler, _by_zipf
from gmoe.engine.sampling import SAMPLERS, SamplingParams

RNG = np.random.default_rng(7)
LOGITS = RNG.normal(0, 3, 200).astype(np.float32)
BEST = [int(i) for i in np.argsort(-LOGITS)[:4]]
CONTEXT = [3, 7, 7, BEST[0], 7, 3, BEST[1], 199, 0, 7, 7]


def longest_ends(context, breakers):
    """What `dry.repeated` should say, each end of the context looked for everywhere."""
    found = {}
    for n in range(1, min(len(context), 51)):
        if set(context[-n:]) & breakers:
            break
        places = [i for i in range(n, len(context)) if context[i - n : i] == context[-n:]]
        found |= {context[i]: n for i in places if context[i] not in breakers}
    return found


def plain_candidates(p: SamplingParams, logits, context):
    """llama.cpp's chain up to the draw: token -> chance, for those that are left."""
    x = {i: float(v) + p.logit_bias.get(i, 0.0) for i, v in enumerate(logits)}
    recent = context if p.repeat_last_n < 0 else context[max(0, len(context) - p.repeat_last_n) :]

    def chances(tokens):
        high = max(x[t] for t in tokens)
        total = sum(math.exp(x[t] - high) for t in tokens)
        return {t: math.exp(x[t] - high) / total for t in tokens}

    def until(tokens, share, mass):
        kept, total = [], 0.0
        for token in tokens:
            kept.append(token)
            total += share[token]
            if total >= mass and len(kept) >= p.min_keep:
                break
        return kept

    left = list(x)
    for name in p.samplers:
        left.sort(key=lambda t: (-x[t], t))
        if name == "penalties":
            for token in set(recent) & set(left):
                x[token] = x[token] * p.repeat_penalty if x[token] <= 0 else x[token] / p.repeat_penalty
                x[token] -= recent.count(token) * p.frequency_penalty + p.presence_penalty
        elif name == "dry" and p.dry_multiplier:
            for token, n in longest_ends(context, set()).items():
                x[token] -= p.dry_multiplier * p.dry_base ** (n - p.dry_allowed_length) * (n >= p.dry_allowed_length)
        elif name == "top_n_sigma" and p.top_n_sigma > 0:
            mean = sum(x[t] for t in left) / len(left)
            sigma = math.sqrt(sum((x[t] - mean) ** 2 for t in left) / len(left))
            left = [t for t in left if x[t] >= x[left[0]] - p.top_n_sigma * sigma]
        elif name == "xtc" and p.xtc_probability:
            share = chances(left)
            likely = [t for t in left if share[t] >= p.xtc_threshold]
            rest = [t for t in left if t not in likely[:-1]]
            left = rest if len(rest) >= p.min_keep else left
        elif name == "top_k" and p.top_k:
            left = left[: p.top_k]
        elif name == "typical_p" and p.typical_p < 1:
            share = chances(left)
            entropy = -sum(c * math.log(c) for c in share.values() if c)
            kept = until(sorted(left, key=lambda t: abs(-math.log(share[t]) - entropy)), share, p.typical_p)
            left = [t for t in left if t in kept]
        elif name == "top_p" and p.top_p < 1:
            left = until(left, chances(left), p.top_p)
        elif name == "min_p" and p.min_p > 0:
            least = x[left[0]] + math.log(p.min_p)
            left = [t for n, t in enumerate(left) if x[t] >= least or n < p.min_keep]
        elif name == "temperature":
            share, heat = chances(left), p.temperature
            if p.dynatemp_range:
                unsure = -sum(c * math.log(c) for c in share.values()) / math.log(len(left))
                heat += p.dynatemp_range * (2 * unsure**p.dynatemp_exponent - 1)
            x = {t: score / heat for t, score in x.items()}
    return chances(left)


CHAINS = {
    "temperature": dict(temperature=1.7, top_k=0, top_p=1.0),
    "top_k": dict(top_k=5, top_p=1.0, temperature=1.0),
    "top_p": dict(top_k=0, top_p=0.7, temperature=2.0),
    "min_p": dict(top_k=0, top_p=1.0, min_p=0.2, temperature=3.0),
    "typical_p": dict(top_k=0, top_p=1.0, typical_p=0.6, temperature=1.0),
    "bias": dict(top_k=4, top_p=1.0, temperature=1.0, logit_bias={9: 50.0, 11: 51.0, 5000: 99.0}),
    "penalties": dict(repeat_penalty=1.8, presence_penalty=0.4, frequency_penalty=0.7, top_p=1.0),
    "penalties, few": dict(repeat_penalty=1.8, repeat_last_n=2, top_p=1.0),
    "penalties, all": dict(frequency_penalty=3.0, repeat_last_n=-1, top_p=1.0),
    "all": dict(top_k=60, typical_p=0.95, top_p=0.9, min_p=0.01, temperature=1.5, repeat_penalty=1.1),
    "temperature first": dict(samplers=("temperature", "top_p"), top_k=1, top_p=0.6, temperature=3.0),
    "penalties late": dict(samplers=("top_k", "penalties", "top_p"), top_k=30, repeat_penalty=3.0, top_p=0.9),
    "backwards": dict(samplers=SAMPLERS[::-1], temperature=2.0, min_p=0.05, top_k=9, frequency_penalty=2.0),
    "top_k twice": dict(samplers=("top_k", "penalties", "top_k"), top_k=6, presence_penalty=9.0),
    "temperature twice": dict(samplers=("temperature", "temperature", "typical_p"), temperature=1.5, typical_p=0.8),
    "dry": dict(dry_multiplier=1.5, dry_allowed_length=1, dry_base=2.0, top_p=1.0, temperature=2.0),
    "dry late": dict(samplers=("top_k", "dry"), dry_multiplier=3.0, dry_allowed_length=1, dry_penalty_last_n=-1),
    "top_n_sigma": dict(top_n_sigma=1.0, top_k=0, top_p=1.0, temperature=2.0),
    "top_n_sigma late": dict(samplers=("top_k", "top_n_sigma", "temperature"), top_n_sigma=0.5),
    "dynatemp": dict(dynatemp_range=1.2, dynatemp_exponent=1.5, temperature=1.5, top_k=0, top_p=1.0),
    "dynatemp of few": dict(dynatemp_range=1.0, temperature=1.5, top_k=5, top_p=1.0),
    "xtc": dict(xtc_probability=1.0, xtc_threshold=0.1, top_k=0, top_p=1.0, temperature=2.0),
    "xtc of none": dict(xtc_probability=1.0, xtc_threshold=0.45, top_k=0, top_p=1.0, temperature=9.0),
    "xtc that leaves enough": dict(xtc_probability=1.0, min_keep=50, top_k=0, top_p=1.0, temperature=2.0),
    "xtc that leaves too few": dict(xtc_probability=1.0, min_keep=5, top_k=5, top_p=1.0, temperature=2.0),
    "top_p of at least so many": dict(top_p=0.0, min_keep=4),
    "min_p of at least so many": dict(top_p=1.0, min_p=1.0, min_keep=7, temperature=2.0),
    "typical_p of at least so many": dict(top_p=1.0, typical_p=0.1, min_keep=6, samplers=("typical_p",)),
    "more than there are": dict(top_k=3, top_p=0.1, min_p=0.9, typical_p=0.1, min_keep=9),
    "none": dict(samplers=(), temperature=0.0, top_k=1, repeat_penalty=2.0),
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_a_few_tokens_give_what_all_give(chain, monkeypatch):
    """In a vocabulary where it pays: with equals, and with penalties that raise what would not have been looked at."""
    logits = np.round(np.random.default_rng(3).normal(0, 3, 9000), 1).astype(np.float32)
    worst, best = np.argsort(logits)[:40].tolist(), np.argsort(-logits)[:30].tolist()
    context = [*best[::2], *worst, *best[1::3], *best[:5], *best[:4]]
    for more in ({}, {"repeat_penalty": 0.05, "presence_penalty": -30.0}):
        params, took = SamplingParams(**(chain | more), seed=5), []
        for sparse in (8, len(logits)):
            monkeypatch.setattr("gmoe.engine.sampler.SPARSE", sparse)
            sampler = Sampler(params)
            took.append([sampler.sample(logits, context) for _ in range(40)])
        assert took[0] == took[1]


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS.keys())
def test_draws_what_the_plain_chain_gives(chain):
    params = SamplingParams(**chain, seed=1)
    wanted = plain_candidates(params, LOGITS, CONTEXT)
    sampler, n = Sampler(params), 3000
    counts = np.bincount([sampler.sample(LOGITS, CONTEXT) for _ in range(n)], minlength=len(LOGITS))
    assert set(np.flatnonzero(counts)) <= set(wanted)
    for token, chance in wanted.items():
        assert abs(counts[token] - n * chance) <= 5 * math.sqrt(n * chance * (1 - chance)) + 1


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_greedy_takes_the_best_after_bias_and_penalties(temperature):
    best = int(LOGITS.argmax())
    assert Sampler(SamplingParams(temperature=temperature)).sample(LOGITS, CONTEXT) == best
    assert Sampler(SamplingParams(temperature=temperature, logit_bias={4: 100.0})).sample(LOGITS, CONTEXT) == 4
    banned = SamplingParams(temperature=temperature, logit_bias={best: -math.inf})
    assert Sampler(banned).sample(LOGITS, CONTEXT) == int(np.argsort(LOGITS)[-2])
    penalized = SamplingParams(temperature=temperature, presence_penalty=100.0)
    assert Sampler(penalized).sample(LOGITS, [best]) == int(np.argsort(LOGITS)[-2])
    whole = SamplingParams(temperature=temperature, presence_penalty=10**30, frequency_penalty=10**30)
    assert Sampler(whole).sample(LOGITS, [best]) == int(np.argsort(LOGITS)[-2])


def test_a_sampler_that_is_not_named_is_off_and_an_unknown_one_refused():
    best = int(LOGITS.argmax())
    params = SamplingParams(samplers=("temperature",), temperature=0.0, repeat_penalty=9.0, presence_penalty=99.0)
    assert Sampler(params).sample(LOGITS, [best]) == best
    with pytest.raises(ValueError, match="samplers has 'infill'; there are penalties, dry, top_n_sigma, top_k"):
        SamplingParams(samplers=("top_k", "infill"))
    with pytest.raises(ValueError, match="samplers has 'top_k'"):
        SamplingParams(samplers="top_k")
    with pytest.raises(ValueError, match="samplers has 33 names; it must have at most 32"):
        SamplingParams(samplers=("top_k",) * 33)


@pytest.mark.parametrize("breakers", [set(), {2}])
def test_repetitions_are_found_up_to_their_breakers(breakers):
    random = np.random.default_rng(3)
    for tokens in (1, 2, 3, 5):
        for n in (0, 1, 2, 9, 60, 130):
            context = random.integers(0, tokens, n).tolist()
            assert dry.repeated(context, breakers) == longest_ends(context, breakers)
            following = {token: 0 for token in context[1:] if token not in breakers}
            assert dry.repeated(context, breakers, 0) == following | longest_ends(context, breakers)
    assert dry.repeated([4, 5] * 100, {9}) == {4: 50}


def test_dry_counts_where_the_best_is_taken_too():
    logits, context = np.zeros(12, np.float32), [1, 2, 3, 4, 9, 1, 2, 3]
    params = SamplingParams(temperature=0, dry_multiplier=0.8, samplers=("dry", "temperature"))
    for lead, wanted in ((0.8 * 1.75 - 0.01, 0), (0.8 * 1.75 + 0.01, 4)):
        logits[4] = lead
        assert Sampler(params).sample(logits, context) == wanted
        assert Sampler(params, breakers={2}).sample(logits, context) == 4
        few = replace(params, dry_penalty_last_n=6)
        assert Sampler(few).sample(logits, context) == (0 if lead < 0.8 else 4)
    huge = replace(params, dry_base=1e308, dry_multiplier=1e308)
    assert Sampler(huge).sample(logits, context) == 0
    assert Sampler(replace(huge, temperature=1.0, samplers=("top_k", "dry"), top_k=1)).sample(logits, context) == 4


def test_temperature_0_is_not_greedy_where_it_is_dynamic():
    params = SamplingParams(temperature=0, dynatemp_range=2.0, top_p=1.0, seed=1)
    assert not params.greedy and SamplingParams(temperature=-2, dynatemp_range=2.0).greedy
    sampler = Sampler(params)
    assert len({sampler.sample(LOGITS, CONTEXT) for _ in range(100)}) > 1


def test_exclude_top_choices_now_and_then():
    params = SamplingParams(xtc_probability=0.3, top_k=0, top_p=1.0, temperature=1.0, seed=5)
    share = np.exp(LOGITS.astype(np.float64))
    share /= share.sum()
    assert (share[BEST[:2]] > 0.1).all()
    sampler = Sampler(params)
    drawn = [sampler.sample(LOGITS, CONTEXT) for _ in range(3000)]
    assert abs(drawn.count(BEST[0]) - 3000 * 0.7 * share[BEST[0]]) < 150
    never = Sampler(replace(params, xtc_threshold=0.51, xtc_probability=1.0))
    assert BEST[0] in [never.sample(LOGITS, CONTEXT) for _ in range(100)]


EDGES = {
    "xtc of all": dict(xtc_probability=1.0, xtc_threshold=0.0),
    "top_n_sigma beside a bias beyond all bounds": dict(top_n_sigma=1.0, logit_bias={0: -np.inf, 4: 1e308, 5: 1e308}),
    "dry that allows all": dict(dry_multiplier=1.0, dry_allowed_length=10**30, dry_penalty_last_n=10**30),
    "dynatemp beyond all bounds": dict(dynatemp_range=1.7e308, temperature=1.7e308, dynatemp_exponent=1e308),
    "mirostat beyond all bounds": dict(mirostat=2, mirostat_tau=1.7e308, mirostat_eta=1.7e308),
    "mirostat 1 beyond all bounds": dict(mirostat=1, mirostat_tau=1.7e308, mirostat_eta=1.7e308),
    "mirostat 1 that wants nothing": dict(mirostat=1, mirostat_tau=0.0, mirostat_eta=1e9),
    "min_keep beyond all bounds": dict(min_keep=10**30, typical_p=0.0, top_p=0.0, min_p=1.0, xtc_probability=1.0),
}


@pytest.mark.parametrize("logits", [LOGITS, np.zeros(200, np.float32)], ids=["random", "flat"])
@pytest.mark.parametrize("more", EDGES.values(), ids=EDGES)
def test_the_edges_of_what_may_be_asked_for(more, logits):
    params = SamplingParams(**{"logit_bias": {0: -np.inf, 199: -np.inf}, "top_k": 0, "top_p": 1.0, "seed": 1} | more)
    sampler = Sampler(params)
    assert 0 not in [sampler.sample(logits, CONTEXT) for _ in range(20)]


@pytest.mark.parametrize(
    "more", [{}, {"temperature": 0}, {"top_n_sigma": 1.0}, {"mirostat": 1}, {"mirostat": 2}, {"top_k": 3}]
)
def test_a_bias_that_leaves_nothing_is_said(more):
    params = SamplingParams(logit_bias=dict.fromkeys(range(200), -np.inf), **more)
    with pytest.raises(ValueError, match="no token is left that may come"):
        Sampler(params).sample(LOGITS, CONTEXT)


def test_mirostat_stands_for_the_penalties_where_the_best_is_taken_too():
    params = SamplingParams(mirostat=2, temperature=0, repeat_penalty=99.0, dry_multiplier=99.0, dry_allowed_length=1)
    assert Sampler(params).sample(LOGITS, BEST[:2]) == BEST[0]
    assert Sampler(replace(params, mirostat=0)).sample(LOGITS, BEST[:2]) != BEST[0]
    assert Sampler(replace(params, logit_bias={BEST[2]: 99.0})).sample(LOGITS, BEST[:2]) == BEST[2]


def zipf_count(share, bits):
    """How many tokens the first version leaves, as the paper has it: `share` is best first."""
    ratios = [(math.log((i + 1) / i), math.log(share[i - 1] / share[i])) for i in range(1, 100)]
    s = sum(t * b for t, b in ratios) / sum(t * t for t, _ in ratios)
    return int((((s - 1) * 2**bits) / (1 - len(share) ** -(s - 1))) ** (1 / s))


@pytest.mark.parametrize("exponent", [0.3, 1.0, 1.7])
def test_mirostat_knows_zipfs_law_when_it_sees_it(exponent):
    """As many are left as have, by the law, the bits that are left of the first; where the law is exact, so is that."""
    x = -exponent * np.log(np.arange(1, 50_001))
    for bits in (0.0, 3.0, 9.0):
        over = exponent - 1
        total = math.log(len(x)) if over == 0 else (1 - len(x) ** -over) / over  # the integral over all ranks
        assert abs(_by_zipf(x, bits) - min(max((2**bits / total) ** (1 / exponent), 1), len(x))) <= 1
    assert _by_zipf(np.zeros(7), 5.0) == 7 and _by_zipf(np.zeros(1), 5.0) == 1
    assert _by_zipf(np.array([0.0, -1.0, -np.inf]), 1e308) == 3


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_leads_to_its_surprise(version):
    flat = RNG.normal(0, 1, 2000).astype(np.float32)
    params = SamplingParams(mirostat=version, mirostat_tau=4.0, temperature=1.2, top_k=1, seed=3)
    sampler, random = Sampler(params), np.random.default_rng(3)
    x = flat.astype(np.float64) / 1.2
    ids = np.argsort(-x, kind="stable")
    share = np.exp(x[ids] - x.max())
    share /= share.sum()
    most, surprises = 8.0, []
    for _ in range(300):
        n = next((i for i, s in enumerate(share) if -math.log2(s) > most), len(share))
        n = min(zipf_count(share, most), len(share)) if version == 1 else n
        left = share[: max(1, n)] / share[: max(1, n)].sum()
        place = int(np.searchsorted(np.cumsum(left), random.random()))
        assert sampler.sample(flat, CONTEXT) == ids[place]
        surprises.append(-math.log2(left[place]))
        most -= 0.1 * (surprises[-1] - 4.0)
    assert abs(np.mean(surprises[100:]) - 4.0) < 0.3


def test_the_smallest_temperature_is_greedy():
    assert Sampler(SamplingParams(temperature=5e-324)).sample(LOGITS, CONTEXT) == int(LOGITS.argmax())


def test_equal_logits_go_by_id():
    sampler = Sampler(SamplingParams(top_k=3, top_p=1.0, temperature=1.0, seed=0))
    drawn = {sampler.sample(np.zeros(100, dtype=np.float32), [0]) for _ in range(200)}
    assert drawn == {0, 1, 2}


@pytest.mark.parametrize(("name", "left"), [("typical_p", 3), ("top_p", 2)])
def test_a_mass_that_is_met_is_enough_for_top_p_alone(name, left):
    params = SamplingParams(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, name: 0.5}, seed=0)
    sampler = Sampler(params)
    assert {sampler.sample(np.zeros(4, dtype=np.float32), [0]) for _ in range(200)} == set(range(left))


@pytest.mark.parametrize("sparse", [8, 10**9])
def test_those_that_penalties_make_equal_go_by_id(sparse, monkeypatch):
    monkeypatch.setattr("gmoe.engine.sampler.SPARSE", sparse)
    logits = np.zeros(100, dtype=np.float32)
    logits[3], logits[5] = 1, 2
    assert Sampler(SamplingParams(top_k=1, repeat_penalty=2.0)).sample(logits, [5]) == 3


@pytest.mark.parametrize("seed", [0, 42, -1, -9007199254740991, 2**70])
def test_a_seed_gives_the_same_tokens(seed):
    def draw(params, default=None):
        sampler = Sampler(params, default)
        return [sampler.sample(LOGITS / 4, CONTEXT) for _ in range(50)]

    tokens = draw(SamplingParams(seed=seed))
    assert tokens == draw(SamplingParams(seed=seed), default=5)
    assert tokens == draw(SamplingParams(), default=seed)
    assert tokens != draw(SamplingParams(seed=seed + 1))


def test_logprobs_are_of_the_raw_logits():
    params = SamplingParams(temperature=5.0, logit_bias={1: 9.0}, logprobs=4)
    exact = LOGITS.astype(np.float64) - np.log(np.exp(LOGITS.astype(np.float64)).sum())
    got = Sampler(params).logprobs(LOGITS, 17)
    assert got.chosen == pytest.approx(exact[17])
    assert [i for i, _ in got.top] == np.argsort(-LOGITS)[:4].tolist()
    assert [value for _, value in got.top] == pytest.approx(np.sort(exact)[::-1][:4])
    assert Sampler(SamplingParams(logprobs=0)).logprobs(LOGITS, 17).top == ()
    assert Sampler(SamplingParams()).logprobs(LOGITS, 17) is None


def test_logits_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="not numbers"):
        Sampler(SamplingParams()).sample(np.array([0.0, np.nan], dtype=np.float32), [0])
    for params in (SamplingParams(temperature=0), SamplingParams(), SamplingParams(mirostat=1)):
        with pytest.raises(ValueError, match="not numbers"):
            Sampler(params).sample(np.array([0.0, np.inf, 1.0], dtype=np.float32), [0])
