"""`gmoe run`: answer one prompt on standard output, or chat."""

import os
import stat
import sys
from collections.abc import Sequence
from contextlib import closing
from io import TextIOWrapper
from typing import Any

import click

from gmoe.cli.answer import Figures, can_think, messages_of, probabilities, spoken, write
from gmoe.cli.errors import usage
from gmoe.cli.options import runtime_flags, said, sampling_flags, take
from gmoe.cli.session import Models
from gmoe.engine.gbnf import GrammarError
from gmoe.engine.sampling import SamplingParams
from gmoe.options import RuntimeOptions
from gmoe.tokenizer.thinking import think_values

LEVELS: dict[str, bool | str] = {"true": True, "false": False, "low": "low", "medium": "medium", "high": "high"}


class _Run(click.Command):
    """Knows `--think=LEVEL` beside `--think PROMPT`: the level stands behind a "=", as in Ollama."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        flags = [f"--think-level{arg[7:]}" if arg.startswith("--think=") else arg for arg in args[:end]]
        return super().parse_args(ctx, [*flags, *args[end:]])


@click.command(cls=_Run)
@click.argument("model")
@click.argument("prompt", nargs=-1)
@click.option("--system", help="System message.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it stands, without the chat template.")
@click.option(
    "--think/--no-think", default=None, help="Ask the chat template for thinking, or for none; --think=high: for much."
)
@click.option("--think-level", type=click.Choice(list(LEVELS)), hidden=True)
@click.option("--verbose", is_flag=True, help="Say afterwards how long it took and what the experts did.")
@click.option("--hidethinking", is_flag=True, help="Do not show the thinking.")
@click.option(
    "--format", "format_", help="json, or a JSON schema, that the answer must follow; no thinking unless --think."
)
@click.option("--insecure", is_flag=True, help="Speak plain HTTP with the registry of a model that is not here.")
@click.option("--nowordwrap", is_flag=True, help="Do not break lines between words on a terminal.")
@sampling_flags
@runtime_flags
def run(
    model: str,
    prompt: tuple[str, ...],
    system: str | None,
    raw: bool,
    think: bool | str | None,
    think_level: str | None,
    verbose: bool,
    hidethinking: bool,
    format_: str | None,
    insecure: bool,
    nowordwrap: bool,
    **flags: Any,
) -> None:
    """Answer PROMPT with MODEL, a GGUF file or the name of a model.

    Piped standard input is the prompt, or comes before PROMPT. Without either, on a terminal, this is a chat.
    """
    think = think if think_level is None else LEVELS[think_level]
    if format_ is not None:
        flags["json_schema"] = format_
        think = think if raw else think or False
    given = {name: flags[name] for name in said() & flags.keys()}
    given |= {name: flags[name] for name in ("json_schema", "grammar_after", "grammar_unless") if format_ is not None}
    take(SamplingParams, flags)
    options = take(RuntimeOptions, flags)
    if raw and (system is not None or think is not None):
        raise click.UsageError("--system and --think need the chat template, which --raw leaves out")
    models = Models(options, given, insecure, thinks=None if format_ is None or raw else bool(think))
    models.file_of(model)  # it is there, before anybody types
    text = prompt_text(prompt)
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # no answer ends at a letter that the terminal lacks
    wrap = sys.stdout.isatty() and not nowordwrap
    llm, params, load_seconds = models.open(model)
    if think and not can_think(llm):
        llm.close()
        raise ValueError(f'"{model}" does not support thinking')
    thinks = think_values(think, llm.template.source)
    if text is None:
        from gmoe.cli.prompt import Chat, interact

        chat = Chat(llm, params, system, thinks, verbose, raw=raw, wordwrap=wrap)
        chat.keep(model, models)
        del llm  # another may take its place
        with closing(chat):
            interact(chat)
        return
    with llm:
        figures = Figures(llm, load_seconds)
        messages = messages_of(system, [], text)
        with usage(GrammarError):
            events = llm.generate(text, params) if raw else llm.chat(messages, params, **thinks)
        heard: list[Any] = []
        try:
            for _ in spoken(events, write, wrap, hidethinking, heard.append):
                pass
        except BaseException:
            if heard and sys.stdout.isatty():  # what is said next begins a line
                click.echo()
            raise
        click.echo()
        if params.logprobs is not None:
            click.echo("\n".join(probabilities(heard, llm.tokenizer)), err=True)
        if verbose:
            click.echo("\n".join(figures.lines()), err=True)


def prompt_text(words: Sequence[str]) -> str | None:
    """Piped standard input and the words of the command line; None: neither, and a terminal to chat on."""
    if words:
        piped = _piped() if _holds_text() else ""
    elif sys.stdin.isatty():
        return None
    else:
        piped = _piped()
    text = " ".join([*([piped] if piped else []), *words])
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the prompt is not valid UTF-8") from None
    if not text.strip():
        raise click.UsageError("the prompt is empty")
    return text


def _piped() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not valid UTF-8: byte {error.start} cannot be read") from None


def _holds_text() -> bool:
    """Standard input is a pipe or a file: a PROMPT does not wait for what a service manager or /dev/null is."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return True  # not a file of the system at all: text given by a program
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
