"""Several: the answers to one request that wants more than one, computed side by side."""

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from gmoe.server.answer import Answer
from gmoe.server.ask import Event, Loading

AT_ONCE = 64  # further ones begin when others have ended


class Several:
    """Iterate once, in a thread of its own: the events of all answers as they come, each with its `choice`.

    An answer that fails ends all of them.
    """

    def __init__(self, answers: Sequence[Answer]):
        self._answers = answers
        self._events: queue.SimpleQueue[Event | Exception | None] = queue.SimpleQueue()

    def cancel(self) -> None:
        """End them; whoever iterates gets no further event."""
        for answer in self._answers:
            answer.cancel()

    def __iter__(self) -> Iterator[Event]:
        left = len(self._answers)
        with ThreadPoolExecutor(min(left, AT_ONCE), thread_name_prefix="gmoe-choice") as pool:
            try:
                for choice, answer in enumerate(self._answers):
                    pool.submit(self._run, choice, answer)
                while left:
                    event = self._events.get()
                    if isinstance(event, Exception):
                        raise event
                    if event is None:
                        left -= 1
                    else:
                        yield event
            finally:
                self.cancel()

    def _run(self, choice: int, answer: Answer) -> None:
        try:
            for event in answer:
                if not isinstance(event, Loading):
                    self._events.put(event._replace(choice=choice))
            self._events.put(None)
        except Exception as error:
            self._events.put(error)
