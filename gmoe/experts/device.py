"""A device beside the CPU as the experts' tier sees it: memory, copies on a stream of their own, events."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from gmoe.experts.device_turns import Turns, turns_of
from gmoe.kernels.device_kernels import DeviceKernels
from gmoe.kernels.triton.tuned import Choices

LEAST_CAPABILITY = (8, 0)  # what Triton compiles for
RESERVED = 64 << 20  # bytes of the driver's own that no counter shows


class DeviceError(ValueError):
    """A device that cannot be used or has failed; the text is one sentence."""


class Event(Protocol):
    """A point in the device's work."""

    def query(self) -> bool:
        """Whether it has been reached; does not wait."""

    def synchronize(self) -> None:
        """The host waits until it has been reached."""


class Copy(Event, Protocol):
    """A copy to the device."""

    @property
    def seconds(self) -> float:
        """How long the link took, once it is through; 0.0 where that is not known."""


class Device(Protocol):
    """Every method but `synchronize` returns at once; where memory ends, torch.OutOfMemoryError."""

    torch: torch.device
    name: str  # the card's
    turns: Turns  # of all that use the card
    compiles: bool  # kernels at their first launch: they are checked and rehearsed before they answer

    def kernels(self, choices: Choices) -> DeviceKernels:
        """For one model, launched as these choices say."""

    def empty(self, nbytes: int) -> Tensor:
        """uint8 [nbytes] on the device."""

    def pinned(self, nbytes: int) -> Tensor:
        """uint8 [nbytes] of host memory out of which copies run by themselves."""

    def upload(self, into: Tensor, source: Tensor, after: Event | None) -> Copy:
        """Copy pinned bytes to the device beside its work, not before `after`; both must stay until the event."""

    def send(self, source: Tensor) -> Tensor:
        """A copy on the device of a small tensor of the host, in line with the device's work."""

    def receive(self, source: Tensor) -> tuple[Tensor, Event]:
        """A copy on the host of a tensor of the device, in line with its work; there with the event."""

    def mark(self) -> Event:
        """The end of all that has been launched so far."""

    def wait(self, event: Event) -> None:
        """What is launched from now on comes after the event; the host goes on."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, Any]:
        """Do `work`, which only launches kernels: its result, and what launches all of them at once on each `run`.

        They find their tensors, the result too, where these were. `DeviceError` where they cannot be kept. Whoever
        calls this is `turns.alone`.
        """

    def free(self) -> int:
        """Bytes that can still be taken."""

    def total(self) -> int:
        """Bytes that the device has."""

    def give_back(self) -> None:
        """Return what torch holds and nobody uses."""

    def synchronize(self) -> None:
        """The host waits until nothing is under way."""


class Cuda:
    """A CUDA card: torch's current stream computes, another copies."""

    compiles = True

    def __init__(self, device: torch.device):
        self.torch = device
        self.name, self.turns = torch.cuda.get_device_name(device), turns_of(device.type)
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._recorder = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = None  # of memory, which graphs share: they run one after the other

    def kernels(self, choices: Choices) -> DeviceKernels:
        made: DeviceKernels = import_module("gmoe.kernels.triton.kernels").Kernels(choices)
        return made

    def empty(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.torch)

    def pinned(self, nbytes: int) -> Tensor:
        with torch.cuda.device(self.torch):  # else a thread's first use of CUDA would take memory of the first card
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def upload(self, into: Tensor, source: Tensor, after: Event | None) -> Copy:
        with torch.cuda.stream(self._side):
            if after is not None:
                self._side.wait_event(after)  # type: ignore[arg-type]
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begun.record(self._side)
            into.copy_(source, non_blocking=True)
            ended.record(self._side)
            return _Copy(begun, ended)

    def send(self, source: Tensor) -> Tensor:
        with torch.cuda.device(self.torch):
            return source.pin_memory().to(self.torch, non_blocking=True)

    def receive(self, source: Tensor) -> tuple[Tensor, Event]:
        with torch.cuda.device(self.torch):
            target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            target.copy_(source, non_blocking=True)
        return target, self.mark()

    def mark(self) -> Event:
        return torch.cuda.current_stream(self.torch).record_event()

    def wait(self, event: Event) -> None:
        event = event.ended if isinstance(event, _Copy) else event
        torch.cuda.current_stream(self.torch).wait_event(event)  # type: ignore[arg-type]

    def record(self, work: Callable[[], Tensor]) -> tuple[Tensor, "_Graph"]:
        work()  # kernels that are new to the card are loaded, which a graph cannot take
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        recording = torch.cuda.graph(graph, self._pool, self._recorder, capture_error_mode="thread_local")
        own = torch.cuda.current_stream(self.torch)  # torch does not come back to it where a recording fails
        try:
            with torch.cuda.device(self.torch), torch.cuda.stream(own), recording:
                result = work()
        except torch.OutOfMemoryError:
            raise  # there may be room the next time
        except RuntimeError as error:
            if isinstance(error.__context__, torch.OutOfMemoryError):  # what ends the recording speaks over it
                raise error.__context__ from None
            raise DeviceError(f"{self.torch} launches a step kernel by kernel: {sentence(error)}") from None
        graph.replay()
        return result, _Graph(graph)

    def free(self) -> int:
        free, _ = torch.cuda.mem_get_info(self.torch)
        held = torch.cuda.memory_reserved(self.torch) - torch.cuda.memory_allocated(self.torch)
        return max(0, free + held - RESERVED)

    def total(self) -> int:
        return int(torch.cuda.mem_get_info(self.torch)[1])

    def give_back(self) -> None:
        torch.cuda.empty_cache()

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch)


class _Copy:
    """On the side stream, between two events."""

    def __init__(self, begun: torch.cuda.Event, ended: torch.cuda.Event):
        self.begun, self.ended = begun, ended

    def query(self) -> bool:
        return bool(self.ended.query())  # type: ignore[no-untyped-call]

    def synchronize(self) -> None:
        self.ended.synchronize()

    @property
    def seconds(self) -> float:
        """Of the link alone: copies before it, and kernels that it had to wait for, do not count."""
        return float(self.begun.elapsed_time(self.ended)) / 1e3


class _Graph:
    """A CUDA graph and the memory it computes in."""

    def __init__(self, graph: torch.cuda.CUDAGraph):
        self._graph = graph

    def run(self) -> None:
        """One launch."""
        self._graph.replay()


def open_device(name: str, cuda: Any = torch.cuda, built: str | None = torch.version.cuda) -> Device | None:
    """The device that the option names, None for the CPU; what stands in its way is a `DeviceError` that says so.

    `cuda` is what to ask, and `built` the CUDA version that torch was built with.
    """
    if not name.startswith("cuda"):
        return None
    if built is None:
        raise DeviceError(f"device={name!r} needs a PyTorch that was built with CUDA, and this one was not")
    try:
        cuda.init()
    except Exception as error:
        raise DeviceError(f"device={name!r} cannot be used: {sentence(error)}") from None
    count, number = cuda.device_count(), int(name.partition(":")[2] or 0)
    if not count:
        raise DeviceError(f"device={name!r} cannot be used: this machine has no CUDA card")
    if number >= count:
        raise DeviceError(f"device={name!r} does not exist: the CUDA cards here are 0 to {count - 1}")
    has, card = tuple(cuda.get_device_capability(number)), cuda.get_device_name(number)
    if has < LEAST_CAPABILITY:
        least = ".".join(map(str, LEAST_CAPABILITY))
        raise DeviceError(f"{card} is too old: it has compute capability {has[0]}.{has[1]}, the kernels need {least}")
    if find_spec("triton") is None:
        raise DeviceError(f"device={name!r} needs the package triton, which is not installed")
    try:
        cuda.set_device(number)
        return Cuda(torch.device("cuda", number))
    except Exception as error:
        raise DeviceError(f"device={name!r} cannot be used: {sentence(error)}") from None


def out_of_memory(device: Device, doing: str) -> DeviceError:
    """What to say where nothing is left to make room with."""
    free, total = device.free() >> 20, device.total() >> 20
    return DeviceError(f"{device.torch} ran out of memory while {doing}: {free} MiB of {total} MiB are free")


@contextmanager
def speaks(device: Device | None, doing: str) -> Iterator[None]:
    """Where the device's memory ends inside, that is a `DeviceError`."""
    try:
        yield
    except torch.OutOfMemoryError:
        if device is None:
            raise
        device.give_back()
        raise out_of_memory(device, doing) from None


@contextmanager
def kernels_work(device: Device) -> Iterator[None]:
    """What a device's kernels raise inside is a `DeviceError`; memory that ends is not theirs."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise out_of_memory(device, "trying its kernels") from None
    except DeviceError:
        raise
    except Exception as error:
        raise DeviceError(f"{device.name} cannot run the kernels of this model: {sentence(error)}") from None


def sentence(error: Exception) -> str:
    """The first sentence of a message that may be long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition(". ")[0].rstrip(".")
