"""The program `gmoe`: before a command runs, and after it, Ctrl-C ends the process as if Python were not there."""

from _signal import SIG_DFL, SIGINT, default_int_handler, getsignal, signal  # type: ignore[import-not-found]  # quick

if getsignal(SIGINT) is default_int_handler:  # else whoever began the process wants it ignored
    signal(SIGINT, SIG_DFL)

from gmoe.cli.main import cli

__all__ = ["cli"]
