"""The chat prompt of `gmoe run`: lines in, answers and settings out."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from gmoe.cli.answer import Figures, can_think, messages_of, probabilities, spoken, write
from gmoe.cli.errors import say, sentence
from gmoe.cli.session import Models, save
from gmoe.engine.sampling import SamplingParams
from gmoe.library.home import home
from gmoe.tokenizer.thinking import think_values

HELP = """Available Commands:
  /set parameter NAME VALUE   Set a sampling parameter
  /set system TEXT            Set the system message
  /set history | nohistory    Keep typed lines in the history file, or not
  /set wordwrap | nowordwrap  Break lines between words, or not
  /set verbose | quiet        Figures after each answer, or none
  /set think [LEVEL]          Ask the template for thinking
  /set nothink                Ask it for none
  /set format json | SCHEMA   Answers that are JSON; noformat: any
  /show info | license | modelfile | parameters | system | template
  /list, /ls                  List the models of the library
  /load NAME                  Load another model, or a saved session
  /save NAME                  Save this session as a model
  /clear                      Forget the conversation
  /bye, /exit                 Exit
  /?, /help                   This text
  /? shortcuts                Keys that edit a line

Use \"\"\" to begin and end a message of several lines."""
SHORTCUTS = """Available keyboard shortcuts:
  Ctrl + a, Ctrl + e    Move to the beginning or the end of the line
  Alt + b, Alt + f      Move back or forward by a word
  Ctrl + u, Ctrl + k    Delete all that is before or after the cursor
  Ctrl + w              Delete the word before the cursor
  Ctrl + p, Ctrl + n    The line typed before or after (also Up, Down)
  Ctrl + r              Search the lines typed before
  Ctrl + l              Clear the screen
  Ctrl + c              Stop the answer, or clear the line
  Ctrl + d              Exit"""
SETTINGS = "parameter|system|format|noformat|history|nohistory|wordwrap|nowordwrap|verbose|quiet|think|nothink"
ALIASES = {"num_predict": "max_tokens"}  # Ollama's name: ours
TOO_RICH = ("logit_bias", "grammar", "json_schema")  # not writable as one word


class Chat:
    """The state of a conversation; `line` takes what was typed and returns False to leave."""

    def __init__(
        self,
        llm: Any,
        params: SamplingParams,
        system: str | None = None,
        template: Mapping[str, Any] = MappingProxyType({}),
        verbose: bool = False,
        *,
        raw: bool = False,
        wordwrap: bool = False,
    ):
        self.llm = llm
        self.params = params
        self.system = system
        self.template = dict(template)
        self.verbose = verbose
        self.raw = raw  # each message is continued as it stands, without template or memory
        self.wordwrap = wordwrap
        self.format: str | None = None  # that answers follow, behind the thinking; without `/set think` there is none
        self.history = True  # whether typed lines go to the history file
        self.messages: list[dict[str, str]] = []
        self._open: list[str] | None = None  # lines since an opening \"\"\"
        self._finish: Callable[[str], None] = self._ask
        self._model = self._source = ""  # the model's name or path, and that of its file or blob
        self._models: Models | None = None
        self._given_system = system

    def keep(self, model: str, models: Models) -> None:
        """Where its model came from, and what opens others: `/save` and `/load` need both."""
        self._model = self._source = model
        self._models = models
        self._recall()

    def close(self) -> None:
        """Close the model that is loaded now."""
        if self.llm is not None:
            self.llm.close()

    @property
    def continues(self) -> bool:
        """Whether a message of several lines is being typed."""
        return self._open is not None

    def interrupt(self) -> None:
        """Ctrl-C where there is nothing to stop: forget a half-typed message, or say how to leave."""
        if self._open is None:
            click.echo("\nUse Ctrl + d or /bye to exit.")
        self._open = None

    def line(self, text: str) -> bool:
        """One line as it was typed, or several as pasted; False: the user wants to leave."""
        if self._open is not None:
            self._continue(text, self._open)
        elif text.lstrip().startswith('"""'):
            self._begin(text.lstrip()[3:], self._ask)
        elif text.startswith("/"):
            last = {"/set system": 2, "/save": 1, "/load": 1}  # the word that is taken as it stands, spaces and all
            at = next((n for begin, n in last.items() if text.startswith(f"{begin} ")), -1)
            return self._command(text.strip().split(maxsplit=at))
        elif text.strip():
            self._ask(text)
        return True

    def _begin(self, text: str, finish: Callable[[str], None]) -> None:
        self._finish = finish
        self._continue(text, [])

    def _continue(self, text: str, before: list[str]) -> None:
        body, end, _ = text.partition('"""')
        lines = [*before, body] if before or body else []  # an opening line without text is no line
        self._open = None if end else lines
        if end:
            self._finish("\n".join(lines[:-1] if lines and not lines[-1] else lines))

    def _ask(self, text: str) -> None:
        if not text.strip():
            return
        figures, pieces, heard = Figures(self.llm, 0.0), list[str](), list[Any]()
        try:
            if self.raw:
                events = self.llm.generate(text, self.params)
            else:
                params, template = self._formatted()
                events = self.llm.chat(messages_of(self.system, self.messages, text), params, **template)
            for piece in spoken(events, write, self.wordwrap, heard=heard.append):
                pieces.append(piece)
        except KeyboardInterrupt:
            pass  # what was said stays said
        except (ValueError, OSError, MemoryError) as error:
            say(sentence(error))
            return
        click.echo("\n")
        if self.params.logprobs is not None:
            click.echo("\n".join(probabilities(heard, self.llm.tokenizer)), err=True)
        if not self.raw:
            self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "".join(pieces)}]
        if self.verbose:
            click.echo("\n".join(figures.lines()), err=True)

    def _formatted(self) -> tuple[SamplingParams, dict[str, Any]]:
        """The parameters and the template's values for an answer."""
        if self.format is None:
            return self.params, self.template
        from gmoe.tokenizer.parsers.choose import end_of_thinking, headed

        begins = self.template.get("enable_thinking") or (headed(self.llm.dialect) and not self.raw)
        after = end_of_thinking(self.llm.dialect) if begins else None
        params = replace(self.params, grammar=None, json_schema=self.format, grammar_after=after)
        return params, self.template or think_values(False)

    def _command(self, words: list[str]) -> bool:
        match words:
            case ["/bye" | "/exit"]:
                return False
            case ["/?" | "/help", "shortcut" | "shortcuts"]:
                click.echo(SHORTCUTS)
            case ["/?" | "/help", *_]:
                click.echo(HELP)
            case ["/clear"]:
                self.messages = []
                click.echo("Cleared session context")
            case ["/save" | "/load" as word, name] if self._models:
                try:
                    (self._save if word == "/save" else self._load)(name, self._models)
                except (ValueError, OSError, MemoryError) as error:
                    say(sentence(error))
            case ["/list" | "/ls"]:
                self._list()
            case ["/save" | "/load" as word, *_]:
                click.echo(f"Usage: {word} NAME")
            case ["/set", *rest]:
                self._set(rest)
            case ["/show", what]:
                self._show(what)
            case ["/show", *_]:
                self._show("")
            case _:
                click.echo(f"Unknown command '{words[0]}'. Type /? for help")
        return self.llm is not None  # neither the model asked for nor the one before could be loaded

    def _list(self) -> None:
        from gmoe.cli.library import listed

        try:
            click.echo("\n".join(listed()))
        except (ValueError, OSError) as error:
            say(sentence(error))

    def _save(self, name: str, models: Models) -> None:
        try:
            saved = save(name, self._source, self.llm, self.params, self.system, self.messages)
        except KeyboardInterrupt:
            click.echo("\nNothing was saved.")
            return
        self._source = saved.digest  # so that a file is copied once
        left_out = [*saved.left_out, *(["format"] if self.format else []), *(["think"] if self.template else [])]
        if left_out:
            click.echo(f"Note: a Modelfile has no place for {', '.join(left_out)}", err=True)
        click.echo(f"Created new model '{name}'")

    def _load(self, name: str, models: Models) -> None:
        models.file_of(name)  # it is there, before the one in memory makes room for it
        click.echo(f"Loading model '{name}'")
        params = self.params
        self._drop()
        try:
            self.llm, self.params, _ = models.open(name)
        except (ValueError, OSError, MemoryError):
            self.llm, self.params = models.open(self._model).llm, params
            raise
        self._model = self._source = name
        self.messages, self.system, self.format = [], self._given_system, None
        self._recall()

    def _drop(self) -> None:
        self.llm.close()
        self.llm = None
        gc.collect()  # a model's parts know each other, and the next one needs their memory

    def _recall(self) -> None:
        """Show the conversation with which the model begins."""
        for message in self.llm.modelfile.messages:
            click.echo(f">>> {message['content']}" if message["role"] == "user" else f"{message['content']}\n")

    def _set(self, words: list[str]) -> None:
        match words:
            case ["parameter", name, *values] if values:
                self._set_parameter(name, values)
            case ["system", *rest] if rest:
                self._set_system(" ".join(rest))
            case ["format", *rest] if rest:
                self._set_format(" ".join(rest))
            case ["noformat"]:
                self.format, self.params = None, replace(self.params, json_schema=None, grammar_after=None)
                click.echo("Disabled format.")
            case ["history" | "nohistory" as word]:
                self.history = word == "history"
            case ["wordwrap" | "nowordwrap" as word]:
                self.wordwrap = word == "wordwrap"
                click.echo(f"Set '{word}' mode.")
            case ["verbose" | "quiet" as word]:
                self.verbose = word == "verbose"
                click.echo(f"Set '{word}' mode.")
            case ["think", *level] if len(level) < 2:
                self.template = think_values(level[0] if level else True, self.llm.template.source)
                if not can_think(self.llm):
                    click.echo(f'warning: model "{self._model}" does not support thinking output', err=True)
                click.echo("Set 'think' mode.")
            case ["nothink"]:
                self.template = think_values(False)
                click.echo("Set 'nothink' mode.")
            case _:
                click.echo(f"Usage: /set {SETTINGS}")

    def _set_format(self, text: str) -> None:
        try:
            SamplingParams(json_schema=text)
        except ValueError as error:
            say(sentence(error))
            return
        self.format = text
        click.echo(f"Set format to '{text}' mode." if text == "json" else "Set format to a schema.")

    def _set_system(self, text: str) -> None:
        def finish(system: str) -> None:
            self.system = system
            click.echo("Set system message.")

        if text.startswith('"""'):
            self._begin(text[3:], finish)
        else:
            finish(text)

    def _set_parameter(self, name: str, values: list[str]) -> None:
        kinds = {row.name: str(row.type) for row in fields(SamplingParams) if row.name not in TOO_RICH}
        ours = ALIASES.get(name, name)
        try:
            if ours not in kinds:
                raise ValueError(f"unknown parameter '{name}'; known: {', '.join(sorted(kinds))}")
            value: Any = (
                tuple(values) if ours in ("stop", "samplers") else _number(name, values[0], "int" in kinds[ours])
            )
            if (name == "num_predict" and value < 0) or (name == "seed" and value == -1):
                value = None  # Ollama's -1: until the model ends, and another seed each time
            self.params = replace(self.params, **{ours: value})
            click.echo(f"Set parameter '{name}' to '{' '.join(values)}'")
        except ValueError as error:
            say(sentence(error))

    def _show(self, what: str) -> None:
        metadata = self.llm.file.metadata
        if what == "info":
            from gmoe.cli.show import describe

            click.echo(describe(self.llm.file, modelfile=self.llm.modelfile))
        elif what == "modelfile":
            from gmoe.cli.show import modelfile_text

            click.echo(modelfile_text(self._model, self.llm.file.path, self.llm.modelfile), nl=False)
        elif what == "parameters":
            for row in fields(SamplingParams):
                click.echo(f"{row.name:<22}{getattr(self.params, row.name)}")
        elif what == "system":
            click.echo(
                self.system or self.llm.modelfile.last("system") or "No system message was specified for this model."
            )
        elif what == "template":
            given = self.llm.modelfile.template
            click.echo(given or metadata.get("tokenizer.chat_template", "No template was specified for this model."))
        elif what == "license":
            own = "\n".join(self.llm.modelfile.values("license"))
            click.echo(own or metadata.get("general.license", "No license was specified for this model."))
        else:
            click.echo("Usage: /show info|license|modelfile|parameters|system|template")


def _number(name: str, text: str, whole: bool) -> int | float:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}; it must be a {'whole ' if whole else ''}number") from None


def interact(chat: Chat) -> None:
    """The prompt itself: Ctrl-C stops an answer or clears the line, Ctrl-D or /bye leave."""
    session: PromptSession[str] = PromptSession(history=_history(home() / "history", chat), key_bindings=_keys())
    while True:
        try:
            text = session.prompt("... " if chat.continues else ">>> ", placeholder=_placeholder(chat))
        except KeyboardInterrupt:
            chat.interrupt()
            continue
        except EOFError:
            return
        if not chat.line(text):
            return


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt())

    return keys


def _placeholder(chat: Chat) -> str:
    return 'Use """ to end multi-line input' if chat.continues else "Send a message (/? for help)"


class _KeptHistory(FileHistory):
    """A history file that nothing is added to while `chat.history` is off."""

    def __init__(self, path: Path, chat: Chat):
        super().__init__(str(path))
        self._chat = chat

    def store_string(self, string: str) -> None:
        if self._chat.history:
            super().store_string(string)


def _history(path: Path, chat: Chat) -> History:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        click.echo(f"Note: the history is not kept: {path}: {error.strerror}", err=True)
        return InMemoryHistory()
    return _KeptHistory(path, chat)
