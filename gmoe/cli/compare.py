"""`gmoe compare` and `gmoe calibrate`: what options cost in quality and bring in speed on a text."""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from gmoe.cli.errors import usage
from gmoe.cli.options import HELP, window_flags
from gmoe.cli.output import say_notes
from gmoe.experts import calibration
from gmoe.experts.fingerprint import fingerprint
from gmoe.gguf.file import GGUFFile
from gmoe.library.find import model_file
from gmoe.loadable import require_options
from gmoe.options import READERS, RuntimeOptions
from gmoe.passes.calibrate import ladder, measured_setting
from gmoe.passes.compare import Measured, base_of, measure
from gmoe.passes.perplexity import windows

_TOGETHER = 6  # settings between two runs of exact

_TEXT = click.option("-f", "--file", "text", type=click.Path(path_type=Path), required=True, help="The text.")
_TEXTS = click.option(
    "-f", "--file", "texts", type=click.Path(path_type=Path), required=True, multiple=True, help="A text; one a kind."
)


@click.command()
@click.argument("model")
@_TEXT
@click.option("--a", "first", default="", help="Options of A, the base: 'host_memory=2GiB'.")
@click.option("--b", "second", required=True, help="Options of B: 'host_memory=2GiB miss=skip drop=0.75'.")
@window_flags(128, 16)
def compare(model: str, text: Path, first: str, second: str, ctx_size: int, chunks: int) -> None:
    """Measure two sets of options of MODEL on one text, token by token."""
    path, both = model_file(model), [options_of(said, ctx_size) for said in (first, second)]
    cut = cut_of(path, text, ctx_size, chunks)
    from gmoe.llm import LLM

    with LLM.load(path, both[0]) as llm:
        say_notes(llm.notices)
        base = base_of(llm, cut[1:])
    click.echo("     PPL      KLD             same top   tok/s    MiB/token  served otherwise, of the routed weight")
    for name, options in zip("AB", both, strict=True):
        with LLM.load(path, options) as llm:
            say_notes(llm.notices)
            click.echo(f"{name}  {line(measure(llm, cut[1:], base, cut[0]))}")


@click.command()
@click.argument("model")
@_TEXTS
@click.option("--host-memory", help="Memory to calibrate for, 50% without a device; with less, answers are exact.")
@click.option("--device", default="cpu", show_default=True, help="Where to calibrate for: cpu, cuda, cuda:1.")
@click.option("--gpu-memory", default="auto", help="With a device, the memory there to calibrate for.")
@click.option("--reader", type=click.Choice(READERS), default="auto", show_default=True, help=HELP["reader"])
@click.option("--twin", type=click.Path(path_type=Path), help="The model's twin, to calibrate hobbit and twin as well.")
@window_flags(128, 16)
def calibrate(
    model: str,
    texts: Sequence[Path],
    host_memory: str | None,
    device: str,
    gpu_memory: str,
    reader: str,
    twin: Path | None,
    ctx_size: int,
    chunks: int,
) -> None:
    """Measure how far lossy choices take MODEL from itself, for --quality and --max-kld.

    Give texts of all kinds that it will meet: a budget holds on the worst of them.
    """
    if device == "auto":
        raise click.UsageError(
            "calibrate --device is cpu, cuda or cuda:N: what is measured counts for that device only"
        )
    path = model_file(model)
    cuts = [cut_of(path, text, ctx_size, chunks) for text in texts]
    warm, cut = cuts[0][0], [window for found in cuts for window in found[1:]]
    counts = [len(found) - 1 for found in cuts]
    from gmoe.llm import LLM

    on_device = device.startswith("cuda")
    host_memory = host_memory or ("auto" if on_device else "50%")
    with usage():
        plain = RuntimeOptions(
            context=ctx_size, max_sequences=1, device=device, host_memory=host_memory, gpu_memory=gpu_memory,
            reader=reader, miss="load",
        )  # fmt: skip
        require_options(plain)
    with LLM.load(path, plain) as llm:
        say_notes(llm.notices)
        if llm.store.whole:
            memory, option = (gpu_memory, "--gpu-memory") if on_device else (host_memory, "--host-memory")
            memory = "the device" if on_device and memory == "auto" else memory
            raise ValueError(f"{path} fits into {memory}: nothing would ever be missed; take less {option}")
        base = base_of(llm, cut)

    def run(options: dict[str, Any]) -> tuple[Measured, float, str]:
        with LLM.load(path, replace(plain, **options)) as llm:
            say_notes(llm.notices)
            got = measure(llm, cut, base, warm)
            resident = llm.store.slots / (len(llm.layout.layers) * llm.layout.n_expert)
            if llm.cache.twins_part:
                options["policy"]["twin_share"] = llm.cache.twins_part
            said = [*(str(v) for k, v in options.items() if k in ("route", "miss")), json.dumps(options.get("policy"))]
            click.echo(f"{' '.join(said) if options else 'exact':40} {line(got)}", err=True)
            return got, resident, llm.cache.reader

    settings, choices = [], list(ladder(twin))
    before, _, _ = run({})
    for at in range(0, len(choices), _TOGETHER):
        some = choices[at : at + _TOGETHER]
        found = [run(options) for options in some]
        after, _, _ = run({})
        for options, (got, resident, how) in zip(some, found, strict=True):
            settings.append(measured_setting(options, got, (before, after), counts, resident, how))
        before = after
    with GGUFFile.open(path) as file:
        known = calibration.load(file) if calibration.path_of(file).exists() else None
        sensitivity, others = (known.sensitivity, known.of(not on_device)) if known else ([], [])
        where = calibration.save(file, calibration.Calibration(fingerprint(file), sensitivity, others + settings))
    click.echo(f"{where}: {len(settings)} settings")


def options_of(text: str, context: int) -> RuntimeOptions:
    """`host_memory=2GiB miss=skip drop=0.75`: fields of RuntimeOptions, and whatever else are knobs of its policies."""
    names = {field.name for field in fields(RuntimeOptions)}
    given: dict[str, Any] = {"context": context, "max_sequences": 1}
    knobs: dict[str, Any] = {}
    for item in text.split():
        name, sign, value = item.partition("=")
        if not sign:
            raise click.UsageError(f"{item!r} is not OPTION=VALUE")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        (given if name in names else knobs)[name] = value if name in ("host_memory", "gpu_memory") else parsed
    with usage():
        options = RuntimeOptions(**given, policy=knobs)
        require_options(options)
    return options


def cut_of(path: Path, text: Path, context: int, chunks: int) -> Sequence[Sequence[int]]:
    """The text in windows, the first of them to warm up with."""
    from gmoe.tokenizer.tokenizer import Tokenizer

    ids = Tokenizer.from_file(path).encode(text.read_text("utf-8", "replace"), add_special=False, parse_special=False)
    return windows(ids, context, None, chunks + 1 if chunks else 0)


def line(got: Measured) -> str:
    """One row of the tables."""
    kld, top = got.found.kld, got.found.same_top
    changes = ", ".join(f"{name} {share:.1%}" for name, share in got.shares.items() if share > 0) or "nothing"
    return (
        f"{got.ppl:8.4f} {max(0.0, kld.mean):8.5f} ± {kld.error:.5f} {top.mean:8.2%} {got.tokens_per_second:8.2f} "
        f"{got.bytes_per_token / (1 << 20):11.3f}  {changes}"
    )
