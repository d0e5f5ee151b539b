"""EngineLoop: the only thread that touches the model; an inbox, and an outbox a sequence."""

import queue
import threading
from collections.abc import Callable, Generator
from typing import Any

from gmoe.engine.engine import Engine, StepOutput
from gmoe.engine.sequence import Sequence

CLOSED = "the model was closed"
_Outbox = queue.SimpleQueue[StepOutput | BaseException]


class EngineLoop:
    """Runs an engine in its own thread until `close`."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._outboxes: dict[int, tuple[Sequence, _Outbox]] = {}
        self._closed = False
        self._door = threading.Lock()  # nothing enters the inbox after its last word
        self._thread = threading.Thread(target=self._run, name="gmoe-engine", daemon=True)
        self._thread.start()

    def submit(self, seq: Sequence) -> Generator[StepOutput, None, None]:
        """The sequence's tokens as they come; closing the iterator aborts it.

        Raises what the engine raised, and `RuntimeError` where the loop is closed.
        """
        outbox: _Outbox = queue.SimpleQueue()
        if not self._put(lambda: self._add(seq, outbox)):
            raise RuntimeError(CLOSED)
        try:
            while True:
                output = outbox.get()
                if isinstance(output, BaseException):
                    raise output
                yield output
                if output.finish_reason:
                    return
        finally:
            if not seq.finish_reason:
                self._put(lambda: self._abort(seq))

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function in the engine's thread and give back what it returns or raises."""
        answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                answer.put((function(), None))
            except Exception as error:
                answer.put((None, error))

        if not self._put(run):
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

    def _put(self, task: Callable[[], None]) -> bool:
        with self._door:
            if not self._closed:
                self._inbox.put(task)
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
                outbox.put(output)
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
            task()
            if self._inbox.empty():
                return True
