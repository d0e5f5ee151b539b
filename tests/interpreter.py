"""Triton's interpreter without what it repeats: its functions are put into the language once, shapes are made once.

Nor does it look for overflows only to say nothing of them, as it does where its options have no `debug`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest


class _Kept:
    """Nothing is taken out of the language behind a call."""

    def restore(self) -> None:
        pass


@contextmanager
def patched_once() -> Iterator[None]:
    """A Triton that does this elsewhere, or does not undo it, is left as it is."""
    import triton.language as tl
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    with pytest.MonkeyPatch.context() as patch:
        if sought := getattr(TritonSemantic, "binary_op_sanitize_overflow_impl", None):
            patch.setattr(TritonSemantic, "binary_op_sanitize_overflow_impl", _if_said(sought))
        if known := getattr(interpreter, "_get_np_dtype", None):
            patch.setattr(interpreter, "_get_np_dtype", _once(known, tl))
        if hasattr(interpreter, "_patch_attr"):
            patch.setattr(interpreter, "_patch_attr", _put)
        patch.setattr(tl.block_type, "__init__", _block_once(tl.block_type.__init__))
        patch.setattr(tl.tensor, "__init__", _tensor_once(tl.tensor.__init__))
        put = getattr(interpreter, "_patch_lang", None)
        scope = put and put(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))  # modules that kernels may see
        if scope is None:
            yield
            return
        patch.setattr(interpreter, "_patch_lang", lambda fn: _Kept())
        try:
            yield
        finally:
            scope.restore()


def _if_said(sought: Callable[..., None]) -> Callable[..., None]:
    """The search for overflows, where what it finds would be said."""

    def found(self: Any, *given: Any) -> None:
        if self.builder.options.debug:
            sought(self, *given)

    return found


def _once(known: Callable[[Any], Any], tl: Any) -> Callable[[Any], Any]:
    """numpy's type of a Triton one."""
    scalar = cache(known)

    def of(kind: Any) -> Any:
        kind = kind.element_ty if isinstance(kind, tl.block_type) else kind
        return known(kind) if isinstance(kind, tl.pointer_type) else scalar(kind)

    return of


def _block_once(make: Callable[..., None]) -> Callable[..., None]:
    """What makes the type of a block; what it has of its shape alone is found once."""
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def made(self: Any, element_ty: Any, shape: Any) -> None:
        where = tuple(shape)
        if where not in known:
            make(self, element_ty, shape)
            known[where] = {key: value for key, value in vars(self).items() if key not in ("element_ty", "name")}
        vars(self).update(known[where])
        self.element_ty, self.name = element_ty, f"<{self.shape}, {element_ty}>"

    return made


def _tensor_once(make: Callable[..., None]) -> Callable[..., None]:
    """What makes a tensor, likewise."""
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def made(self: Any, handle: Any, type: Any) -> None:
        where = tuple(type.shape) if type.is_block() else ()
        if where not in known:
            make(self, handle, type)
            known[where] = {key: value for key, value in vars(self).items() if key not in ("handle", "type", "dtype")}
        vars(self).update(known[where])
        self.handle, self.type, self.dtype = handle, type, type.scalar

    return made


def _put(owner: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
    """A function of the language, which is told of the interpreter."""
    from triton.runtime.interpreter import interpreter_semantic

    def told(*args: Any, **given: Any) -> Any:
        given["_semantic"] = interpreter_semantic
        return member(*args, **given)

    scope.set_attr(owner, name, told)
