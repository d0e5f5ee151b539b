"""The cost model: measured on real files, kept, corrected by what runs, and never in the way."""

import json
import logging
from dataclasses import asdict

import pytest

from gmoe.experts.cost import CostModel, Costs, Seen, key
from gmoe.experts.measure import measure
from gmoe.gguf.file import GGUFFile
from gmoe.gguf.hparams import Hparams
from gmoe.gguf.layout import ExpertLayout
from tests.factory import write_model

COSTS = Costs(bandwidth=1e9, latency=1e-4, expert_seconds=1e-3, row_seconds=1e-5, rate=2e9)


def test_it_is_kept(tmp_path):
    model = CostModel(tmp_path / "new", "a")
    assert model.costs is None
    model.save()
    assert not (tmp_path / "new").exists()
    for name in "ab":
        model = CostModel(tmp_path / "new", name)
        model.costs = COSTS
        model.save()
    assert CostModel(tmp_path / "new", "a").costs == CostModel(tmp_path / "new", "b").costs == COSTS
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["costs.json"]


def test_a_broken_file_is_measured_again(tmp_path, caplog):
    rows = ['{"a": {"bandwidth": 1}}', '{"a": 3}', "[1]", "no", json.dumps({"a": asdict(COSTS) | {"latency": "x"}})]
    for text in rows:
        (tmp_path / "costs.json").write_text(text)
        assert CostModel(tmp_path, "a").costs is None
    (tmp_path / "file").write_text("")
    model = CostModel(tmp_path / "file" / "below", "a")
    model.costs = COSTS
    with caplog.at_level(logging.WARNING):
        model.save()
    assert "cannot be written" in caplog.text


def test_it_follows_what_runs(tmp_path):
    model = CostModel(tmp_path, "a")
    model.learn(2, 1.0, Seen(), Seen(1, 1, 1, 1, 1))  # nothing measured: nothing learnt
    assert model.costs is None
    model.costs = COSTS
    before = Seen()
    for n in range(1, 300):
        after = Seen(asked=8 * n, bytes=1000 * n, compute=0.016 * n, reading=0.002 * n, stalled=0.001 * n)
        model.learn(2, 0.027, before, after)
        before = after
    costs = model.costs
    assert costs.expert_seconds == pytest.approx(0.002) and costs.bandwidth == pytest.approx(500_000, rel=0.01)
    assert costs.layer_seconds == pytest.approx(0.005) and costs.passes == 299
    assert costs.machine(2, 0).layer_seconds == costs.layer_seconds
    assert COSTS.machine(4, 8_000_000).layer_seconds == pytest.approx(1e-3)  # unknown: by the bytes


def test_measured_on_a_file(tmp_path):
    path = write_model(tmp_path / "m.gguf", quant="Q8_0")
    file = GGUFFile.open(path)
    hparams = Hparams.from_metadata(file.metadata, "m")
    layout = ExpertLayout(file, hparams.n_layer, hparams.n_expert)
    costs = measure(file, layout, "q8", 0.1)
    assert 0 < costs.expert_seconds < 0.1 and costs.bandwidth > 1e5 and costs.rate > 1e5
    assert key(layout, 2, "q8") != key(layout, 1, "q8")
    file.close()
