"""Recorder: the native calls of a step, kept while it runs, so that it can run again without Python between them."""

from collections.abc import Callable
from types import TracebackType
from typing import Any

from gmoe.kernels.cpu import _cpu
from gmoe.kernels.lend import EMPTY, Memory
from torch import Tensor
from torch.overrides import TorchFunctionMode

_PIECE = 1 << 20  # bytes of memory for a tape's tensors
_VIEWS = {
    "view",
    "reshape",
    "flatten",
    "contiguous",
    "split_with_sizes",
    "__getitem__",
}  # where nothing has to be copied
_LOOKS = {"data_ptr", "is_contiguous", "stride", "numel", "dim", "__len__"}  # at no number of the tensor


class Recorder(TorchFunctionMode):
    """While it is entered, this thread's native calls go onto its tape with the addresses they were given.

    Empty tensors get memory of the recorder, which it gives to the next one when a tensor has died, as it will be when
    the tape runs, and keeps as long as the tape. Whatever else tensors are asked for between the calls is not on it:
    `foreign` names that, and a tape with any is worth nothing. Neither on it nor seen are native calls that tell Python
    a number, and tensors made of numpy's arrays: who records must know that these stay the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self.foreign: set[str] = set()
        self._tape = _cpu.Tape()
        self._memory = Memory(_PIECE)

    def __enter__(self) -> "Recorder":
        _cpu.record(self._tape)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        _cpu.record(None)

    def __len__(self) -> int:
        return len(self._tape)

    def run(self) -> None:
        """The calls once more, in order, on what now lies at their addresses."""
        self._tape.run()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made, name = func(*args, **(kwargs or {})), func.__name__
        if name in EMPTY:
            return self._memory.lend(made)
        attribute = name == "__get__" and not isinstance(made, Tensor)
        view = name in {*_VIEWS, "__get__"} and _same_memory(made, args)
        if not (attribute or view or name in _LOOKS):
            self.foreign.add(name)
        return made


def _same_memory(made: Any, args: tuple[Any, ...]) -> bool:
    """Whether all results are views of arguments."""
    places = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
    results = made if isinstance(made, list | tuple) else [made]
    return all(isinstance(y, Tensor) and y.untyped_storage().data_ptr() in places for y in results)


def record(work: Callable[[], Tensor]) -> tuple[Tensor, Recorder | None]:
    """Run `work` and record it: its result and, unless torch computed anything itself, what runs it again.

    The tape finds its inputs, its weights and its result where they were; they must stay.
    """
    with Recorder() as recorder:
        result = work()
    return result, None if recorder.foreign else recorder
