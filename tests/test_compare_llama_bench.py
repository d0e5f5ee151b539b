"""gmoe beside a program like llama-bench: medians and ratios of what both print, and a sentence for every failure."""

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.factory import write_model
from tools import compare_llama_bench
from tools.compare_llama_bench import main, report, rows_of, take_turns

FAKE = """#!{python}
import json, sys
from pathlib import Path
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
log = Path(__file__).with_name("log")
turn = len(log.read_text().splitlines()) if log.exists() else 0
log.open("a").write(json.dumps(given) + "\\n")
{body}
"""
WELL = """
speed = {"0": [30.0, 10.0, 20.0], "1": [5.0, 6.0, 90.0]}[given["-rtr"]][turn // 2]
rows = [(int(given["-p"]), 0, 2 * speed), (0, int(given["-n"]), speed)]
print("repacked 3 tensors [ok]")
print(json.dumps([{"build_commit": "abc", "n_prompt": p, "n_gen": n, "avg_ts": s} for p, n, s in rows], indent=2))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "m.gguf", "qwen3moe")


def fake(folder: Path, body: str) -> Path:
    """A program that notes its options and runs `body`."""
    path = folder / "llama-bench"
    path.write_text(FAKE.format(python=sys.executable, body=body))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def row(n_prompt: int, n_gen: int, speed: float, **more: Any) -> dict[str, Any]:
    return {"n_prompt": n_prompt, "n_gen": n_gen, "avg_ts": speed, **more}


def refused(*arguments: object) -> str:
    done: Result = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == 1 and done.stderr.count("\n") == 1, done.output
    return done.stderr


def test_both_run_the_same_tests_in_turn(model: Path, tmp_path: Path) -> None:
    settings = ["--with", "-rtr 0", "--with", "-rtr 1"]
    tests = ["-t", "1", "-p", "4", "-n", "2", "-r", "1"]
    arguments = [str(model), "--bench", str(fake(tmp_path, WELL)), *settings, *tests, "--rounds", "3"]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    asked = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [given.pop("-rtr") for given in asked] == ["0", "1"] * 3
    assert all(given == {"-m": str(model), "-t": "1", "-p": "4", "-n": "2", "-r": "1", "-o": "json"} for given in asked)
    said, _, head, _, prompt, decode = done.output.splitlines()[:6]
    assert "1 threads" in said and "build: abc; rounds: 3; plain reading of the file's pages:" in said
    assert head == "| file | what | unit | gmoe | llama-bench -rtr 0 | llama-bench -rtr 1 | ratio to the better |"
    for line, name, theirs in ((prompt, "pp4", ["40.00", "12.00"]), (decode, "tg2", ["20.00", "6.00"])):
        file, what, unit, ours, *peers, ratio = [cell.strip() for cell in line.strip("|").split("|")]
        assert (file, what, unit, peers) == ("m", name, "tok/s", theirs)
        assert float(ratio) == pytest.approx(float(ours) / float(theirs[0]), abs=0.01)


def test_medians_of_rounds_and_the_better_setting_of_each_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"gmoe": iter([9.0, 1.0, 4.0]), "a": iter([2.0, 8.0, 1.0]), "b": iter([1.0, 1.0, 1.0])}
    order: list[str] = []

    def measured(peer: str, command: list[str]) -> compare_llama_bench.Rows:
        order.append(peer)
        speed = next(speeds[peer])
        rows = [row(512, 0, speed, memory_bandwidth=speed * 1e9), row(0, 16, 3 if peer == "b" else 1)]
        return {compare_llama_bench.test_of(each): each for each in rows}

    monkeypatch.setattr(compare_llama_bench, "measure", measured)
    found = take_turns({peer: [] for peer in speeds}, 3)
    said, *_, prompt, decode = report(tmp_path / "m.gguf", found, 2)
    assert order == ["gmoe", "a", "b"] * 3 and "pages: 1.0 to 9.0 GB/s" in said
    assert prompt == "| m | pp512 | tok/s | 4.00 | 2.00 | 1.00 | 2.00 |"
    assert decode == "| m | tg16 | tok/s | 1.00 | 1.00 | 3.00 | 0.33 |"


def test_tests_have_the_names_of_llama_bench() -> None:
    rows = [row(512, 0, 1), row(0, 16, 1, n_depth=0), row(0, 16, 1, n_depth=64), row(512, 16, 1)]
    assert list(rows_of(json.dumps(rows, indent=2))) == ["pp512", "tg16", "tg16 @ d64", "pp512+tg16"]


@pytest.mark.parametrize(
    "output",
    ["", "| pp512 | 30 |", "[\n", "[\n1]", '[\n{"n_prompt": 4, "n_gen": 0}]', '[\n{"avg_ts": "fast"}]', '{"rows": 1}'],
)
def test_what_is_not_its_json_is_refused(output: str) -> None:
    with pytest.raises(ValueError, match="did not print what llama-bench prints with -o json"):
        rows_of(output)


def test_a_test_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="printed a test twice or without a speed"):
        rows_of(json.dumps([row(512, 0, 1), row(512, 0, 2)], indent=1))
    with pytest.raises(ValueError, match="printed a test twice or without a speed"):
        rows_of(json.dumps([row(512, 0, 0)], indent=1))


def test_a_file_that_is_no_model_is_gmoes_sentence(tmp_path: Path) -> None:
    model = tmp_path / "no.gguf"
    model.write_text("no model")
    assert "no.gguf: gmoe ended with 1: Error: " in refused(model, "--bench", fake(tmp_path, WELL))
    assert not (tmp_path / "log").exists()


def test_failures_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = json.dumps([row(4, 0, 1.0, memory_bandwidth=1e9), row(0, 2, 1.0, memory_bandwidth=1e9)], indent=2)
    monkeypatch.setattr(compare_llama_bench, "GMOE", [sys.executable, "-c", f"print({ours!r})"])
    few = ["-p", 4, "-n", 2]
    model = tmp_path / "m.gguf"
    model.touch()
    nowhere = refused(model, "--bench", tmp_path / "nowhere", *few)
    assert "nowhere: No such file or directory; `cmake" in nowhere and "makes one" in nowhere
    no_program = tmp_path / "text"
    no_program.write_text("no program")
    assert "text: Permission denied; `cmake" in refused(model, "--bench", no_program, *few)
    fails = fake(tmp_path, "print('usage'); print('error: invalid parameter', file=sys.stderr); sys.exit(3)")
    assert "m.gguf: llama-bench -x 1 ended with 3: error: invalid parameter\n" in refused(
        model, "--bench", fails, "--with", "-x 1", *few
    )
    assert "llama-bench ended with 3: it said nothing\n" in refused(
        model, "--bench", fake(tmp_path, "sys.exit(3)"), *few
    )
    assert "llama-bench did not print what llama-bench prints with -o json\n" in refused(
        model, "--bench", fake(tmp_path, "print('hello')"), *few
    )
    one = json.dumps([row(4, 0, 1.0)], indent=1)
    assert "llama-bench printed no tg2\n" in refused(model, "--bench", fake(tmp_path, f"print('''{one}''')"), *few)
    assert "m.gguf: No closing quotation\n" in refused(model, "--bench", fails, "--with", "'-x", *few)
