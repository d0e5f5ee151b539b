"""The command `gmoe`: a group whose commands are imported when they are called."""

from importlib import import_module
from importlib.util import find_spec

import click

from gmoe import __version__
from gmoe.cli.errors import reported

# name: (module:object, one line of help), so that `gmoe --help` imports no command
COMMANDS = {
    "run": ("gmoe.cli.run:run", "Answer a prompt, or chat."),
    "show": ("gmoe.cli.show:show", "Say what a model file holds."),
    "create": ("gmoe.cli.library:create", "Create a model from a Modelfile."),
    "list": ("gmoe.cli.library:list_models", "List the models of the library."),
    "ls": ("gmoe.cli.library:list_models", "The same as list."),
    "cp": ("gmoe.cli.library:cp", "Copy a model of the library."),
    "rm": ("gmoe.cli.library:rm", "Remove models from the library."),
    "pull": ("gmoe.cli.library:pull", "Pull a model from a registry."),
    "trace": ("gmoe.cli.trace:trace", "Record which experts a text asks for."),
    "simulate": ("gmoe.cli.simulate:simulate", "Replay a trace against cache policies."),
}


class LazyGroup(click.Group):
    """Commands of `COMMANDS` whose modules exist; every error of theirs passes through `reported`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return [name for name in COMMANDS if _present(name)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS or not _present(cmd_name):
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of `--help`, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> object:
        """Call the command under `reported`."""
        with reported():
            return super().invoke(ctx)


def _present(name: str) -> bool:
    return find_spec(COMMANDS[name][0].partition(":")[0]) is not None


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="gmoe")
def cli() -> None:
    """Run Mixture-of-Experts GGUF models, also those that do not fit into memory."""
