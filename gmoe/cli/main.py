"""`gmoe`: the command group; a command's module is imported when it is called."""

import signal
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click

from gmoe import __version__
from gmoe.cli.errors import Group, interrupted
from gmoe.cli.lean import leave_out_meta

COMMANDS = {  # name: (module:object, its line in --help)
    "run": ("gmoe.cli.run:run", "Talk to a model, or continue a prompt."),
    "show": ("gmoe.cli.show:show", "Show what a GGUF file holds."),
    "serve": ("gmoe.cli.serve:serve", "Answer requests over HTTP, as Ollama does."),
    "create": ("gmoe.cli.library:create", "Create a model from a Modelfile."),
    "list": ("gmoe.cli.library:list_models", "List the models of the library."),
    "ls": ("gmoe.cli.library:list_models", "The same as list."),
    "cp": ("gmoe.cli.library:cp", "Copy a model of the library."),
    "rm": ("gmoe.cli.library:rm", "Remove models from the library."),
    "pull": ("gmoe.cli.library:pull", "Pull a model from a registry."),
    "push": ("gmoe.cli.library:push", "Push a model to a registry."),
    "perplexity": ("gmoe.cli.perplexity:perplexity", "Score a model on a text."),
    "compare": ("gmoe.cli.compare:compare", "Measure two sets of options on one text."),
    "calibrate": ("gmoe.cli.compare:calibrate", "Measure what lossy choices cost, for --quality."),
    "quantize": ("gmoe.cli.quantize:quantize", "Write a model in another type."),
    "twin": ("gmoe.cli.quantize:twin", "Write a model's experts at a lower precision."),
    "imatrix": ("gmoe.cli.imatrix:imatrix", "Measure on a text how much each column of the experts counts."),
    "ps": ("gmoe.cli.ps:ps", "List the models that a server has in memory."),
    "stop": ("gmoe.cli.ps:stop", "Take a model out of a server's memory."),
    "prune": ("gmoe.cli.prune:prune", "Write a model with fewer experts."),
    "pack": ("gmoe.cli.pack:pack", "Write a model with each expert in one piece."),
    "plan": ("gmoe.cli.plan:plan", "Say what a model would do on this machine, before it is loaded."),
    "bench": ("gmoe.cli.bench:bench", "Measure prompt and generation speed."),
    "simulate": ("gmoe.cli.simulate:simulate", "Replay a routing trace through cache policies."),
    "trace": ("gmoe.cli.trace:trace", "Record, show and export routing traces."),
}


class Commands(Group):
    """Finds a command by its name in `COMMANDS`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Call a command, whose module may import torch when it is found."""
        leave_out_meta()
        before = signal.getsignal(signal.SIGINT)
        if before not in (signal.default_int_handler, signal.SIG_DFL):
            return super().invoke(ctx)
        signal.signal(signal.SIGINT, interrupted)
        try:
            return super().invoke(ctx)
        finally:
            signal.signal(signal.SIGINT, before)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands that this installation has."""
        return [name for name, (where, _) in COMMANDS.items() if find_spec(where.partition(":")[0])]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.command(cls=Commands, context_settings={"help_option_names": ["--help", "-h"]})
@click.version_option(__version__, message="gmoe %(version)s")
def cli() -> None:
    """Run Mixture-of-Experts GGUF models, exactly."""
