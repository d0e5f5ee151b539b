"""Triton's interpreter without what it repeats: it puts its own functions into the language once, not in every call."""

from types import SimpleNamespace
from typing import Any


class _Kept:
    """The language stays as it is interpreted."""

    def restore(self) -> None:
        pass


def patch_once() -> None:
    """For the whole process. A Triton that does this elsewhere is left as it is."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch, kept = getattr(interpreter, "_patch_lang", None), _Kept()
    if patch is None or patch.__name__ == "known":
        return
    patch(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))  # the modules that kernels may see

    def known(fn: Any) -> _Kept:
        return kept

    interpreter._patch_lang = known
