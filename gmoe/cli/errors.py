"""Errors that a user can cause: one sentence on standard error, and the exit status that api.md promises."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import click


class Group(click.Group):
    """A group whose commands end with `Error: one sentence`, status 1, and never with a traceback."""

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line; `Error:` and 1, 2 for wrong usage, 130 where interrupted."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        sys.exit(self._status(args, prog_name, extra))

    def _status(self, args: Sequence[str] | None, prog_name: str | None, extra: dict[str, Any]) -> int:
        try:
            status = super().main(args, prog_name, standalone_mode=False, **extra)
            return status if isinstance(status, int) else 0
        except click.UsageError as error:
            error.show()
            return 2
        except click.ClickException as error:
            return say(error.format_message())
        except (click.Abort, KeyboardInterrupt):
            return 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except MemoryError:
            return say("there is not enough memory")
        except OSError as error:
            return say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except ValueError as error:
            return say(str(error))


def say(text: str) -> int:
    """Print the sentence; returns the exit status."""
    print(f"Error: {' '.join(text.split())}", file=sys.stderr)
    return 1
