"""`gmoe run`: answer one prompt, or open the chat prompt."""

import sys
import time
from typing import Any

import click
from rich.console import Console

from gmoe.cli.answer import figures, write
from gmoe.cli.options import runtime_flags, sampling_flags, take
from gmoe.engine.sampling import SamplingParams
from gmoe.options import RuntimeOptions


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--system", default=None, help="System message of the chat.")
@click.option("--think/--no-think", default=None, help="Whether the template should ask for thinking.")
@click.option("--verbose", is_flag=True, help="Figures after each answer, on standard error.")
@runtime_flags
@sampling_flags
def run(
    model: str,
    prompt: str | None,
    raw: bool,
    system: str | None,
    think: bool | None,
    verbose: bool,
    **given: Any,
) -> None:
    """Talk to MODEL, a GGUF file or a name in the library.

    Without PROMPT, piped standard input is the prompt; on a terminal the chat prompt opens.
    """
    params = take(SamplingParams, given)
    options = take(RuntimeOptions, given)
    if prompt is None and not sys.stdin.isatty():
        prompt = piped(sys.stdin.buffer.read())
    began = time.perf_counter()
    with Console(stderr=True).status(f"loading {model}"):
        from gmoe.llm import LLM

        llm = LLM.load(model, options)
    with llm:
        loaded = time.perf_counter() - began
        template: dict[str, Any] = {} if think is None else {"enable_thinking": think}
        if prompt is None:
            from gmoe.cli.prompt import Chat, interact

            interact(Chat(llm, params, system, template, verbose))
            return
        for notice in [] if raw else llm.notices:
            click.echo(notice, err=True)
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        write(llm.generate(prompt, params) if raw else llm.chat(messages, params, **template))
        if verbose:
            click.echo(figures(llm.stats, loaded), err=True)


def piped(raw: bytes) -> str:
    """Standard input as a prompt."""
    try:
        return raw.decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8: byte {error.start} is {raw[error.start]:#04x}") from None
