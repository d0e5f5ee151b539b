"""What gmoe's programs leave out when they import torch: nobody here computes without numbers, as its compilers do."""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

# Shapes without numbers for a thousand operations: a quarter of the time that importing torch takes, and 18 MB.
META = "torch._meta_registrations"
COMPILERS = "torch._dynamo"  # which need it


class _Later(ModuleType):
    """Stands for META until somebody asks for something in it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(), name)


class _Watch(MetaPathFinder):
    """Asked before every import, finds nothing; but META is there before the compilers."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Nothing."""
        if name == COMPILERS:
            _real()


def _real() -> ModuleType:
    if isinstance(sys.modules.get(META), _Later):
        del sys.modules[META]
    return import_module(META)


def leave_out_meta() -> None:
    """From now on importing torch does not import META; a process that has imported it stays as it is.

    For programs, not for whoever imports gmoe: without the compilers, tensors on the device "meta" miss it.
    """
    if META not in sys.modules:
        sys.modules[META] = _Later(META)
        sys.meta_path.insert(0, _Watch())
