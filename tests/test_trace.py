"""Traces: what is recorded comes back, and what is damaged or another model's is refused."""

import csv
import json
import os
import re
import resource
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from traces import SHARED, synthetic

import gmoe
from gmoe.cli.trace import _save
from gmoe.cli.trace import trace as command
from gmoe.experts.analysis import by_task, difference, reuse
from gmoe.experts.recorder import Recorder
from gmoe.experts.route_csv import from_route_csv
from gmoe.experts.trace import Header, Trace, TraceError
from gmoe.experts.trace_csv import from_csv, to_csv
from gmoe.whole import whole
from tests.factory import write_model

CSV = """# route_trace v1
# model=/a/b.gguf arch=x n_layer=2 n_expert=8 n_expert_used=2
# layer=0 expert_bytes=100 dense_bytes=1
# layer=1 expert_bytes=200 dense_bytes=1
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
0,0,0,0,0,5,0.75,0,100
0,0,0,0,1,2,0.25,0,100
0,0,1,0,0,5,0.5,1,0
0,0,1,0,1,7,0.5,0,100
0,0,1,1,0,1,0.5,0,200
0,0,1,1,1,0,0.5,0,200
0,1,2,0,0,5,0.5,1,0
0,1,2,0,1,2,0.5,1,0
0,1,2,1,0,1,0.5,1,0
0,1,2,1,1,3,0.5,0,200
"""


def same(a: Trace, b: Trace) -> bool:
    columns = all((a.rows[name] == b.rows[name]).all() for name in a.rows)
    return a.header == b.header and columns and (a.ids == b.ids).all() and (a.weights == b.weights).all()


def test_round_trip(tmp_path):
    trace = synthetic()
    path = tmp_path / "model.trace"
    trace.save(path)
    assert same(Trace.load(path, "f00d"), trace)
    assert [p.name for p in tmp_path.iterdir()] == ["model.trace"]
    assert path.stat().st_size < 8 * trace.ids.size


def test_a_run_that_ends_beside_another_damages_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, trace, write = tmp_path / "m.trace", synthetic(), np.savez_compressed

    def interrupted(file, **columns) -> None:
        monkeypatch.setattr(np, "savez_compressed", write)
        file.write(b"half")
        synthetic(steps=5).save(path)
        assert len(Trace.load(path)) == len(synthetic(steps=5))
        file.seek(0)
        write(file, **columns)

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    trace.save(path)
    assert same(Trace.load(path), trace) and [file.name for file in tmp_path.iterdir()] == ["m.trace"]


def test_recorder_copies_and_takes_the_last_rows():
    recorder = Recorder(Header("m", "", 2, 4, (1, 1)))
    ids, weights = np.array([[0, 1], [2, 3]], dtype=np.int16), np.ones((2, 2), dtype=np.float32)
    recorder.begin_step(np.array([7, 8]), np.array([0, 1]), np.array([3, 9]))
    recorder.record(0, ids, weights)
    ids[:] = 3
    recorder.record(1, ids[1:], weights[1:])
    first, second = recorder.trace().events()
    assert first.ids.tolist() == [[0, 1], [2, 3]]
    assert (second.layer, second.request, second.phase, second.ids.tolist()) == (1, 8, 1, [[3, 3]])
    assert recorder.trace().rows["position"].tolist() == [3, 9, 9]


def test_of_a_pass_that_runs_again_the_last_counts():
    recorder = Recorder(Header("m", "", 3, 4, (1, 1, 1)))
    for step, tries in ((0, [(0, 1, 2)]), (1, [(0, 1), (0, 1, 2)]), (2, [(0,), (0,), (0, 1, 2)])):
        recorder.begin_step(np.zeros(1), np.ones(1), np.array([step]))
        for n, layers in enumerate(tries):
            for layer in layers:
                recorder.record(layer, np.array([[n, 3]]), np.ones((1, 2)))
    told = [(event.layer, event.ids.tolist()) for event in recorder.trace().events()]
    assert told == [(layer, [[n, 3]]) for n in range(3) for layer in range(3)]


def test_empty_trace(tmp_path):
    empty = Recorder(Header("m", "", 1, 4, (1,))).trace()
    empty.save(tmp_path / "t")
    assert list(Trace.load(tmp_path / "t").events()) == []


def test_damage_is_refused(tmp_path):
    path = tmp_path / "t"
    synthetic(steps=5).save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[:-30], whole[: len(whole) // 2], whole[:-1], b"PK" + whole):
        path.write_bytes(damaged)
        with pytest.raises(TraceError, match="not a routing trace, or a damaged one"):
            Trace.load(path)


def test_a_flipped_byte_is_refused_or_harmless(tmp_path):
    """A zip holds bytes that say nothing (times, attributes); all others are refused, none changes a number."""
    path = tmp_path / "t"
    synthetic(steps=3, requests=1).save(path)
    whole, trace = path.read_bytes(), Trace.load(path)
    refused = 0
    for at in range(0, len(whole), 7):
        path.write_bytes(_flipped(whole, at))
        try:
            assert same(Trace.load(path), trace)
        except TraceError:
            refused += 1
    assert refused > len(whole) / 7 / 2


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def test_another_models_trace_is_refused(tmp_path):
    synthetic(steps=5).save(tmp_path / "t")
    with pytest.raises(TraceError, match=r"a trace of another model \(made up\)"):
        Trace.load(tmp_path / "t", "beef")


def test_impossible_numbers_are_refused(tmp_path):
    trace = synthetic(steps=5)
    trace.ids[3, 0] = 99
    trace.save(tmp_path / "t")
    with pytest.raises(TraceError, match="an expert is out of range"):
        Trace.load(tmp_path / "t")


def test_rows_whose_weights_are_no_numbers_are_not_kept(tmp_path: Path) -> None:
    trace = synthetic(steps=5)
    scores, matrices = np.zeros((len(trace), 16), np.float16), np.ones((2, 4, 16), np.uint16)
    trace.weights[3, 0], trace.weights[4, 1], trace.weights[7] = np.nan, 1e6, -np.inf
    replace(trace, scores=scores, matrices=matrices).save(tmp_path / "t")
    again, kept = Trace.load(tmp_path / "t"), np.delete(np.arange(len(trace)), [3, 4, 7])
    assert same(again, trace._some(kept)) and len(again.scores) == len(kept) and len(again.matrices) == 2


def test_scores_and_matrices_come_along(tmp_path):
    trace = synthetic(steps=2)
    scores = np.linspace(0, 1, len(trace) * 16, dtype=np.float16).reshape(-1, 16)
    full = replace(trace, scores=scores, matrices=np.full((2, 4, 16), 7, np.uint16))
    full.save(tmp_path / "t")
    again = Trace.load(tmp_path / "t")
    assert (again.scores == scores).all() and (again.matrices == 7).all()
    replace(full, scores=scores[:-1]).save(tmp_path / "t")
    with pytest.raises(TraceError, match="scores"):
        Trace.load(tmp_path / "t")


def test_a_limited_recorder_forgets_whole_passes():
    recorder = Recorder(Header("m", "", 2, 4, (1, 1)), limit=20)
    for step in range(50):
        recorder.begin_step(np.zeros(1), np.ones(1), np.array([step]))
        for layer in range(2):
            recorder.record(layer, np.array([[1, 2]]), np.ones((1, 2)))
    trace = recorder.trace()
    assert 20 <= len(trace) <= 26 and trace.rows["position"][-1] == 49
    assert [event.layer for event in trace.events()] == [0, 1] * (len(trace) // 2)


def test_a_pass_of_more_rows_than_the_limit_stays_until_others_take_its_place() -> None:
    recorder = Recorder(Header("m", "", 2, 4, (1, 1)), limit=20)
    lengths = []
    for rows in (30, *[1] * 12):
        recorder.begin_step(np.zeros(rows), np.ones(rows), np.arange(rows))
        for layer in range(2):
            recorder.record(layer, np.zeros((rows, 2)), np.ones((rows, 2)))
        lengths.append(recorder.rows)
    assert lengths == [*range(60, 82, 2), 22, 24]


def test_reuse_and_differences():
    recorder = Recorder(Header("m", "", 1, 4, (1,), ("a", "b")))
    for step, expert in enumerate((0, 0, 1, 0)):
        recorder.begin_step(np.array([step // 2]), np.ones(1), np.array([step]))
        recorder.record(0, np.array([[expert]]), np.ones((1, 1)))
    assert reuse(recorder.trace()).tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 2]
    a, b = by_task(recorder.trace(), 9).values()
    assert (a.tolist(), b.tolist()) == ([[2, 0, 0, 0]], [[1, 1, 0, 0]])
    assert difference(a, b) == 0.5 and difference(a, a) == 0
    recorder.header = replace(recorder.header, tasks=("", ""))  # as prompts without a task leave it
    assert list(by_task(recorder.trace(), 9)) == ["request 0", "request 1"]


def test_a_trace_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = synthetic(steps=2000)
    replace(trace, ids=np.zeros_like(trace.ids), rows={n: np.zeros_like(c) for n, c in trace.rows.items()}).save(
        tmp_path / "t.trace"
    )
    assert len(Trace.load(tmp_path / "t.trace")) == len(trace)
    monkeypatch.setattr("gmoe.experts.trace.MOST_BYTES", 1000)
    with pytest.raises(TraceError, match="t.trace: not a routing trace, .*its columns would take [0-9]+ bytes"):
        Trace.load(tmp_path / "t.trace")


def test_of_many_tasks_only_those_that_are_shown_are_counted() -> None:
    trace = synthetic(steps=200)
    request = np.arange(len(trace), dtype=np.int32)
    trace = replace(trace, rows={**trace.rows, "request": request}, header=replace(trace.header, tasks=()))
    assert list(by_task(trace, 3)) == ["request 0", "request 1", "request 2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("trace") / "m.gguf")


def test_a_model_is_recorded(model, tmp_path):
    with gmoe.LLM.load(model, gmoe.RuntimeOptions(context=128)) as llm:
        recorder = llm.record()
        for _ in range(2):
            list(llm.run([1, 2, 3], gmoe.SamplingParams(max_tokens=4, temperature=0), ignore_end=True))
        llm.read([5, 6, 7, 8], 2)
        trace = recorder.trace()
        routed = len(llm.layout.layers)
    first = trace.rows["layer"] == trace.rows["layer"][0]
    assert trace.rows["phase"][first].tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3 + [0, 0, 1, 1]
    assert trace.rows["position"][first].tolist() == [0, 1, 2, 3, 4, 5] * 2 + [0, 1, 2, 3]
    assert trace.rows["request"][first].tolist() == [0] * 6 + [1] * 6 + [2] * 4
    assert len(trace) == routed * first.sum()
    trace.save(tmp_path / "t")
    with gmoe.LLM.load(write_model(tmp_path / "other.gguf", seed=5), gmoe.RuntimeOptions(context=64)) as other:
        with pytest.raises(TraceError, match="another model"):
            Trace.load(tmp_path / "t", other.record().header.fingerprint)


def test_record_command(model, tmp_path, monkeypatch):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"task": "x", "prompt": "hello"}\nthe world\n')
    args = ["record", str(model), "--context", "128", "-o", str(tmp_path / "t.trace")]
    ran = CliRunner().invoke(command, [*args, "--prompts", str(prompts), "-n", "3"])
    assert ran.exit_code == 0, ran.output
    assert Trace.load(tmp_path / "t.trace").header.tasks == ("x", "")
    monkeypatch.chdir(tmp_path)
    here = CliRunner().invoke(command, [*args[:-2], "--prompts", str(prompts), "-n", "1", "--limit", "1"])
    assert f"{tmp_path / model.stem}.trace: " in here.stderr and (tmp_path / f"{model.stem}.trace").is_file()
    ran = CliRunner().invoke(command, [*args, "-f", str(prompts), "--window", "16", "--limit", "2"])
    assert ran.exit_code == 0 and ran.stdout == "" and "of 2 requests" in ran.stderr
    png = tmp_path / "a.png"
    shown = CliRunner().invoke(command, ["show", str(tmp_path / "t.trace"), "--plot", str(png)])
    assert shown.exit_code == 0 and "passes until" in shown.output and png.read_bytes()[1:4] == b"PNG"
    assert CliRunner().invoke(command, args).exit_code == 2
    for wrong in (["--window", "0"], ["--limit", "-1"], ["-n", "0"]):
        assert CliRunner().invoke(command, [*args, "-f", str(prompts), *wrong]).exit_code == 2
    before, empty = (tmp_path / "t.trace").read_bytes(), tmp_path / "empty"
    empty.write_text("\n")
    nothing = CliRunner().invoke(command, [*args, "--prompts", str(empty)])
    assert nothing.exit_code == 1 and f"{empty}: there is nothing in it" in nothing.output
    for words in (["export", "T", "-o", "T"], ["show", "T", "--plot", "T"]):
        told = CliRunner().invoke(command, [str(tmp_path / "t.trace") if word == "T" else word for word in words])
        assert told.exit_code == 2 and "is what is read" in told.output
    assert (tmp_path / "t.trace").read_bytes() == before
    empty.write_bytes(b"a \xff b")
    assert CliRunner().invoke(command, [*args, "-f", str(empty)]).exit_code == 0


def test_a_recording_that_cannot_be_written_goes_elsewhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert _save(synthetic(steps=2), tmp_path / "missing" / "t.trace") == tmp_path / "t.trace"
    assert "cannot be written" in capsys.readouterr().err
    assert Trace.load(tmp_path / "t.trace")


def test_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(CSV)
    trace = from_route_csv(path)
    assert trace.header == Header("b.gguf", "csv:b.gguf", 2, 8, (100, 200))
    got = [(e.step, e.phase, e.layer, e.ids.tolist()) for e in trace.events()]
    assert got == [
        (1, 0, 0, [[5, 2], [5, 7]]), (1, 0, 1, [[1, 0]]), (2, 1, 0, [[5, 2]]), (2, 1, 1, [[1, 3]])
    ]  # fmt: skip
    again = [f"1{line[1:]}" for line in CSV.splitlines() if line.startswith("0,")]
    path.write_text(CSV + "\n".join(again) + "\n")
    both = from_route_csv(path)
    assert [(e.step, e.request, e.phase) for e in both.events()][::2] == [(1, 0, 0), (2, 0, 1), (4, 1, 0), (5, 1, 1)]
    assert both.tail(3).rows["request"].tolist() == [0, 0, 1, 1, 1, 1, 1]
    huge = CSV.replace("n_layer=2", "n_layer=2000000000"), CSV.replace(",5,0.5,1,0", ",99999999999999999999,0.5,1,0")
    for broken in ("", "x", CSV[:-20], CSV.replace("n_expert=8", "n_expert=4"), CSV.replace("phase", "phrase"), *huge):
        path.write_text(broken)
        with pytest.raises(TraceError, match="not a whole route_trace v1"):
            from_route_csv(path)


def test_what_is_exported_is_read_again(tmp_path: Path) -> None:
    trace, path = synthetic(steps=5), tmp_path / "t.csv"
    trace = replace(trace, header=replace(trace.header, model='a "#{1},\u00e9', tasks=("x,y",)))
    path.write_text("".join(to_csv(trace)))
    assert same(from_csv(path), trace)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["expert"]) for row in rows] == trace.ids.ravel().tolist()
    assert json.loads(rows[0]["header"])["model"] == trace.header.model and not any(row["header"] for row in rows[1:])


def test_an_export_that_does_not_say_whose_it_is_is_read_for_a_model(tmp_path: Path) -> None:
    trace, path = synthetic(steps=5), tmp_path / "t.csv"
    bare = [",".join(line.rstrip().split(",", 8)[:8]) + "\n" for line in to_csv(trace)]
    path.write_text("".join(bare))
    assert same(from_csv(path, trace.header), trace)
    with pytest.raises(TraceError, match="no line says in the column `header` whose trace it is"):
        from_csv(path)
    path.write_text("".join(to_csv(trace)))
    with pytest.raises(TraceError, match="a trace of another model"):
        from_csv(path, replace(trace.header, fingerprint="other"))


def test_an_export_that_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    lines = list(to_csv(synthetic(steps=5)))
    *row, said = lines[1].rstrip().split(",", 8)

    def with_row(*fields: str) -> list[str]:
        return [lines[0], ",".join(fields) + "\n", *lines[2:]]

    for broken, said_of_it in (
        (lines[1:], "its first line is neither that of `gmoe trace export` nor"),
        (with_row(*row, '"{}"'), "missing"),
        (with_row(*row, '"{"'), "not a whole trace of `gmoe trace export`"),
        (with_row(*row, ""), "no line says in the column `header` whose trace it is"),
        (lines[:1], "no line says"),
        (lines[:-1], "a token lacks some of its experts"),
        (with_row(*row[:-2], "99", row[-1], said), "an expert is out of range"),
        (with_row(*row[:-2], "1e9", row[-1], said), "expert is not a whole number"),
        (with_row(*row[:-1], "x", said), "could not convert"),
        ([*lines[:2], "1,2\n", *lines[3:]], "column"),
        (with_row(*row, said.replace('""n_expert"": 16', '""n_expert"": 1000000000')), "more than there can be"),
    ):
        path.write_text("".join(broken))
        with pytest.raises(TraceError, match=re.escape(said_of_it)) as error:
            from_csv(path)
        assert str(path) in str(error.value)


def test_command(tmp_path):
    path = tmp_path / "t.npz"
    synthetic(steps=5).save(path)
    shown = CliRunner().invoke(command, ["show", str(path)])
    assert shown.exit_code == 0 and "experts      4 layers x 16, 2 used" in shown.output
    exported = CliRunner().invoke(command, ["export", str(path)])
    assert exported.output.count("\n") == 1 + synthetic(steps=5).ids.size
    path.write_bytes(b"x")
    refused = CliRunner().invoke(command, ["show", str(path)])
    assert refused.exit_code == 1 and "damaged" in refused.output


def test_a_full_disk_leaves_no_half_of_an_export_or_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "t.trace"
    synthetic(steps=50).save(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for asked in (["export", path, "-o", tmp_path / "t.csv"], ["show", path, "--plot", tmp_path / "t.png"]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            result = CliRunner().invoke(command, list(map(str, asked)))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert result.exit_code == 1 and f"Error: {asked[-1]}: File too large" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["t.trace"]


def test_a_device_is_written_itself(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        heard = pool.submit(pipe.read_text)
        with whole(pipe) as part:
            part.write_text("all")
        assert heard.result() == "all" and pipe.is_fifo()


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, whole(tmp_path / "none" / "t.csv") as part:
        part.write_text("")
    assert raised.value.filename == str(tmp_path / "none" / "t.csv")


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/traces is not here")
@pytest.mark.parametrize("name,layers,k,steps", [("qwen", 48, 6, 128), ("gemma", 30, 6, 128), ("gptoss", 36, 2, 64)])
def test_shared_traces(name, layers, k, steps):
    trace = from_route_csv(SHARED / f"{name}.route.csv")
    decode = trace.rows["phase"] == 1
    assert (trace.header.n_layer, trace.ids.shape[1]) == (layers, k)
    assert len(np.unique(trace.rows["step"][decode])) == steps


def test_scores_are_recorded_where_they_are_asked_for(tmp_path: Path) -> None:
    with gmoe.LLM.load(write_model(tmp_path / "m.gguf", "qwen3moe"), gmoe.RuntimeOptions(context=64)) as llm:
        recorder = llm.record(scores=True)
        llm.logits([3, 4, 5])
        llm.logits([3, 4, 5], step=1)
        trace = recorder.trace()
    first = trace.rows["layer"] == 0
    assert trace.rows["phase"][first].tolist() == [0, 0, 0, 0, 1, 1]  # token by token it counts as generated
    assert trace.scores is not None and trace.scores.shape == (len(trace), trace.header.n_expert)
    best = np.sort(np.argsort(-trace.scores, axis=1, kind="stable")[:, : trace.ids.shape[1]], axis=1)
    assert np.mean(best == np.sort(trace.ids, axis=1)) > 0.9, "but for ties at half precision"
    trace.save(tmp_path / "t.npz")
    again = Trace.load(tmp_path / "t.npz")
    assert again.scores is not None and np.array_equal(again.scores, trace.scores)


def test_a_wrong_line_of_the_prompts_is_named(tmp_path: Path) -> None:
    model, prompts = tmp_path / "m.gguf", tmp_path / "prompts.txt"
    write_model(model, "qwen3moe", seed=1)
    for line, said in (
        ('{"prompt": ', "is no JSON"),
        ('{"task": "a"}', 'has no "prompt"'),
        ('{"prompt": 3}', "has no"),
    ):
        prompts.write_text(f"Hello.\n\n{line}\n")
        asked = ["record", str(model), "--prompts", str(prompts), "-o", str(tmp_path / "t.trace")]
        result = CliRunner().invoke(command, asked)
        assert result.exit_code == 1 and f"{prompts}: line 3 {said}" in result.stderr
