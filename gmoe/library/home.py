"""Where gmoe keeps what is the user's: `GMOE_HOME`, or ~/.gmoe."""

import os
from pathlib import Path


def home() -> Path:
    """The folder; it may not exist yet."""
    return Path(os.environ.get("GMOE_HOME") or Path.home() / ".gmoe")
