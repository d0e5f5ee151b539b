"""The chat prompt of `gmoe run`: lines in, answers and settings out."""

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from gmoe.cli.answer import figures, write
from gmoe.cli.home import home
from gmoe.engine.sampling import SamplingParams

HELP = """Available Commands:
  /set parameter NAME VALUE   Set a sampling parameter
  /set system TEXT            Set the system message
  /set history | nohistory    Keep the conversation, or forget it after each answer
  /set verbose | quiet        Figures after each answer, or none
  /set think | nothink        Ask the template for thinking, or for none
  /show info | parameters | system | template
  /clear                      Forget the conversation
  /bye                        Exit
  /?, /help                   This text

Use \"\"\" to begin and end a message of several lines."""


class Chat:
    """The state of a conversation; `line` takes what was typed and returns False to leave."""

    def __init__(self, llm: Any, params: SamplingParams, system: str | None, template: dict[str, Any], verbose: bool):
        self.llm = llm
        self.params = params
        self.system = system
        self.template = dict(template)
        self.verbose = verbose
        self.history = True
        self.messages: list[dict[str, str]] = []
        self._open: list[str] | None = None  # lines since an opening \"\"\"
        self._finish: Callable[[str], None] = self._ask

    @property
    def continues(self) -> bool:
        """Whether a message of several lines is being typed."""
        return self._open is not None

    def interrupt(self) -> None:
        """Forget a half-typed message."""
        self._open = None

    def line(self, text: str) -> bool:
        """One line as it was typed; False: the user wants to leave."""
        if self._open is not None:
            body, end, _ = text.partition('"""')
            self._open.append(body)
            if end:
                whole, self._open = "\n".join(self._open), None
                self._finish(whole)
            return True
        if text.startswith('"""'):
            return self._begin(text[3:], self._ask)
        if not text.startswith("/"):
            if text.strip():
                self._ask(text)
            return True
        return self._command(text.split())

    def _begin(self, text: str, finish: Callable[[str], None]) -> bool:
        body, end, _ = text.partition('"""')
        if end:
            finish(body)
        else:
            self._open, self._finish = [body] if body else [], finish
        return True

    def _ask(self, text: str) -> None:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages += [*self.messages, {"role": "user", "content": text}]
        answer = ""
        try:
            answer = write(self.llm.chat(messages, self.params, **self.template))
        except KeyboardInterrupt:
            click.echo()
        except ValueError as error:
            click.echo(f"Error: {error}", err=True)
            return
        if self.history:
            self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        if self.verbose:
            click.echo(figures(self.llm.stats, 0.0), err=True)

    def _command(self, words: list[str]) -> bool:
        match words:
            case ["/bye"] | ["/exit"]:
                return False
            case ["/?"] | ["/help"]:
                click.echo(HELP)
            case ["/clear"]:
                self.messages = []
                click.echo("Cleared session context")
            case ["/set", *rest]:
                return self._set(rest)
            case ["/show", what]:
                self._show(what)
            case _:
                click.echo(f"Unknown command '{words[0]}'. Type /? for help")
        return True

    def _set(self, words: list[str]) -> bool:
        match words:
            case ["parameter", name, *values] if values:
                self._set_parameter(name, values)
            case ["system", *rest]:
                return self._set_system(" ".join(rest))
            case ["history" | "nohistory" as word]:
                self.history = word == "history"
                if not self.history:
                    self.messages = []
            case ["verbose" | "quiet" as word]:
                self.verbose = word == "verbose"
            case ["think" | "nothink" as word]:
                self.template["enable_thinking"] = word == "think"
            case _:
                click.echo("Usage: /set parameter|system|history|nohistory|verbose|quiet|think|nothink")
        return True

    def _set_system(self, text: str) -> bool:
        def finish(system: str) -> None:
            self.system = system
            click.echo("Set system message.")

        if text.startswith('"""'):
            return self._begin(text[3:], finish)
        finish(text)
        return True

    def _set_parameter(self, name: str, values: list[str]) -> None:
        kinds = {row.name: str(row.type) for row in fields(SamplingParams)}
        try:
            if name not in kinds or name in ("logit_bias", "grammar", "json_schema"):
                raise ValueError(f"unknown parameter {name!r}; known: {', '.join(sorted(kinds))}")
            value: Any = tuple(values)
            if name != "stop":
                value = int(values[0]) if "int" in kinds[name] else float(values[0])
            self.params = replace(self.params, **{name: value})
            click.echo(f"Set parameter '{name}' to '{' '.join(values)}'")
        except ValueError as error:
            click.echo(f"Error: {error}", err=True)

    def _show(self, what: str) -> None:
        if what == "info":
            from gmoe.cli.show import describe

            click.echo(describe(self.llm.file))
        elif what == "parameters":
            for row in fields(SamplingParams):
                click.echo(f"{row.name:<20}{getattr(self.params, row.name)}")
        elif what == "system":
            click.echo(self.system or "No system message was specified for this model.")
        elif what == "template":
            click.echo(self.llm.template.source)
        else:
            click.echo("Usage: /show info|parameters|system|template")


def interact(chat: Chat) -> None:
    """The prompt itself: Ctrl-C stops an answer, Ctrl-D or /bye leave."""
    for notice in chat.llm.notices:
        click.echo(notice, err=True)
    session: PromptSession[str] = PromptSession(history=_history(home() / "history"))
    while True:
        try:
            text = session.prompt("... " if chat.continues else ">>> ", placeholder=_placeholder(chat))
        except KeyboardInterrupt:
            chat.interrupt()
            click.echo("\nUse Ctrl + d or /bye to exit.")
            continue
        except EOFError:
            return
        if not chat.line(text):
            return


def _placeholder(chat: Chat) -> str:
    return 'Use """ to end multi-line input' if chat.continues else "Send a message (/? for help)"


def _history(path: Path) -> History:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        print(f"the history is not kept: {path}: {error.strerror}", file=sys.stderr)
        return InMemoryHistory()
    return FileHistory(path)
