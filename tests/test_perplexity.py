"""Perplexity by hand, the file of logits and back, divergences that are zero where they must be, refusals."""

import math
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from gmoe.cli.main import cli
from gmoe.passes.perplexity import Base, BaseWriter, Divergence, log_probs, perplexities, ppl, windows
from tests.factory import write_model

TEXT = "the cat sat on the mat and " * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("perplexity")
    write_model(folder / "tiny.gguf")
    write_model(folder / "other.gguf", seed=1)
    (folder / "text.txt").write_text(TEXT)
    return folder


def invoke(*args: object) -> Result:
    return CliRunner().invoke(cli, ["perplexity", *map(str, args), "--kv-type", "f32"])


def test_windows_begin_with_bos_and_a_rest_is_left_out() -> None:
    assert windows(range(10, 31), 8, None) == [list(range(10, 18)), list(range(18, 26))]
    assert windows(range(10, 31), 8, 1)[1] == [1, *range(19, 26)]
    assert len(windows(range(100), 8, None, chunks=3)) == 3
    with pytest.raises(ValueError, match="the text has 15 tokens; a context of 8 needs 16 at least"):
        windows(range(15), 8, None)


def test_the_second_half_of_a_window_is_scored() -> None:
    table = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], np.float32))
    cut = [[0, 1, 2, 2, 1, 0, 0, 1], [2, 2, 1, 1, 1, 0, 2, 0]]
    found = [nll.mean for nll, _ in perplexities(cut, lambda ids: table[list(ids)])]
    first = [0.1, 0.5, 0.25]  # 1 -> 0, 0 -> 0, 0 -> 1: the last three of eight, given the one before
    second = [0.1, 0.25, 0.2]
    assert math.isclose(math.exp(found[0]), math.prod(first) ** (-1 / 3), rel_tol=1e-6)
    assert math.isclose(math.exp(found[1]), math.prod(first + second) ** (-1 / 6), rel_tol=1e-6)


@pytest.mark.parametrize("n_vocab", [7, 8])
def test_logits_are_written_and_read_back(tmp_path: Path, n_vocab: int) -> None:
    rng, cut = np.random.default_rng(0), [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]
    logits = rng.standard_normal((2, 2, n_vocab)).astype(np.float32) * 3
    with (tmp_path / "base").open("wb") as file:
        writer = BaseWriter(file, cut, n_vocab)
        for rows in logits:
            writer.add(rows)
    base = Base(tmp_path / "base")
    assert (base.context, base.n_vocab, base.windows) == (6, n_vocab, cut)
    for n in range(2):
        np.testing.assert_allclose(base.log_probs(n), log_probs(logits[n]), atol=4e-4)
    (tmp_path / "base").write_bytes((tmp_path / "base").read_bytes()[:-1])
    with pytest.raises(ValueError, match="is cut off"):
        Base(tmp_path / "base")
    for context, n_vocab, count in ((2, 8, 1), (-8, 8, 1), (8, 0, 1), (8, 8, -1)):
        (tmp_path / "base").write_bytes(b"_logits_" + struct.pack("<iii", context, n_vocab, count) + bytes(400))
        with pytest.raises(ValueError, match="is no file of --kl-divergence-base"):
            Base(tmp_path / "base")


def test_a_perplexity_that_is_no_number_is_infinite() -> None:
    assert ppl(math.log(30)) == pytest.approx(30) and ppl(1e4) == math.inf


def test_divergence_by_hand() -> None:
    base, ours = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]])
    found = Divergence()
    found.add(ours, base, np.array([0, 1]))
    want = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert math.isclose(found.kld.mean, want / 2)
    np.testing.assert_allclose(found.p_change.all, [-0.25, 0])
    assert found.same_top.all.tolist() == [0, 1]


def test_the_command_and_its_numbers(folder: Path) -> None:
    model, base = folder / "tiny.gguf", folder / "base.bin"
    plain = invoke(model, "-f", folder / "text.txt", "-c", 32)
    assert plain.exit_code == 0, plain.stderr
    line = plain.stdout.splitlines()[-1]
    assert line.startswith("Final estimate: PPL = ") and " +/- " in line
    assert plain.stdout.startswith("[1]")
    written = invoke(model, "-f", folder / "text.txt", "-c", 32, "--kl-divergence-base", base)
    assert written.stdout == plain.stdout
    same = invoke(model, "--kl-divergence-base", base, "--kl-divergence").stdout
    assert "Same top p: 100.000 ± 0.000 %" in same
    assert abs(float(same.split("Mean    KLD:")[1].split()[0])) < 1e-4  # the base keeps 16 bits of each
    other = invoke(folder / "other.gguf", "--kl-divergence-base", base, "--kl-divergence").stdout
    mean = float(other.split("Mean    KLD:")[1].split()[0])
    assert mean > 0.1
    assert line.split()[4][:4] in other.split("Mean PPL(base)                :")[1]


def test_what_is_to_be_said_of_the_model_is_said(folder: Path) -> None:
    given = folder / "tiny.gguf", "-f", folder / "text.txt", "-c", 32, "--chunks", 1
    assert "Note:" not in invoke(*given).stderr
    assert "Note: " in invoke(*given, "--context", 4096).stderr


def test_a_full_disk_leaves_no_half_of_a_base(folder: Path) -> None:
    given = folder / "tiny.gguf", "-f", folder / "text.txt", "-c", 32, "--kl-divergence-base", folder / "full.bin"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        result = invoke(*given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert result.exit_code == 1 and "File too large" in result.stderr
    assert not list(folder.glob("*full.bin*")) and not list(folder.glob(".*full.bin*"))


def test_refusals(folder: Path) -> None:
    model = folder / "tiny.gguf"
    (folder / "short.txt").write_text("too short")
    cases = [
        ((model, "-f", folder / "short.txt"), 1, "a context of 512 needs 1024 at least"),
        ((model, "-f", folder / "absent.txt"), 1, "No such file"),
        ((model,), 2, "the text is missing: -f FILE"),
        ((model, "--kl-divergence"), 2, "--kl-divergence needs --kl-divergence-base"),
        ((model, "--kl-divergence", "--kl-divergence-base", model), 1, "is not a file of --kl-divergence-base"),
        ((model, "-f", folder / "text.txt", "-c", 2), 2, "2 is not in the range x>=4"),
        ((model, "-f", folder / "text.txt", "-c", 8, "--chunks", -2), 2, "-2 is not in the range x>=0"),
    ]
    for args, code, text in cases:
        result = invoke(*args)
        assert (result.exit_code, result.stdout) == (code, ""), result.stderr
        assert text in result.stderr
