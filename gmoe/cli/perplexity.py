"""`gmoe perplexity`: how well a model foresees a text, and how far it is from another, as llama-perplexity says it."""

import math
import time
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np

from gmoe.cli.options import runtime_flags, take, window_flags
from gmoe.cli.output import require_other, say_notes
from gmoe.library.find import model_file
from gmoe.options import RuntimeOptions
from gmoe.passes.perplexity import Base, BaseWriter, Divergence, Mean, log_probs, perplexities, ppl, scored, windows_of
from gmoe.whole import whole

QUANTILES = {"99.9%": 99.9, "99.0%": 99, "95.0%": 95, "90.0%": 90, "Median": 50, "10.0%": 10, "5.0%": 5, "1.0%": 1}
QUANTILES |= {"0.1%": 0.1}


@click.command()
@click.argument("model")
@click.option("-f", "--file", "text", type=click.Path(path_type=Path), help="The text.")
@window_flags(512, 0)
@click.option(
    "--kl-divergence-base", "base", type=click.Path(path_type=Path), help="Logits to write, or to compare to."
)
@click.option("--kl-divergence", is_flag=True, help="Compare with the logits of --kl-divergence-base.")
@runtime_flags
def perplexity(
    model: str, text: Path | None, ctx_size: int, chunks: int, base: Path | None, kl_divergence: bool, **flags: Any
) -> None:
    """Score MODEL, a GGUF file or the name of a model, on a text."""
    if kl_divergence and base is None:
        raise click.UsageError("--kl-divergence needs --kl-divergence-base FILE")
    if not kl_divergence and text is None:
        raise click.UsageError("the text is missing: -f FILE")
    against = Base(base) if kl_divergence and base is not None else None
    flags["context"] = max(flags.get("context") or 0, against.context if against else ctx_size)
    options = take(RuntimeOptions, flags)
    from gmoe.llm import LLM

    path = model_file(model)
    if base is not None and not kl_divergence:
        require_other(path, base, text)
    with LLM.load(path, options) as llm:
        say_notes(llm.notices)
        if against is not None:
            _diverge(llm, against)
            return
        assert text is not None
        cut = windows_of(llm.tokenizer, text, ctx_size, chunks)
        click.echo(f"perplexity: calculating perplexity over {len(cut)} chunks, n_ctx={ctx_size}", err=True)
        nll = _score(llm, cut, base)
        click.echo(f"\nFinal estimate: PPL = {ppl(nll.mean):.4f} +/- {ppl(nll.mean) * nll.error:.5f}")


def _score(llm: Any, cut: list[list[int]], base: Path | None) -> Mean:
    """Score the windows, and write their logits to `base`, which appears when it is whole."""
    if base is None:
        return _scores(llm, cut, None)
    with whole(base) as part, part.open("wb") as file:
        return _scores(llm, cut, file)


def _scores(llm: Any, cut: list[list[int]], file: BinaryIO | None) -> Mean:
    began, nll, writer = time.perf_counter(), Mean(), None
    for n, (nll, logits) in enumerate(perplexities(cut, llm.logits), 1):
        if n == 1:
            pace = time.perf_counter() - began
            click.echo(f"perplexity: {pace:.2f} seconds per pass - ETA {pace * len(cut) / 60:.2f} minutes", err=True)
        if file:
            writer = writer or BaseWriter(file, cut, logits.shape[1])
            writer.add(logits)
        click.echo(f"[{n}]{ppl(nll.mean):.4f},", nl=False)
    return nll


def _diverge(llm: Any, base: Base) -> None:
    if base.n_vocab != llm.model.n_vocab:
        raise ValueError(f"{base.path} holds logits of {base.n_vocab} tokens, the model has {llm.model.n_vocab}")
    found = Divergence()
    names = ("chunk", "PPL", "ln(PPL(Q)/PPL(base))", "KL Divergence", "Δp RMS", "Same top p")
    click.echo("\n" + names[0] + "".join(name.center(25) for name in names[1:]))
    for n, window in enumerate(base.windows):
        where = scored(base.context)
        ours = log_probs(llm.logits(window)[where])
        found.add(ours, base.log_probs(n), np.asarray(window[where.start + 1 :]))
        ratio, rms = Mean([found.nll.all - found.base_nll.all]), found.rms_change
        mean = ppl(found.nll.mean)
        cells = [_pm(mean, mean * found.nll.error, 10, 4), _pm(ratio.mean, ratio.error, 10, 5)]
        cells += [_pm(found.kld.mean, found.kld.error, 10, 5), _pm(100 * rms[0], 100 * rms[1], 6, 3) + " %"]
        cells += [_pm(100 * found.same_top.mean, 100 * found.same_top.error, 6, 3) + " %"]
        click.echo(f"{n + 1:4}    " + "    ".join(cells))
    click.echo("\n".join(_summary(found)))


def _pm(value: float, error: float, width: int, digits: int) -> str:
    return f"{value:{width}.{digits}f} ± {error:{width}.{digits}f}"


def _summary(found: Divergence) -> list[str]:
    ours, base = found.nll.all, found.base_nll.all
    ratio = Mean([ours - base])
    mine, ppl_base, over = ppl(ours.mean()), ppl(base.mean()), ppl(ratio.mean)
    spread = float(ours.std() * base.std())
    correlation = float(np.cov(ours, base, bias=True)[0, 1]) / spread if spread else 1.0
    shared = correlation * found.nll.error * found.base_nll.error
    variance = (mine * found.nll.error) ** 2 + (ppl_base * found.base_nll.error) ** 2 - 2 * mine * ppl_base * shared
    rms, kld, change = found.rms_change, found.kld.all, 100 * found.p_change.all
    lines = ["", "====== Perplexity statistics ======"]
    lines += [f"Mean PPL(Q)                   : {_pm(mine, mine * found.nll.error, 10, 6)}"]
    lines += [f"Mean PPL(base)                : {_pm(ppl_base, ppl_base * found.base_nll.error, 10, 6)}"]
    lines += [f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * correlation:6.2f}%"]
    lines += [f"Mean ln(PPL(Q)/PPL(base))     : {_pm(ratio.mean, ratio.error, 10, 6)}"]
    lines += [f"Mean PPL(Q)/PPL(base)         : {_pm(over, over * ratio.error, 10, 6)}"]
    lines += [f"Mean PPL(Q)-PPL(base)         : {_pm(mine - ppl_base, math.sqrt(max(0.0, variance)), 10, 6)}"]
    lines += ["", "====== KL divergence statistics ======"]
    lines += [f"Mean    KLD: {_pm(found.kld.mean, found.kld.error, 10, 6)}", f"Maximum KLD: {kld.max():10.6f}"]
    lines += [f"{name:7} KLD: {np.percentile(kld, q):10.6f}" for name, q in QUANTILES.items()]
    lines += [f"Minimum KLD: {kld.min():10.6f}", "", "====== Token probability statistics ======"]
    mean = Mean([found.p_change.all])
    lines += [f"Mean    Δp: {100 * mean.mean:6.3f} ± {100 * mean.error:5.3f} %", f"Maximum Δp: {change.max():6.3f}%"]
    lines += [f"{name:7} Δp: {np.percentile(change, q):6.3f}%" for name, q in QUANTILES.items()]
    lines += [f"Minimum Δp: {change.min():6.3f}%", f"RMS Δp    : {100 * rms[0]:6.3f} ± {100 * rms[1]:5.3f} %"]
    top = found.same_top
    return [*lines, f"Same top p: {100 * top.mean:6.3f} ± {100 * top.error:5.3f} %"]
