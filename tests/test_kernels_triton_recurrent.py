"""Triton's recurrent layers against the reference: compiled where there is a card."""

import os
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton", reason="triton is not installed")

from gmoe.kernels import reference_recurrent
from gmoe.kernels.recurrent import DeltaNet, DeltaRule, KimiDelta, Paths, ShortConv, SpaceRule, StateLayer, StateSpace
from gmoe.kernels.triton import recurrent
from gmoe.kernels.triton.kernels import Kernels
from torch import Tensor

from tests.recurrent_rules import EVERY_WAY, NETS, ROUNDED, SLOTS, WAYS, Kimi, Net, Sizes, Space, filled, ints, paths
from tests.test_step_cpu import random

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = [Net(1, 2, 20, 12, True), Net(2, 4, 7, 9, sigmoid=True)]
KIMIS = [Kimi(3, 20, 12), Kimi(2, 7, 9, -5.0)]
SPACES = [Space(1, 3, 20, 12), Space(2, 4, 7, 9)]


def there(x: Tensor) -> Tensor:
    return x.to(DEVICE)


def on_device(net: Sizes, taps: int = 3) -> StateLayer:
    state = filled(net, taps)
    state.inputs, state.matrices = there(state.inputs), there(state.matrices)
    return state


def led(way: Paths) -> Paths:
    return Paths(*map(there, way))


def ruled(net: Any) -> Any:
    return net.rule._replace(**{name: there(getattr(net.rule, name)) for name in ("a", "dt_bias", "norm")})


def spaced(net: Space) -> SpaceRule:
    return net.rule._replace(**{name: there(getattr(net.rule, name)) for name in ("a", "dt_bias", "d", "norm")})


def learner(net: Sizes) -> DeltaNet | KimiDelta | StateSpace:
    rule = spaced(net) if isinstance(net, Space) else ruled(net)
    return net.door(rule, Kernels())


@EVERY_WAY
@pytest.mark.parametrize("net", [*SMALL, *KIMIS, *SPACES], ids=str)
def test_rules(net: Sizes, way: Paths) -> None:
    given, plain, state = net.rows(int(way.starts[-1])), filled(net), on_device(net)
    want = net.reference(*given, net.rule, plain, way)
    got = learner(net)(*map(there, given), state, led(way))
    torch.testing.assert_close(got.cpu(), want, **ROUNDED)
    torch.testing.assert_close(state.matrices.cpu(), plain.matrices, **ROUNDED)


@EVERY_WAY
@pytest.mark.parametrize(("taps", "gates"), [(1, True), (2, True), (3, False), (6, False)])
def test_short_conv(way: Paths, taps: int, gates: bool) -> None:
    net, tokens = NETS[2], int(way.starts[-1])
    x, before, after = there(random(tokens, 3 * net.channels)).split(net.channels, 1)
    some = (before, after) if gates else (None, None)
    weight, plain, state = random(net.channels, taps + 1, seed=1), filled(net, taps), on_device(net, taps)
    host, bias = [None if part is None else part.cpu() for part in some], random(net.channels, seed=2)
    want = reference_recurrent.short_conv(x.cpu(), weight, plain, way, not gates, *host, bias if taps > 2 else None)
    conv = ShortConv(there(weight), there(bias) if taps > 2 else None, Kernels())
    got = conv(x, state, led(way), silu=not gates, before=some[0], after=some[1])
    torch.testing.assert_close(got.cpu(), want, **ROUNDED)
    assert torch.equal(state.inputs.cpu(), plain.inputs)


@EVERY_WAY
def test_convolutions_beside_each_other_are_those_of_their_channels(way: Paths) -> None:
    net, tokens = NETS[3], int(way.starts[-1])
    x, weight = there(random(tokens, net.channels)), there(random(net.channels, 4, seed=1))
    state, whole = on_device(net), on_device(net)
    want = ShortConv(weight, None, Kernels())(x, whole, led(way), silu=True)
    for first, count in ((0, 50), (50, 16), (66, net.channels - 66)):
        own = slice(first, first + count)
        conv = ShortConv(weight[own], None, Kernels())
        assert torch.equal(conv(x[:, own], state.part(first, count), led(way), silu=True), want[:, own])
    assert torch.equal(state.inputs, whole.inputs)


@pytest.mark.parametrize("net", [SMALL[1], KIMIS[1], SPACES[1]], ids=str)
def test_a_sequence_in_pieces_and_in_company(net: Sizes) -> None:
    tokens = 9
    x, *given = map(there, net.rows(tokens))
    conv = ShortConv(there(random(net.channels, 4, seed=6)), None, Kernels())
    learn = learner(net)

    def step(state: StateLayer, rows: list[slice], way: Paths) -> Tensor:
        y = conv(torch.cat([x[r] for r in rows]), state, led(way), silu=True)
        return learn(y, *(torch.cat([part[r] for r in rows]) for part in given), state, led(way))

    whole = on_device(net)
    want = step(whole, [slice(tokens)], paths((tokens, -1, 0, -1, 0)))
    for cut in (4, 8):
        state, got = on_device(net), []
        for begin in range(0, tokens, cut):
            rows = slice(begin, min(begin + cut, tokens))
            n, source = rows.stop - begin, 0 if begin else -1
            way = paths((1, -1, 2, -1, 0), (n, source, 0, -1, 0))
            got.append(
                step(state, [slice(1), rows], way)[1:] if begin else step(state, [rows], paths((n, -1, 0, -1, 0)))
            )
        assert torch.equal(torch.cat(got), want)
        assert torch.equal(state.inputs[0], whole.inputs[0]) and torch.equal(state.matrices[0], whole.matrices[0])


@pytest.mark.parametrize("net", [NETS[3], KIMIS[1], SPACES[1]], ids=str)
def test_who_has_no_target_leaves_every_slot_alone(net: Sizes) -> None:
    """As rows do that only fill a recorded step."""
    way = led(paths((1, 0, 0, -1, 0), (2, -1, -1, -1, 0)))
    state, before = on_device(net), on_device(net)
    y = ShortConv(there(random(net.channels, 4)), None, Kernels())(there(net.rows(3)[0]), state, way)
    learner(net)(y, *map(there, net.rows(3)[1:]), state, way)
    assert torch.equal(state.inputs[1:], before.inputs[1:]) and torch.equal(state.matrices[1:], before.matrices[1:])
    assert not torch.equal(state.matrices[0], before.matrices[0]) and len(state.inputs) == SLOTS


def test_how_fast_a_head_forgets() -> None:
    x = torch.tensor([-1e30, -80.0, -17.0, -3.0, 0.0, 5.0, 20.5, 1e30])
    rule = DeltaRule(1, 8, there(torch.full((8,), -1e5)), there(torch.zeros(8)), there(torch.ones(1)), 1e-6, False)
    state = StateLayer(filled(NETS[0]).shape, 1)
    state.matrices = there(torch.ones(1, 8, 1, 1))
    given = torch.zeros(1, 10), x[None], torch.zeros(1, 8), torch.zeros(1, 8)
    recurrent.delta_rule(*map(there, given), rule, state, led(paths((1, 0, 0, -1, 0))))
    want = (torch.nn.functional.softplus(x.double()) * -1e5).exp().float()
    torch.testing.assert_close(state.matrices.flatten().cpu(), want, **ROUNDED)


def test_what_does_not_fit_is_refused() -> None:
    net, way, state = NETS[1], led(WAYS["decoding"]), on_device(NETS[1])
    qkv, alpha, beta, z = map(there, net.rows(4))
    rule, weight = ruled(net), there(random(net.channels, 4))
    with pytest.raises(ValueError, match=r"x \[4, 152\], weights \[152, 3\] and slots \[3, 152\] do not fit"):
        recurrent.short_conv(qkv, weight[:, 1:], None, state, way, True, None, None)
    with pytest.raises(ValueError, match=r"x \[4, 152\] and \[3, 152\] do not fit"):
        recurrent.short_conv(qkv, weight, None, state, way, True, qkv[:3], None)
    with pytest.raises(ValueError, match=r"x \[4, 152\] and a bias of \[4\] do not fit"):
        recurrent.short_conv(qkv, weight, weight[0], state, way, True, None, None)
    with pytest.raises(ValueError, match=r"kept must be contiguous int32 \[4\], not torch.int64 \[4\]"):
        recurrent.short_conv(qkv, weight, None, state, way._replace(kept=way.kept.long()), True, None, None)
    with pytest.raises(ValueError, match=r"z \[4, 71\] must be \[4, 72\]"):
        recurrent.delta_rule(qkv, alpha, beta, z[:, 1:], rule, state, way)
    with pytest.raises(ValueError, match=r"5 of values and a norm of \[12\] do not fit slots \[6, 20, 12\]"):
        recurrent.delta_rule(qkv, alpha, beta, z, rule._replace(n_value=5), state, way)
    nobody = led(Paths(ints(0), *(ints() for _ in range(4))))
    assert recurrent.short_conv(qkv[:0], weight, None, state, nobody, True, None, None).shape == (0, 152)
    assert recurrent.delta_rule(qkv[:0], alpha[:0], beta[:0], z[:0], rule, state, nobody).shape == (0, 72)


def test_a_delta_attention_that_does_not_fit_is_refused() -> None:
    net, way, state = KIMIS[0], led(WAYS["decoding"]), on_device(KIMIS[0])
    q, k, v, fade, beta, gate = map(there, net.rows(4))
    rule = ruled(net)
    with pytest.raises(ValueError, match=r"k \[4, 59\] must be \[4, 60\]"):
        recurrent.kimi_delta(q, k[:, 1:], v, fade, beta, gate, rule, state, way)
    with pytest.raises(ValueError, match=r"beta \[3, 3\] must be \[4, 3\]"):
        recurrent.kimi_delta(q, k, v, fade, beta[1:], gate, rule, state, way)
    said = r"4 heads, a dt_bias of \[60\] and a norm of \[12\] do not fit slots \[3, 20, 12\]"
    with pytest.raises(ValueError, match=said):
        recurrent.kimi_delta(q, k, v, fade, beta, gate, rule._replace(n_head=4), state, way)
    nobody = led(Paths(ints(0), *(ints() for _ in range(4))))
    assert recurrent.kimi_delta(*(x[:0] for x in (q, k, v, fade, beta, gate)), rule, state, nobody).shape == (0, 36)


def test_a_state_space_that_does_not_fit_is_refused() -> None:
    net, way, state = SPACES[0], led(WAYS["decoding"]), on_device(SPACES[0])
    xbc, dt, z = map(there, net.rows(4))
    rule = spaced(net)
    with pytest.raises(ValueError, match=r"xbc \[4, 75\] must be \[4, 76\]"):
        recurrent.state_space(xbc[:, 1:], dt, z, rule, state, way)
    with pytest.raises(ValueError, match=r"dt \[3, 3\] must be \[4, 3\]"):
        recurrent.state_space(xbc, dt[1:], z, rule, state, way)
    with pytest.raises(ValueError, match=r"2 groups of 3 heads and a norm of \[36\] do not fit slots \[3, 20, 12\]"):
        recurrent.state_space(xbc, dt, z, rule._replace(n_group=2), state, way)
    with pytest.raises(ValueError, match=r"1 groups of 3 heads and a norm of \[35\] do not fit slots \[3, 20, 12\]"):
        recurrent.state_space(xbc, dt, z, rule._replace(norm=rule.norm[1:]), state, way)
    nobody = led(Paths(ints(0), *(ints() for _ in range(4))))
    assert recurrent.state_space(xbc[:0], dt[:0], z[:0], rule, state, nobody).shape == (0, 36)
