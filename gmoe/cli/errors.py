"""Errors that a user can cause: one sentence on standard error, and the exit status that api.md promises."""

import os
import sys
from typing import Any

import click


class Group(click.Group):
    """A group whose commands end with `Error: one sentence`, status 1, and never with a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command line; `Error:` and 1, 2 for wrong usage, 130 where interrupted."""
        standalone = kwargs.pop("standalone_mode", True)
        if not standalone:
            return super().main(*args, standalone_mode=False, **kwargs)
        try:
            status = super().main(*args, standalone_mode=False, **kwargs)
        except click.UsageError as error:
            error.show()
            sys.exit(2)
        except click.ClickException as error:
            sys.exit(say(error.format_message()))
        except (click.Abort, KeyboardInterrupt):
            sys.exit(130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except MemoryError:
            sys.exit(say("there is not enough memory"))
        except OSError as error:
            sys.exit(say(f"{error.filename}: {error.strerror}" if error.filename else str(error)))
        except ValueError as error:
            sys.exit(say(str(error)))
        sys.exit(status if isinstance(status, int) else 0)


def say(text: str) -> int:
    """Print the sentence; returns the exit status."""
    print(f"Error: {' '.join(text.split())}", file=sys.stderr)
    return 1
