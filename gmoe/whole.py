"""Files that are written whole or not at all."""

import errno
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # errors that name no file


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write: it takes the name of `path` behind the block, and nothing is left where the block fails.

    Of several who write at once, one's file is there in the end. A pipe or a device is written itself.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        if error.filename not in (part, str(part)) and (error.filename or error.errno not in FULL):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        part.unlink(missing_ok=True)
