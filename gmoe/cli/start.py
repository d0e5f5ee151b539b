"""The program `gmoe`: before a command runs, and after it, Ctrl-C ends the process as if Python were not there."""

import os
import sys
from _signal import SIG_DFL, SIGINT, default_int_handler, getsignal, signal  # type: ignore[import-not-found]  # quick

if getsignal(SIGINT) is default_int_handler:  # else whoever began the process wants it ignored
    signal(SIGINT, SIG_DFL)

if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") == "0":  # no words but English
    os.environ["PYTHONUTF8"] = "1"  # as ever where the locale is C
    os.execv(sys.executable, sys.orig_argv)

from gmoe.cli.main import cli

__all__ = ["cli"]
