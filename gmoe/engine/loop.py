"""EngineLoop: the only thread that touches the model; an inbox, and an outbox a sequence."""

import atexit
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from gmoe.engine.engine import Engine, StepOutput
from gmoe.engine.sequence import Sequence

CLOSED = "the model was closed"
_Outbox = queue.SimpleQueue[StepOutput | BaseException | None]


class _Task(NamedTuple):
    run: Callable[[], None]
    long: bool = False  # sequences that run have a step behind it


class Outputs:
    """One sequence's tokens as they come; raises what the engine raised. `close`, from any thread, aborts it."""

    def __init__(self, seq: Sequence, outbox: _Outbox, abort: Callable[[], object]):
        self._seq, self._outbox, self._abort = seq, outbox, abort
        self._ended = False

    def __iter__(self) -> "Outputs":
        return self

    def __next__(self) -> StepOutput:
        if self._ended:
            raise StopIteration
        output = self._outbox.get()
        if output is None or isinstance(output, BaseException):
            self._ended = True
            raise output or StopIteration
        self._ended = output.finish_reason is not None
        return output

    def close(self) -> None:
        """End the sequence if it still runs; whoever waits for its next token waits no longer."""
        if not self._ended:
            self._ended = True
            if not self._seq.finish_reason:
                self._abort()
            self._outbox.put(None)

    def __del__(self) -> None:
        self.close()


class EngineLoop:
    """Runs an engine in its own thread until `close`, or until the process ends."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self._inbox: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._outboxes: dict[int, tuple[Sequence, _Outbox]] = {}
        self._closed = False
        self._door = threading.RLock()  # nothing enters the inbox after its last word; Outputs may die inside of it
        self._thread = threading.Thread(target=self._run, name="gmoe-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # Python ends threads by unwinding them, which a kernel answers with an abort

    def submit(self, seq: Sequence, begin: Callable[[], None] = lambda: None) -> Outputs:
        """Queue a sequence; `begin` runs in the engine's thread before it. `RuntimeError` where the loop is closed."""
        outbox: _Outbox = queue.SimpleQueue()

        def enter() -> None:
            try:
                begin()
            except Exception as error:  # who asked hears of it; the loop lives on
                seq.finish_reason = "abort"
                outbox.put(error)
            else:
                self._add(seq, outbox)

        if not self._put(enter):
            raise RuntimeError(CLOSED)
        return Outputs(seq, outbox, lambda: self._put(lambda: self._abort(seq)))

    def call(self, function: Callable[[], Any], begin: Callable[[], None] = lambda: None) -> Any:
        """Run a function in the engine's thread, behind `begin`, and give back what it returns or raises."""
        answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                begin()
                answer.put((function(), None))
            except Exception as error:
                answer.put((None, error))

        if not self._put(run, long=True):
            raise RuntimeError(CLOSED)
        value, error = answer.get()
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        """End the thread; sequences that are still running are aborted."""
        with self._door:
            if not self._closed:
                self._inbox.put(None)
            self._closed = True
        self._thread.join()
        atexit.unregister(self.close)

    def _put(self, run: Callable[[], None], long: bool = False) -> bool:
        with self._door:
            if not self._closed:
                self._inbox.put(_Task(run, long))
            return not self._closed

    def _add(self, seq: Sequence, outbox: _Outbox) -> None:
        try:
            self.engine.add(seq)
        except ValueError as error:
            seq.finish_reason = "abort"
            outbox.put(error)
        else:
            self._outboxes[id(seq)] = (seq, outbox)

    def _abort(self, seq: Sequence) -> None:
        self.engine.abort(seq)
        self._outboxes.pop(id(seq), None)

    def _run(self) -> None:
        while self._take():
            try:
                outputs = self.engine.step() if self._outboxes else []
            except Exception as error:  # the step's requesters hear of it; the loop lives on
                for seq, outbox in list(self._outboxes.values()):
                    self._abort(seq)
                    outbox.put(error)
                continue
            for output in outputs:
                _, outbox = self._outboxes[id(output.seq)]
                if output.finish_reason:
                    del self._outboxes[id(output.seq)]
                outbox.put(output.error or output)
        for seq, outbox in list(self._outboxes.values()):
            self._abort(seq)
            outbox.put(RuntimeError(CLOSED))

    def _take(self) -> bool:
        """Do what is in the inbox; waits only where no sequence runs. False: close."""
        while True:
            try:
                task = self._inbox.get(block=not self._outboxes)
            except queue.Empty:
                return True
            if task is None:
                return False
            task.run()
            if self._inbox.empty() or (task.long and self._outboxes):
                return True
