"""ModelHost: name -> running LLM; loads, counts users, keeps alive, evicts. It lives on one event loop."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from gmoe.gguf.file import GGUFError
from gmoe.options import RuntimeOptions
from gmoe.server.ask import Refused
from gmoe.server.catalog import Catalog, Entry, options_for
from gmoe.server.stream import log

BUSY = "server busy, please try again.  maximum pending requests exceeded"
FOREVER = -1.0
Load = Callable[[Any, RuntimeOptions], Any]


@dataclass(eq=False)
class Running:
    """A model in memory. `expires` is a time of `time.monotonic`, None while it is used or forever."""

    entry: Entry  # for which it was loaded
    wanted: RuntimeOptions  # of that, without what a request wants
    options: RuntimeOptions
    began: float = field(default_factory=time.monotonic)
    llm: Any = None  # None while it loads
    users: int = 0
    keep_alive: float = 300.0
    used: float = 0.0
    load_seconds: float = 0.0
    stopping: bool = False
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Exception | None = None
    timer: asyncio.TimerHandle | None = None
    names: dict[str, Entry] = field(default_factory=dict)  # under which it was asked for, as they were last
    extra: dict[str, Any] = field(default_factory=dict)  # what others keep beside a model as long as it lives

    @property
    def name(self) -> str:
        """The first that it has."""
        return next(iter(self.names), self.entry.name)

    @property
    def expires_at(self) -> datetime:
        """When it will be unloaded if nobody asks again."""
        if self.keep_alive < 0:
            return datetime(2318, 1, 1, tzinfo=UTC)
        left = self.keep_alive if self.users else max(0.0, self.used + self.keep_alive - time.monotonic())
        return datetime.fromtimestamp(time.time() + left, UTC)


@dataclass(frozen=True, eq=False)
class Lease:
    """A model in memory as a request has it: other names may have other Modelfiles."""

    entry: Entry
    running: Running

    @property
    def llm(self) -> Any:
        """What answers."""
        return self.running.llm


class ModelHost:
    """Leases models; names whose Modelfiles load a file alike share it.

    At most `max_loaded` are in memory; one that nobody uses makes room, the longest unused first.
    `max_queue` requests may wait beside those that models are answering.
    """

    def __init__(
        self,
        catalog: Catalog,
        options: RuntimeOptions,
        load: Load,
        *,
        keep_alive: float = 300.0,
        max_loaded: int = 3,
        max_queue: int = 512,
    ):
        self.catalog, self.options = catalog, options
        self.keep_alive, self.max_loaded, self.max_queue = keep_alive, max_loaded, max_queue
        self.loaded: list[Running] = []
        self.retired: dict[str, dict[str, Any]] = {}  # by name, the counters of models that are no longer loaded
        self.pending = 0  # requests that were admitted and are not done
        self._load = load
        self._changed = asyncio.Condition()
        self._line: list[object] = []  # who waits for a model, in the order in which they came
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def answering(self) -> int:
        """How many of the pending requests models are answering; the others wait."""
        return sum(min(one.users, one.options.max_sequences) for one in self.loaded if one.llm is not None)

    @property
    def running(self) -> dict[str, Running]:
        """The models by all of their names."""
        return {name: one for one in self.loaded for name in one.names}

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """A place in the queue; `Refused` (503) where it is full."""
        if self.pending - self.answering >= self.max_queue:
            raise Refused(503, BUSY)
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1

    @asynccontextmanager
    async def lease(
        self,
        name: str,
        keep_alive: float | None = None,
        num_ctx: int | None = None,
        num_thread: int | None = None,
    ) -> AsyncIterator[Lease]:
        """The model of a name, loaded, and not unloaded meanwhile. Raises `Refused`, and what loading raises."""
        entry = await asyncio.to_thread(self.catalog.find, name)
        wanted = options_for(entry, self.options)
        options = replace(
            wanted, context=max(0, num_ctx or wanted.context), threads=max(0, num_thread or wanted.threads)
        )
        while True:
            running = await self._take(entry, wanted, options)
            try:
                await running.ready.wait()
                if isinstance(running.failure, ValueError) and not isinstance(running.failure, GGUFError):
                    raise Refused(500, str(running.failure))  # what the server was told, not what it is asked
                if running.failure:
                    raise running.failure
                if not _suffices(running, options.context):
                    continue  # it was being loaded for somebody who wants less
                if keep_alive is not None:
                    running.keep_alive = keep_alive
                if running.llm.context < options.context:
                    _tell_lowered(running)
                yield Lease(entry, running)
                return
            finally:
                running.users -= 1
                running.used = time.monotonic()
                if not running.users:
                    self._rest(running)
                async with self._changed:
                    self._changed.notify_all()

    async def unload(self, name: str) -> bool:
        """Forget a model as soon as nobody uses it, or its name where it has others; False where it was not loaded."""
        entry = await asyncio.to_thread(self.catalog.find, name)
        running = self.running.get(entry.name)
        if running is None:
            return False
        if len(running.names) > 1:
            del running.names[entry.name]
            return True
        running.keep_alive = 0.0
        running.stopping = True
        if not running.users:
            self._rest(running)
        return True

    async def close(self) -> None:
        """Unload everything; requests that still run end with an error."""
        for running in list(self.loaded):
            self._drop(running)
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    async def _take(self, entry: Entry, wanted: RuntimeOptions, options: RuntimeOptions) -> Running:
        """A user more of a model that is there or beginning to be; waits for room, and for whoever came before."""
        place = object()
        async with self._changed:
            self._line.append(place)
            try:
                while self._line[0] is not place or (running := self._find(entry, wanted, options)) is None:
                    await self._changed.wait()
            finally:
                self._line.remove(place)
                self._changed.notify_all()
            self._name(running, entry)
            running.users += 1
            if running.timer:
                running.timer.cancel()
                running.timer = None
        return running

    def _find(self, entry: Entry, wanted: RuntimeOptions, options: RuntimeOptions) -> Running | None:
        """The model, perhaps just beginning to be; None where others must end before."""
        need = options.context
        fit = [one for one in self.loaded if _fits(one, entry, wanted)]
        best = min(fit, key=lambda one: (not _suffices(one, need), entry.name not in one.names), default=None)
        if best is not None and _suffices(best, need):
            return best
        replaced = [one for one in self.loaded if list(one.names) == [entry.name] or one is best]
        if any(one.users and (one is not best or one.wanted == wanted) for one in replaced):
            return None
        for one in replaced:
            if not one.users:  # else another Modelfile's, with less context, goes on beside it
                self._drop(one)
        return self._begin(entry, wanted, options) if self._make_room(entry) else None

    def _name(self, running: Running, entry: Entry) -> None:
        """Its name is this model's from now on; one that so has lost its last goes when nobody uses it."""
        for one in [one for one in self.loaded if one is not running and entry.name in one.names]:
            del one.names[entry.name]
            if not one.names:
                one.keep_alive = 0.0
                if not one.users:
                    self._drop(one)
        if not running.names:
            running.keep_alive = self.keep_alive  # it may have lost its last before
        running.names[entry.name] = entry

    def _begin(self, entry: Entry, wanted: RuntimeOptions, options: RuntimeOptions) -> Running:
        running = Running(entry, wanted, options, keep_alive=self.keep_alive)
        self.loaded.append(running)
        task = asyncio.create_task(self._fill(running))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return running

    async def _fill(self, running: Running) -> None:
        try:
            running.llm = await asyncio.to_thread(self._load, running.entry.path, running.options)
            for notice in running.llm.notices:
                log.warning("%s: %s", running.name, notice)
        except Exception as error:
            running.failure = error
            self._forget(running)
        running.load_seconds = time.monotonic() - running.began
        running.used = time.monotonic()
        running.ready.set()
        if running.llm is not None and running not in self.loaded:
            await asyncio.to_thread(running.llm.close)  # it was dropped while it loaded
        elif not running.users:
            self._rest(running)

    def _make_room(self, entry: Entry) -> bool:
        """Drop idle models until one more may be loaded; False where all are busy."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        idle = sorted((r for r in self.loaded if not r.users), key=lambda r: r.used)
        while self.loaded:
            bytes_loaded = sum(running.entry.size for running in self.loaded)
            if len(self.loaded) < self.max_loaded and bytes_loaded + entry.size <= memory:
                return True
            if not idle:
                return len(self.loaded) < self.max_loaded
            self._drop(idle.pop(0))
        return True

    def _rest(self, running: Running) -> None:
        """Nobody uses it: let its time run."""
        if running.timer:
            running.timer.cancel()
            running.timer = None
        if running not in self.loaded or running.keep_alive < 0:
            return
        if running.keep_alive == 0:
            self._drop(running)
        else:
            loop = asyncio.get_running_loop()
            running.timer = loop.call_later(running.keep_alive, self._drop_idle, running)

    def _drop_idle(self, running: Running) -> None:
        if not running.users:
            self._drop(running)

    def _drop(self, running: Running) -> None:
        """Forget it now and free it in the background."""
        self._forget(running)
        if running.timer:
            running.timer.cancel()
        if running.llm is not None:
            name = running.name
            self.retired[name] = added(self.retired.get(name, {}), running.llm.stats)
            task = asyncio.create_task(asyncio.to_thread(running.llm.close))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _forget(self, running: Running) -> None:
        if running in self.loaded:
            self.loaded.remove(running)


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Counters summed, entry by entry."""
    total = dict(one)
    for name, value in other.items():
        if isinstance(value, Mapping):
            total[name] = added(total.get(name) or {}, value)
        elif isinstance(value, int | float):
            total[name] = total.get(name, 0) + value
    return total


def _tell_lowered(running: Running) -> None:
    """A context longer than the model's own was asked for, which it does not get; said once."""
    said = f"the context is {running.llm.context} tokens, all that the model was trained for: more was asked for"
    if said not in running.llm.notices:
        running.llm.notices.append(said)
        log.warning("%s: %s", running.name, said)


def _fits(running: Running, entry: Entry, wanted: RuntimeOptions) -> bool:
    """Whether it is this entry's file, loaded as its Modelfile wants it but for how much context there is.

    As much as the model has wants who names none. A name whose Modelfile was changed has all of it anew.
    """
    if running.entry.identity != entry.identity or replace(running.wanted, context=wanted.context) != wanted:
        return False
    if running.wanted.context == wanted.context:
        return True
    before = running.names.get(entry.name)
    if before is not None and before.digest != entry.digest:
        return False
    whole = running.llm is not None and running.llm.context >= running.llm.hparams.n_ctx_train
    return wanted.context > 0 or whole


def _suffices(running: Running, need: int) -> bool:
    """Whether a model has the context that is asked for, all that it can have, or is about to have what it can."""
    if running.llm is None or running.options.context >= need:
        return True
    return bool(min(need, running.llm.hparams.n_ctx_train) <= running.llm.context)
