"""Recurrent layers on the CPU: near the reference, the same bits at every level, in any company and in any cut."""

from typing import Any

import pytest
import torch
from gmoe.kernels import cpu_recurrent, reference_recurrent
from gmoe.kernels.record import record
from gmoe.kernels.recurrent import (
    ChannelRule,
    ChannelSpace,
    DeltaNet,
    DeltaRule,
    KimiDelta,
    KimiRule,
    Paths,
    ShortConv,
    StateLayer,
    StateShape,
    StateSpace,
)
from torch import Tensor

from tests.recurrent_rules import (
    CHANNELS,
    EVERY_RULE,
    EVERY_WAY,
    KIMIS,
    NETS,
    ROUNDED,
    SLOTS,
    SPACES,
    WAYS,
    Sizes,
    filled,
    ints,
    paths,
)
from tests.test_step_cpu import LEVELS, random


@LEVELS
@EVERY_WAY
@EVERY_RULE
def test_rules(level: str, net: Sizes, way: Paths) -> None:
    given, state, plain = net.rows(int(way.starts[-1])), filled(net), filled(net)
    want = net.reference(*given, net.rule, plain, way)
    compiled = net.compiled(net.rule)
    got = compiled(*given, state, way, 2, level)
    torch.testing.assert_close(got, want, **ROUNDED)
    torch.testing.assert_close(state.matrices, plain.matrices, **ROUNDED)
    for threads in (1, 5):  # at the highest level
        again = filled(net)
        assert torch.equal(compiled(*given, again, way, threads), got)
        assert torch.equal(again.matrices, state.matrices)


@LEVELS
@EVERY_WAY
@pytest.mark.parametrize("taps", [1, 2, 3, 6])
@pytest.mark.parametrize("gates", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_short_conv(level: str, way: Paths, taps: int, gates: bool, biased: bool) -> None:
    net, tokens = NETS[2], int(way.starts[-1])
    wide = random(tokens, 3 * net.channels)
    x, before, after = wide.split(net.channels, 1)
    some = (before, after) if gates else (None, None)
    weight, state, plain = random(net.channels, taps + 1, seed=1), filled(net, taps), filled(net, taps)
    bias = random(net.channels, seed=7) if biased else None
    want = reference_recurrent.short_conv(x, weight, plain, way, not gates, *some, bias)
    compiled = cpu_recurrent.ShortConv(weight, bias)
    got = compiled(x, state, way, not gates, *some, 2, level)
    torch.testing.assert_close(got, want, **ROUNDED)
    assert torch.equal(state.inputs, plain.inputs)
    for threads in (1, 5):
        again = filled(net, taps)
        assert torch.equal(compiled(x, again, way, not gates, *some, threads), got)
        assert torch.equal(again.inputs, state.inputs)


@LEVELS
@EVERY_WAY
def test_convolutions_beside_each_other_are_those_of_their_channels(level: str, way: Paths) -> None:
    """Of one state, each in the slots' rows beside the others'."""
    net, tokens = NETS[3], int(way.starts[-1])
    x, weight, state, whole = random(tokens, net.channels), random(net.channels, 4, seed=1), filled(net), filled(net)
    want = cpu_recurrent.ShortConv(weight)(x, whole, way, True, None, None, 2, level)
    for first, count in ((0, 50), (50, 16), (66, net.channels - 66)):
        own = slice(first, first + count)
        conv = cpu_recurrent.ShortConv(weight[own])
        assert torch.equal(conv(x[:, own], state.part(first, count), way, True, None, None, 2, level), want[:, own])
    assert torch.equal(state.inputs, whole.inputs)


def test_many_channels_are_shared_by_the_threads() -> None:
    weight, x, way = random(1100, 4), random(40, 1100, seed=1), paths((30, -1, 0, -1, 0), (10, 2, 2, 1, 5))
    states = [StateLayer(StateShape(3, 1100), 3) for _ in range(3)]
    for state in states:
        state.inputs.copy_(random(3, 3, 1100, seed=2))
    want = reference_recurrent.short_conv(x, weight, states[0], way, True)
    one = cpu_recurrent.ShortConv(weight)(x, states[1], way, True, None, None, 1)
    three = cpu_recurrent.ShortConv(weight)(x, states[2], way, True, None, None, 3)
    torch.testing.assert_close(one, want, **ROUNDED)
    assert torch.equal(one, three) and torch.equal(states[1].inputs, states[2].inputs)
    assert torch.equal(states[1].inputs, states[0].inputs)


@EVERY_RULE
def test_a_sequence_in_pieces_and_in_company(net: Sizes) -> None:
    tokens, weight, bias = 22, random(net.channels, 4, seed=6), random(net.channels, seed=7)
    x, *given = net.rows(tokens)
    conv, learn = ShortConv(weight, bias), net.door(net.rule)

    def step(state: StateLayer, rows: list[slice], way: Paths) -> Tensor:
        """One pass: the same rows for several sequences one behind the other."""
        y = conv(torch.cat([x[r] for r in rows]), state, way, silu=True)
        return learn(y, *(torch.cat([part[r] for r in rows]) for part in given), state, way)

    whole = filled(net)
    want = step(whole, [slice(tokens)], paths((tokens, -1, 0, 1, 9)))
    for cut in (1, 2, 3, 7, 13):
        state, got = filled(net), []
        for begin in range(0, tokens, cut):
            rows = slice(begin, min(begin + cut, tokens))
            n, source = rows.stop - begin, 0 if begin else -1
            kept = (1, 9 - begin) if begin < 9 <= rows.stop else (-1, 0)
            others = [slice(3), slice(5, 6)]  # a prompt before, a token behind
            way = paths((3, -1, 2, -1, 0), (n, source, 0, *kept), (1, 4, 4, -1, 0))
            got.append(step(state, [others[0], rows, others[1]], way)[3 : 3 + n])
        assert torch.equal(torch.cat(got), want)
        for part, other in ((state.inputs, whole.inputs), (state.matrices, whole.matrices)):
            assert torch.equal(part[:2], other[:2])  # the last state, and that after nine rows


@LEVELS
def test_how_fast_a_head_forgets(level: str) -> None:
    """With keys of zeros nothing is learnt, and a matrix of ones becomes exp(a * softplus)."""
    x = torch.cat([torch.linspace(-80, 30, 1000), torch.tensor([-1e30, 1e30, 0.0, 20.0, 20.01])])
    n = len(x)
    for a in (-1.0, -1e-3, -1e5):
        rule = DeltaRule(1, n, torch.full((n,), a), torch.zeros(n), torch.ones(1), 1e-6, False)
        state = StateLayer(StateShape(1, 1, n, 1, 1), 1)
        state.matrices.fill_(1.0)
        given = torch.zeros(1, 2 + n), x[None], torch.zeros(1, n), torch.zeros(1, n)
        cpu_recurrent.DeltaNet(rule)(*given, state, paths((1, 0, 0, -1, 0)), 1, level)
        want = (torch.nn.functional.softplus(x.double()) * a).exp().float()
        roundings = 1 + (want.log().abs()).clamp(max=90)  # what is rounded before the exponential grows in it
        near = 4 * 2.0**-24 * roundings * want + 2e-38
        assert ((state.matrices.flatten() - want).abs() <= near).all()
        rows = torch.zeros(1, n)
        state = StateLayer(StateShape(1, n, -(-n // 16), 1, 16), 1)  # a number a channel
        state.matrices.fill_(1.0)
        space = cpu_recurrent.ChannelSpace(ChannelRule(torch.full((n, 1), a), torch.zeros(n)))
        space(rows, x[None], rows[:, :1], rows[:, :1], rows, state, paths((1, 0, 0, -1, 0)), 1, level)
        assert ((state.matrices.flatten()[:n] - want).abs() <= near).all()
        for floor in (0.0, -5.0):
            kimi = KimiRule(1, torch.tensor([a]), torch.zeros(n), torch.ones(1), 1e-6, 1e-6, floor)
            state = StateLayer(StateShape(1, 1, 1, n, 1), 1)  # the rows of one head
            state.matrices.fill_(1.0)
            given = rows, rows, torch.zeros(1, 1), x[None], torch.zeros(1, 1), torch.zeros(1, 1)
            cpu_recurrent.KimiDelta(kimi)(*given, state, paths((1, 0, 0, -1, 0)), 1, level)
            if floor:
                want = (floor * torch.sigmoid(-a * x.double())).exp().float()
                near = 64 * 2.0**-24 * want
            assert ((state.matrices.flatten() - want).abs() <= near).all()


@pytest.mark.parametrize("net", [NETS[0], KIMIS[0], SPACES[0], CHANNELS[0]], ids=str)
def test_what_is_recorded_finds_its_paths_where_they_are(net: Sizes) -> None:
    conv = ShortConv(random(net.channels, 4, seed=6), random(net.channels, seed=7))
    learn, state, way = net.door(net.rule), filled(net), paths((1, 0, 0, -1, 0))
    given = tuple(x.clone() for x in net.rows(1))

    def work() -> Tensor:
        return learn(conv(given[0], state, way, silu=True), *given[1:], state, way)

    y, recorder = record(work)
    assert recorder is not None and len(recorder) == 2
    for part, other in zip(given, net.rows(2), strict=True):
        part.copy_(other[1:])
    for part, slot in zip(way[1:], (3, 5, 6, 1), strict=True):
        part.fill_(slot)
    plain = filled(net)
    plain.inputs.copy_(state.inputs)
    plain.matrices.copy_(state.matrices)
    recorder.run()
    want = learn(conv(given[0], plain, way, silu=True), *given[1:], plain, way)
    assert torch.equal(y, want)
    assert torch.equal(plain.inputs, state.inputs) and torch.equal(plain.matrices, state.matrices)
    way.target.fill_(SLOTS)
    with pytest.raises(ValueError, match="the target of sequence 0 is slot 10, not one of 10"):
        recorder.run()


NO_PATHS = [
    (((2, 0, 10, -1, 0),), "the target of sequence 0 is slot 10, not one of 10"),
    (((2, 0, -1, -1, 0),), "the target of sequence 0 is slot -1"),
    (((1, 0, 0, -1, 0), (1, -2, 1, -1, 0)), "the source of sequence 1 is slot -2"),
    (((2, 0, 0, 12, 1),), "the kept slot of sequence 0 is slot 12"),
    (((2, 0, 0, 1, 3),), "sequence 0 of 2 rows cannot be kept after 3"),
    (((2, 0, 0, 1, 0),), "sequence 0 of 2 rows cannot be kept after 0"),
    (((1, 0, 0, -1, 0),), "rows of the sequences go from 0 to 1, not from 0 to 2"),
    (((3, 0, 0, -1, 0), (-1, 1, 1, -1, 0)), "sequence 1 ends before it starts"),
    (((1, 0, 0, -1, 0), (1, 1, 0, -1, 0)), "sequences 0 and 1 both go into slot 0"),
    (((1, 0, 0, -1, 0), (1, 0, 1, -1, 0)), "sequence 1 comes from slot 0, into which 0 goes"),
]


@pytest.mark.parametrize(("sequences", "message"), NO_PATHS, ids=[message for _, message in NO_PATHS])
def test_paths_that_lead_nowhere_are_refused(sequences: Any, message: str) -> None:
    net, kimi, space, each, way = NETS[0], KIMIS[0], SPACES[0], CHANNELS[0], paths(*sequences)
    for work in (
        lambda: ShortConv(random(net.channels, 4))(random(2, net.channels), filled(net), way),
        lambda: DeltaNet(net.rule)(*net.rows(2), filled(net), way),
        lambda: KimiDelta(kimi.rule)(*kimi.rows(2), filled(kimi), way),
        lambda: StateSpace(space.rule)(*space.rows(2), filled(space), way),
        lambda: ChannelSpace(each.rule)(*each.rows(2), filled(each), way),
    ):
        with pytest.raises(ValueError, match=message):
            work()


def test_what_does_not_fit_is_refused_with_its_shapes() -> None:
    net, way, state = NETS[0], WAYS["decoding"], filled(NETS[0])
    qkv, alpha, beta, z = net.rows(4)
    delta, conv = DeltaNet(net.rule), ShortConv(random(net.channels, 4))
    with pytest.raises(ValueError, match=r"z must be float32 \[4, 256\] on the CPU, .* not .* \[4, 255\]"):
        delta(qkv, alpha, beta, z[:, 1:], state, way)
    with pytest.raises(ValueError, match=r"alpha must be float32 \[4, 4\] on the CPU, numbers side by side"):
        delta(qkv, alpha.T, beta, z, state, way)
    with pytest.raises(ValueError, match=r"qkv must be float32 \[4, 384\] .* \[4, 380\]"):
        delta(qkv[:, 4:], alpha, beta, z, state, way)
    with pytest.raises(ValueError, match=r"the states' slots must be contiguous float32 \[4, 32, 64\]"):
        delta(qkv, alpha, beta, z, StateLayer(StateShape(3, 384, 4, 32, 63), 2), way)
    with pytest.raises(ValueError, match=r"kept must be contiguous int32 \[4\] on the CPU, not torch.int64 \[4\]"):
        delta(qkv, alpha, beta, z, state, way._replace(kept=way.kept.long()))
    with pytest.raises(ValueError, match=r"starts must be contiguous int32 \[5\] on the CPU, not torch.int32 \[4\]"):
        conv(qkv, state, way._replace(starts=way.starts[1:]))
    with pytest.raises(ValueError, match=r"the states' slots must be contiguous float32 \[3, 384\]"):
        conv(qkv, filled(net, 2), way)
    with pytest.raises(ValueError, match=r"before must be float32 \[4, 384\]"):
        conv(qkv, state, way, before=qkv[:3])
    with pytest.raises(ValueError, match="over 0 earlier inputs; supported are 1 to 15"):
        ShortConv(random(8, 1))
    with pytest.raises(ValueError, match=r"weight must be float32 \[C, taps \+ 1\] on the CPU, not torch.float64"):
        ShortConv(random(8, 4).double())
    with pytest.raises(ValueError, match=r"bias must be contiguous float32 \[8\] on the CPU, not torch.float32 \[7\]"):
        ShortConv(random(8, 4), random(7))
    with pytest.raises(ValueError, match="5 heads of values do not share 2 of keys evenly"):
        DeltaNet(net.rule._replace(n_value=5))
    with pytest.raises(ValueError, match=r"a must be contiguous float32 \[4\] on the CPU, not torch.float32 \[3\]"):
        DeltaNet(net.rule._replace(a=random(3)))
    with pytest.raises(ValueError, match="no kernel level 'sse9'"):
        cpu_recurrent.ShortConv(random(net.channels, 4))(qkv, state, way, True, None, None, 1, "sse9")


def test_a_delta_attention_that_does_not_fit_is_refused_with_its_shapes() -> None:
    net, way, state = KIMIS[1], WAYS["decoding"], filled(KIMIS[1])
    q, k, v, fade, beta, gate = net.rows(4)
    kimi, rule = KimiDelta(net.rule), net.rule
    with pytest.raises(ValueError, match=r"k must be float32 \[4, 60\] on the CPU, .* not .* \[4, 59\]"):
        kimi(q, k[:, 1:], v, fade, beta, gate, state, way)
    with pytest.raises(ValueError, match=r"fade must be float32 \[4, 60\] on the CPU, .* not .* \[4, 3\]"):
        kimi(q, k, v, beta, beta, gate, state, way)
    with pytest.raises(ValueError, match=r"gate must be float32 \[4, 36\] on the CPU, .* not torch.float64"):
        kimi(q, k, v, fade, beta, gate.double(), state, way)
    with pytest.raises(ValueError, match=r"the states' slots must be contiguous float32 \[3, 20, 12\]"):
        kimi(q, k, v, fade, beta, gate, StateLayer(StateShape(3, 60, 3, 20, 13), 2), way)
    with pytest.raises(ValueError, match=r"4 heads do not share dt_bias \[58\] evenly"):
        KimiDelta(rule._replace(n_head=4, dt_bias=random(58)))
    with pytest.raises(ValueError, match=r"a must be contiguous float32 \[3\] on the CPU, not torch.float32 \[2\]"):
        KimiDelta(rule._replace(a=random(2)))


def test_a_state_space_that_does_not_fit_is_refused_with_its_shapes() -> None:
    net, way, state = SPACES[1], WAYS["decoding"], filled(SPACES[1])
    xbc, dt, z = net.rows(4)
    space, rule = StateSpace(net.rule), net.rule
    with pytest.raises(ValueError, match=r"xbc must be float32 \[4, 192\] on the CPU, .* not .* \[4, 191\]"):
        space(xbc[:, 1:], dt, z, state, way)
    with pytest.raises(ValueError, match=r"dt must be float32 \[4, 6\] on the CPU, .* not .* \[3, 6\]"):
        space(xbc, dt[1:], z, state, way)
    with pytest.raises(ValueError, match=r"z must be float32 \[4, 72\] on the CPU, .* not torch.float64"):
        space(xbc, dt, z.double(), state, way)
    with pytest.raises(ValueError, match=r"the states' slots must be contiguous float32 \[6, 20, 12\]"):
        space(xbc, dt, z, StateLayer(StateShape(3, 192, 6, 20, 13), 2), way)
    with pytest.raises(ValueError, match="6 heads do not share 4 groups evenly"):
        StateSpace(rule._replace(n_group=4))
    with pytest.raises(ValueError, match=r"d must be contiguous float32 \[6\] on the CPU, not torch.float32 \[5\]"):
        StateSpace(rule._replace(d=random(5)))
    with pytest.raises(
        ValueError, match=r"norm must be contiguous float32 \[66\] on the CPU, not torch.float32 \[71\]"
    ):
        StateSpace(rule._replace(norm=random(71)))


def test_a_state_space_by_channel_that_does_not_fit_is_refused_with_its_shapes() -> None:
    net, way, state = CHANNELS[0], WAYS["decoding"], filled(CHANNELS[0])
    x, dt, b, c, z = net.rows(4)
    space, rule = ChannelSpace(net.rule), net.rule
    with pytest.raises(ValueError, match=r"dt must be float32 \[4, 64\] on the CPU, .* not .* \[4, 63\]"):
        space(x, dt[:, 1:], b, c, z, state, way)
    with pytest.raises(ValueError, match=r"c must be float32 \[4, 16\] on the CPU, .* not .* \[3, 16\]"):
        space(x, dt, b, c[1:], z, state, way)
    with pytest.raises(ValueError, match=r"z must be float32 \[4, 64\] on the CPU, .* not torch.float64"):
        space(x, dt, b, c, z.double(), state, way)
    with pytest.raises(ValueError, match=r"the states' slots must be contiguous float32 \[4, 16, 16\]"):
        space(x, dt, b, c, z, StateLayer(StateShape(3, 64, 1, 16, 64), 2), way)
    with pytest.raises(ValueError, match=r"a must be float32 \[C, dk\] on the CPU, not torch.float64 \[64, 16\]"):
        ChannelSpace(rule._replace(a=rule.a.double()))
    with pytest.raises(ValueError, match=r"d must be contiguous float32 \[64\] on the CPU, not torch.float32 \[63\]"):
        ChannelSpace(rule._replace(d=random(63)))


@pytest.mark.parametrize("net", [NETS[0], KIMIS[0], SPACES[0], CHANNELS[0]], ids=str)
def test_no_sequence_is_no_work(net: Sizes) -> None:
    way = Paths(ints(0), *(ints() for _ in range(4)))
    y = ShortConv(random(net.channels, 4))(torch.empty(0, net.channels), filled(net), way)
    assert net.door(net.rule)(y, *net.rows(0)[1:], filled(net), way).shape == (0, net.heads * net.dv)
