"""TextStream: one answer as text; token ids of the engine in, events out."""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from gmoe.engine.loop import Outputs
from gmoe.engine.sampler import Logprobs
from gmoe.engine.sequence import Sequence
from gmoe.tokenizer.parsers.tags import Parser
from gmoe.tokenizer.stop import StopMatcher
from gmoe.tokenizer.stream import Detokenizer
from gmoe.tokenizer.tokenizer import Tokenizer

Heard = Callable[[bool, float], None]  # whether it is the first token, and the seconds that it took


@dataclass(frozen=True)
class TextEvent:
    """A piece of an answer; `finish_reason` is None but on the last: "stop", "length" or, where it was closed, "abort".

    The event of an abort has no token, and the text that was held back until then. `stop_text` is the one of the stop
    texts that ended the answer. Where that was asked for, events without text or token say how much of the prompt is
    computed: `n_read` tokens.
    """

    text: str
    token_id: int | None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    stop_text: str | None = None
    n_read: int = 0


class TextStream:
    """The events of one answer as they come; `close`, from any thread, ends it: the next event is the last."""

    def __init__(self, seq: Sequence, outputs: Outputs, events: Iterator[TextEvent]):
        self._seq, self._outputs, self._events = seq, outputs, events
        self.parser: Parser | None = None  # a fresh one for this answer's text, where it is one of a conversation

    def __iter__(self) -> "TextStream":
        return self

    def __next__(self) -> TextEvent:
        return next(self._events)

    def close(self) -> None:
        """Abort what still runs."""
        self._outputs.close()

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return self._seq.n_prompt

    @property
    def n_reused(self) -> int:
        """Tokens of the prompt that were found computed."""
        return self._seq.n_reused

    @property
    def n_drafted(self) -> int:
        """Tokens that were guessed and computed before they were said."""
        return self._seq.n_drafted

    @property
    def n_accepted(self) -> int:
        """Of those the ones that were said."""
        return self._seq.n_accepted


def text_events(
    tokenizer: Tokenizer, seq: Sequence, outputs: Outputs, spelled: Collection[str], heard: Heard
) -> Iterator[TextEvent]:
    """The events of a sequence that was queued; `heard` is told of each token. Raises what the engine raised."""
    stop, text = StopMatcher(seq.params.stop), Detokenizer(tokenizer, spelled=spelled)
    last, first = time.perf_counter(), True
    for output in outputs:
        if output.token_id is None:
            yield TextEvent("", None, n_read=output.n_read)
            continue
        now = time.perf_counter()
        heard(first, now - last)
        last, first = now, False
        reason = output.finish_reason
        piece = "" if output.token_id in seq.end_ids else stop.push(text.push(output.token_id))
        if stop.stopped:
            reason = "stop"
            outputs.close()
        elif reason:
            piece += stop.push(text.flush()) + stop.flush()
        yield TextEvent(piece, output.token_id, reason, output.logprobs, stop.found if reason == "stop" else None)
        if reason:
            return
    yield TextEvent(stop.push(text.flush()) + stop.flush(), None, "abort")
