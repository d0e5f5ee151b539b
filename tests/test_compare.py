"""compare and calibrate: exact is at no distance from itself, budgets choose and refuse, shares are told."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import gmoe
from gmoe.cli.compare import options_of
from gmoe.cli.main import cli
from gmoe.experts import calibration
from gmoe.experts.calibration import Calibration, Setting, shares
from gmoe.experts.fingerprint import fingerprint
from gmoe.gguf.file import GGUFFile
from gmoe.passes.calibrate import MARGIN, SURE, bound
from gmoe.passes.compare import Measured, base_of, cost, in_turn, speedups
from gmoe.passes.perplexity import Divergence, Mean
from gmoe.passes.twin import twin
from tests.factory import Shape, write_model
from tests.test_miss import small

TEXT = "the cat sat on the mat and " * 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    (folder / "text.txt").write_text(TEXT)
    return write_model(folder / "tiny.gguf", quant="F16", shape=Shape(ff_exp=64, expert=16, used=4))


def invoke(*args: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, args)])


def calibrated(model: Path, *settings: Setting) -> None:
    with GGUFFile.open(model) as file:
        calibration.save(file, Calibration(fingerprint(file), [1.0, 2.0], list(settings)))


def setting(kld: float, cost: float, drop: float, resident: float = 0.2, reader: str = "direct") -> Setting:
    options = {"miss": "skip", "policy": {"drop": drop}}
    return Setting(options, kld, 1.2 * kld, cost, cost + 0.05, 0.1, resident, reader)


def test_options_are_fields_and_knobs() -> None:
    found = options_of("host_memory=500000 gpu_memory=4096 miss=skip drop=0.5 evict=lru", 64)
    assert found.gpu_memory == "4096"
    assert (found.host_memory, found.miss, found.evict, found.policy) == ("500000", "skip", "lru", {"drop": 0.5})
    assert found.context == 64


def test_shares_are_parts_of_the_routed_weight() -> None:
    def stats(skip: float, routed: float) -> dict[str, Any]:
        actions = {name: {"count": 0, "mass": 0.0} for name in ("load", "cpu", "twin", "skip", "substitute")}
        actions["skip"]["mass"] = skip
        return {"actions": actions, "routed": {"mass": routed}, "rerouted": {"mass": 1.0}}

    assert shares(stats(2.0, 10.0))["skip"] == 0.2
    assert shares(stats(2.0, 10.0), stats(1.0, 2.0)) == {
        "cpu": 0, "twin": 0, "skip": 1 / 8, "substitute": 0, "rerouted": 0,
    }  # fmt: skip
    assert shares(stats(0.0, 0.0))["skip"] == 0.0


def test_exact_is_at_no_distance_and_a_choice_is(model: Path) -> None:
    memory = small(model)
    args = (
        "compare",
        model,
        "-f",
        model.with_name("text.txt"),
        "-c",
        16,
        "--chunks",
        3,
        "--a",
        f"host_memory={memory}",
    )
    result = invoke(*args, "--b", f"host_memory={memory} evict=lfu")
    assert result.exit_code == 0, result.stderr
    a, b = (line.split() for line in result.stdout.splitlines()[1:])
    assert a[:2] == ["A", b[1]] and a[2] == b[2] == "0.00000" and a[5] == "100.00%" and a[-1] == "nothing"
    lossy = invoke(*args, "--b", f"host_memory={memory} miss=skip drop=1024").stdout.splitlines()[2]
    assert float(lossy.split()[2]) > 0.001 and "skip " in lossy


def test_calibrate_measures_a_ladder_and_keeps_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ladder = [{"miss": "skip", "policy": {"drop": 0}}, {"miss": "skip", "policy": {"drop": 1024}}]
    monkeypatch.setattr("gmoe.cli.compare.ladder", lambda twin: iter(ladder))
    text = model.with_name("text.txt")
    args = ("calibrate", model, "-f", text, "-f", text, "--reader", "direct", "-c", 16, "--chunks", 2, "--host-memory")
    result = invoke(*args, small(model))
    assert result.exit_code == 0, result.stderr
    with GGUFFile.open(model) as file:
        none, all = calibration.load(file).settings
    assert none.changed == 0 and none.kld == pytest.approx(0, abs=1e-6)
    assert all.kld_high > all.kld > 0 and all.changed > 0 and 0.1 < all.resident < 1
    assert all.reader == "direct" and 0 < all.cost < all.cost_high
    assert "nothing would ever be missed" in invoke(*args, "1GiB").stderr


def measured(seconds: tuple[float, ...], *kld: list[float]) -> Measured:
    found = Divergence()
    found.kld = Mean([np.array(values) for values in kld])
    return Measured(4 * len(seconds), seconds, 0.0, {}, found)


def test_a_bound_is_of_the_worst_text() -> None:
    kld = measured((1.0, 1.0, 1.0), [0.01, 0.01], [0.01, 0.01], [0.02, 0.04]).found.kld
    assert bound(kld, [2, 1]) == pytest.approx(MARGIN * (0.03 + SURE * 0.01))
    assert bound(kld, [3]) < bound(kld, [2, 1])


def test_cost_is_told_with_its_error() -> None:
    exact = measured((2.0, 4.0)), measured((4.0, 4.0))
    assert cost(measured((1.0, 2.0)), exact) == (0.5, 0.0)
    part, error = cost(measured((0.5, 2.5)), exact)
    assert part == 0.5 and error == pytest.approx(0.5 / 3)
    assert cost(measured((1.0,)), [measured((2.0,))]) == (0.5, math.inf)


def test_models_in_turn_are_measured_as_alone(model: Path) -> None:
    windows = [[3, 40, 7, 9, 22, 61, 5, 30], [9, 8, 7, 6, 5, 4, 3, 2]]
    kinds = {"exact": {}, "skip": {"miss": "skip", "policy": {"drop": 1024}}}
    plain = {"context": 64, "max_sequences": 1, "host_memory": small(model), "evict": "lru", "prefetch": "none"}
    llms = {name: gmoe.LLM.load(model, gmoe.RuntimeOptions(**plain, **more)) for name, more in kinds.items()}
    base = base_of(llms["exact"], windows)
    found = in_turn(llms, windows, base, windows[0])
    for llm in llms.values():
        llm.close()
    assert found["exact"].found.kld.mean == pytest.approx(0, abs=1e-6) and found["exact"].changed == 0
    assert found["skip"].found.kld.mean > 0.001 and found["skip"].shares["skip"] > 0
    assert found["skip"].bytes_per_token == 0 < found["exact"].bytes_per_token
    assert [len(got.found.kld.values) for got in found.values()] == [2, 2] and found["exact"].tokens == 16
    ratios = speedups(found["skip"], found["exact"])
    assert ratios == [b / a for a, b in zip(found["skip"].seconds, found["exact"].seconds, strict=True)]


def test_a_setting_with_a_twin_holds_with_the_memory_it_was_calibrated_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = tmp_path / "twin.gguf"
    twin(model, twins, "Q4_0")
    ladder = [{"miss": "twin", "twin": twins, "policy": {"share": 1.0}}]
    monkeypatch.setattr("gmoe.cli.compare.ladder", lambda twin: iter(ladder))
    monkeypatch.setattr(Calibration, "within", lambda self, kld, on_device: self.settings[0])
    args = ("calibrate", model, "-f", model.with_name("text.txt"), "-c", 16, "--chunks", 2, "--twin", twins)
    assert invoke(*args, "--host-memory", small(model)).exit_code == 0
    options = gmoe.RuntimeOptions(context=64, max_sequences=1, host_memory=small(model), max_kld=9.0)
    with gmoe.LLM.load(model, options) as llm:
        assert llm.cache.setting is not None and llm.cache.setting.options["policy"]["twin_share"] > 0
        llm.logits([3, 40, 7, 9, 22, 61, 5, 30], step=1)
        assert llm.stats["actions"]["twin"]["count"] > 0


def test_a_budget_chooses_the_cheapest_within_and_tells_its_estimate(model: Path) -> None:
    steps = setting(0.001, 0.9, 0.1), setting(0.008, 0.6, 0.5), setting(0.09, 0.4, 1.0)
    calibrated(model, *steps, setting(0.0, 1.1, 0), setting(0.0001, 0.97, 0.2))  # not faster; not surely faster
    memory = small(model)

    def loaded(**options: Any) -> gmoe.LLM:
        return gmoe.LLM.load(model, gmoe.RuntimeOptions(context=64, max_sequences=1, host_memory=memory, **options))

    for options, drop in [({"quality": "high"}, 0.5), ({"max_kld": 0.005}, 0.1), ({"max_kld": 0.2}, 1.0)]:
        with loaded(**options) as llm:
            assert llm.options.policy == {"drop": drop}
            llm.logits([3, 40, 7, 9, 22, 61, 5, 30], step=1)
            stats = llm.stats
        changed = stats["shares"]["skip"]
        assert llm.cache.setting is not None and stats["estimated_kld"] == pytest.approx(
            llm.cache.setting.kld * changed / 0.1
        )
    with loaded(max_kld=0.0005) as llm:
        assert llm.options.miss == "auto"
        assert any("no calibrated setting is both within the budget and faster" in notice for notice in llm.notices)
    with loaded(quality="exact") as llm:
        assert llm.options.miss == "auto" and "estimated_kld" not in llm.stats
    for other, reader, why in [
        (setting(0.001, 0.5, 1.0, resident=0.9), "direct", "calibrated with 90% of the experts in memory"),
        (setting(0.001, 0.5, 1.0), "mapped", "calibrated past the page cache"),
    ]:
        calibrated(model, other)
        with loaded(quality="fast", reader=reader) as llm:
            assert any(why in notice for notice in llm.notices) and llm.cache.setting is None
            llm.logits([3, 40, 7, 9, 22, 61, 5, 30], step=1)
            assert llm.stats["actions"]["skip"]["count"] == 0


def test_refusals(model: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.gguf", seed=5)
    calibrated(model, setting(0.001, 0.5, 1.0))

    def refused(path: Path, **options: Any) -> str:
        with pytest.raises(ValueError) as error:
            gmoe.LLM.load(path, gmoe.RuntimeOptions(context=64, **options))
        return str(error.value)

    assert "the model was never calibrated; `gmoe calibrate" in refused(other, quality="high")
    assert "choose the lossy policies; miss='skip' cannot be given as well" in refused(
        model, quality="high", miss="skip"
    )
    assert "quality is 'best'; it must be one of exact, high" in refused(model, quality="best")
    assert "max_kld is -1; it must be a number of at least 0" in refused(model, max_kld=-1)
    assert "give one of them" in refused(model, max_kld=0.1, quality="fast")
    with GGUFFile.open(model) as file, GGUFFile.open(other) as second:
        text = calibration.path_of(file).read_text()
        calibration.path_of(second).write_text(text)
        assert "a calibration of another model" in refused(other, quality="high")
        calibration.path_of(second).write_text(json.dumps({"format": 7}))
        assert "not a calibration, or a damaged one" in refused(other, quality="high")


def test_sensitivity_is_measured_kept_and_used(model: Path) -> None:
    calibrated(model)
    args = ("-f", model.with_name("text.txt"), "-c", 16, "--chunks", 3)
    result = invoke("trace", "sensitivity", model, *args)
    assert result.exit_code == 0, result.stderr
    with GGUFFile.open(model) as file:
        kept = calibration.load(file).sensitivity
    assert result.stdout == "".join(f"layer {n:3}  {value:.4f}\n" for n, value in enumerate(kept))
    assert len(kept) == 2 and all(value >= 0 for value in kept)
    knobs = {"threshold": 1e5}
    options = gmoe.RuntimeOptions(context=64, max_sequences=1, route="adaptive_k", policy=knobs)
    with gmoe.LLM.load(model, options) as llm:
        llm.logits([3, 40, 7, 9], step=1)
        assert llm.stats["rerouted"]["count"] == 4 * 2 * 3  # tokens, layers, and of four experts all but the first
    calibrated(model)
    with GGUFFile.open(model) as file:
        calibration.save(file, Calibration(fingerprint(file)))
    with pytest.raises(ValueError, match="no sensitivities; `gmoe trace sensitivity"):
        gmoe.LLM.load(model, options)
