"""Triton's interpreter without what it repeats: it puts its own functions into the language once, not in every call."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace


class _Kept:
    """Nothing is taken out of the language behind a call."""

    def restore(self) -> None:
        pass


@contextmanager
def patched_once() -> Iterator[None]:
    """A Triton that does this elsewhere, or does not undo it, is left as it is."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch = getattr(interpreter, "_patch_lang", None)
    scope = patch and patch(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))  # modules that kernels may see
    if scope is None:
        yield
        return
    interpreter._patch_lang = lambda fn: _Kept()
    try:
        yield
    finally:
        interpreter._patch_lang = patch
        scope.restore()
