"""plan: what is reckoned is monotone, follows the costs, and refuses what cannot run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from gmoe.cli.plan import plan as command
from gmoe.experts.budget import TooSmall, budget_of
from gmoe.experts.cost import Costs
from gmoe.experts.device import DeviceError
from gmoe.experts.device_budget import KV_SHARE, RESERVE
from gmoe.experts.fingerprint import header
from gmoe.experts.plan import made_up, plan
from gmoe.gguf.file import GGUFFile
from gmoe.gguf.hparams import Hparams
from gmoe.gguf.layout import ExpertLayout
from tests.factory import Shape, write_model
from tests.fake_device import FakeDevice

COSTS = Costs(bandwidth=1e6, latency=1e-4, expert_seconds=1e-3, row_seconds=1e-4, rate=1e7, layer_seconds=1e-3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(
        tmp_path_factory.mktemp("plan") / "m.gguf", shape=Shape(embd=256, ff_exp=128, expert=16, used=2, layer=4)
    )


def parts(file):
    hparams = Hparams.from_metadata(file.metadata, "m")
    layout = ExpertLayout(file, hparams.n_layer, hparams.n_expert)
    return layout, made_up(header(file, layout, hparams.n_layer), hparams.n_expert_used)


def budget(file, layout, memory):
    return budget_of(file, layout, Hparams.from_metadata(file.metadata, "m"), memory)


def test_more_memory_is_never_slower(model):
    with GGUFFile.open(model) as file:
        layout, trace = parts(file)
        whole = budget(file, layout, "1GiB")
        speeds = []
        for share in (0.2, 0.4, 0.6, 0.8):
            some = budget(file, layout, str(int(whole.fixed + share * whole.groups[0].slot_bytes * 64)))
            found = plan(some, COSTS, trace, 0)
            assert not found.whole and 0 < found.slots < found.experts == 64
            assert found.now.decode <= found.more_memory.decode * 1.001 <= found.all_in_memory.decode * 1.002
            assert found.now.decode <= found.faster_disk.decode * 1.001
            speeds.append(found.now.decode)
        assert speeds == sorted(speeds)
        found = plan(whole, COSTS, trace, 0)
        assert found.whole and found.now.hit_rate == 1 and found.now.bytes == 0
        assert found.now.decode == pytest.approx(1 / (4 * (2 * 1e-3 + 1e-3)), rel=0.01)  # by hand: nothing is read
        assert plan(whole, replace(COSTS, layer_seconds=2e-3), trace, 0).now.decode < found.now.decode
        with pytest.raises(TooSmall, match="needs at least"):
            plan(budget(file, layout, str(whole.fixed)), COSTS, trace, 0)


def test_made_up_routing_is_like_real_routing(model):
    with GGUFFile.open(model) as file:
        _, trace = parts(file)
    trace.check()
    assert all(len(set(row)) == 2 for row in trace.ids.tolist())
    layer = trace.ids[trace.rows["layer"] == 0]
    again = (layer[1:, :, None] == layer[:-1, None, :]).any(axis=2).mean()
    assert 0.2 < again < 0.7
    assert np.bincount(layer.ravel(), minlength=16).max() > 2 * layer.size / 16


def room_for_half(model):
    """Free bytes of a card that holds half of the experts."""
    with GGUFFile.open(model) as file:
        whole = budget(file, parts(file)[0], "1GiB")
    work = whole.activations(whole.chunk(0)) + RESERVE
    return whole.fixed + work + int(0.5 * whole.experts / (1 - KV_SHARE))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_a_card_in_the_plan(model):
    room = room_for_half(model)
    run = CliRunner().invoke(command, [str(model), "--host-memory", "1GiB", "--gpu-memory", str(room)])
    assert run.exit_code == 0 and "the others stay in memory" in run.output
    assert "the others are copied if the link moves " in run.output
    assert "KV cache" in run.output and "no card has been measured" in run.output
    run = CliRunner().invoke(command, [str(model), "--gpu-memory", "10MiB"])
    assert run.exit_code == 1 and "needs" in str(run.exception) and "MiB on the device" in str(run.exception)
    run = CliRunner().invoke(command, [str(model), "--gpu-memory", "auto"])
    assert run.exit_code == 1 and "device='cuda' " in str(run.exception)  # no such PyTorch, or no such card


@pytest.mark.parametrize(("rate", "said"), [(1.0, "computed on the CPU, which is faster"), (1e15, "copied")])
def test_a_slow_link_in_the_plan(model, monkeypatch, rate, said):
    monkeypatch.setattr("gmoe.experts.device.open_device", lambda name: FakeDevice(room_for_half(model)))
    monkeypatch.setattr("gmoe.cli.plan.link_rate", lambda device: rate)
    run = CliRunner().invoke(command, [str(model), "--host-memory", "1GiB", "--gpu-memory", "auto"])
    assert run.exit_code == 0, run.output
    assert f"the others are {said}: the link moves " in run.output
    assert "run --device auto: the CPU, there is no card that torch can use" in run.output
    assert "% of what a token wants would be there" in run.output


def test_auto_in_the_plan(model, monkeypatch):
    monkeypatch.setattr("gmoe.experts.device_auto.usable", lambda: True)
    card = FakeDevice(room_for_half(model))
    monkeypatch.setattr("gmoe.experts.device.open_device", lambda name: card)
    run = CliRunner().invoke(command, [str(model), "--host-memory", "1GiB"])
    assert run.exit_code == 0 and "run --device auto: a fake card, if its kernels" in run.output
    assert "on a GPU with" in run.output

    def old(name):
        raise DeviceError("a GTX 1080 is too old")

    monkeypatch.setattr("gmoe.experts.device.open_device", old)
    run = CliRunner().invoke(command, [str(model), "--host-memory", "1GiB"])
    assert run.exit_code == 0 and "run --device auto: the CPU, a GTX 1080 is too old" in run.output
    assert "on a GPU with" not in run.output


def test_command(model, tmp_path):
    run = CliRunner().invoke(command, [str(model), "--host-memory", "1GiB", "--gpu-memory", "1GiB"])
    assert run.exit_code == 0 and "64 of 64 (100 %) in memory" in run.output
    assert "64 of 64 (100 %); all of them: nothing is copied while it runs" in run.output
    with GGUFFile.open(model) as file:
        whole = budget(file, parts(file)[0], "1GiB")
    small = str(whole.fixed + whole.groups[0].slot_bytes * 20)
    run = CliRunner().invoke(command, [str(model), "--host-memory", small])
    assert run.exit_code == 0 and "20 of 64" in run.output and "made-up routing" in run.output
    assert "most would help" in run.output or "would help much" in run.output
    with GGUFFile.open(model) as file:
        _, made = parts(file)
    rows = {"phase": (made.rows["step"] == 95).astype(np.uint8)}
    for phase, told in ((rows["phase"], "m.gguf's trace"), (0 * rows["phase"], "made-up routing")):
        replace(made, rows={**made.rows, "phase": phase}).save(tmp_path / "t.trace")  # one decode pass, or none
        run = CliRunner().invoke(command, [str(model), "--host-memory", small, "--trace", str(tmp_path / "t.trace")])
        assert run.exit_code == 0 and told in run.output, run.output
    assert CliRunner().invoke(command, [str(model), "--threads", "-1"]).exit_code == 2
    run = CliRunner().invoke(command, [str(write_model(tmp_path / "dense.gguf", "llama"))])
    assert run.exit_code == 1 and "no experts" in run.output
