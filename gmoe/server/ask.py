"""Ask: what a client wants of a model, whichever dialect said it, and the events of the answer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gmoe.engine.sampling import SamplingParams

Message = Mapping[str, Any]


class Refused(Exception):
    """A request that is not served: an HTTP status and one sentence."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status, self.text = status, text


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request for text. It has `messages`, or a `prompt`; with neither the model is only loaded or unloaded.

    `sampling` are fields of `SamplingParams`; where it is silent the model's own parameters count, then `defaults`.
    """

    model: str
    messages: Sequence[Message] | None = None
    prompt: str | Sequence[int | str] | None = None  # text, or token ids and texts
    templated: bool = False  # a prompt that goes through the chat template as a user's message
    system: str | None = None
    template: str | None = None  # instead of the model's own
    suffix: str | None = None  # what the answer leads to
    context: Sequence[int] = ()  # ids of the conversation before the prompt
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | None = None  # "none", "auto", "required", or the name of a function
    one_call: bool = False  # the answer ends with the first call of a tool
    think: bool | str | None = None
    think_strict: bool = True  # asking a model to think that cannot is an error
    template_values: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    special_tokens: bool = True  # control tokens are found in the prompt's text, and bos is added
    echo: bool = False  # the answer begins with the prompt
    parts: Sequence["Ask"] = ()  # several requests that are answered together, instead of this one
    copy: int = 0  # which of several like ones this is
    ignore_end: bool = False
    predict_seconds: float = 0.0  # after so many from its first token the answer ends with its line; 0: it goes on
    reuse: bool = True  # what is already computed of the prompt is not computed again
    timed: bool = False  # each piece says what the answer took so far
    tells: bool = False  # how much of the prompt is computed is said meanwhile
    mute: bool = False  # the prompt is computed, and nothing is said
    num_ctx: int | None = None
    num_thread: int | None = None
    num_keep: int = 4
    truncate: bool = True  # drop the oldest messages of a conversation that is too long
    shift: bool = True  # and the middle of a text that is
    keep_alive: float | None = None  # seconds; negative: forever
    stream: bool = True
    progress: bool = False  # say how loading goes
    only_render: bool = False  # the prompt's text is the answer
    task: str | None = None  # for the admission policy of this name
    target_seconds: float | None = None  # from now to the answer's end, likewise
    warnings: Sequence[str] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)  # what only the dialect itself reads again

    @property
    def empty(self) -> bool:
        """Whether nothing is to be said."""
        return not self.messages and self.prompt is None


class Chosen(NamedTuple):
    """One token and how probable it was (None: nothing stood before it); `top` are the likeliest, likeliest first."""

    token: str
    logprob: float | None
    raw: bytes
    id: int
    top: tuple["Chosen", ...] = ()


class ToolCall(NamedTuple):
    """A function that the model calls; `arguments` keep their order."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Usage:
    """What an answer took; seconds. `experts` are the counters of the model's experts meanwhile."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    thinking_tokens: int = 0  # of these, before the answer proper
    drafted_tokens: int = 0  # guessed, and computed before they were said
    accepted_tokens: int = 0  # of these, those that were said
    load_seconds: float = 0.0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    total_seconds: float = 0.0
    experts: Mapping[str, Any] = field(default_factory=dict)

    def timings(self) -> dict[str, Any]:
        """llama-server's figures: milliseconds and tokens a second."""
        fresh = self.prompt_tokens - self.cached_tokens
        drafts = {"draft_n": self.drafted_tokens, "draft_n_accepted": self.accepted_tokens}
        return {
            "cache_n": self.cached_tokens,
            "prompt_n": fresh,
            "prompt_ms": self.prompt_seconds * 1e3,
            "prompt_per_second": fresh / self.prompt_seconds if self.prompt_seconds else 0.0,
            "predicted_n": self.tokens,
            "predicted_ms": self.decode_seconds * 1e3,
            "predicted_per_second": self.tokens / self.decode_seconds if self.decode_seconds else 0.0,
            **(drafts if self.drafted_tokens else {}),
            **({"experts": self.experts} if self.experts else {}),
        }


class Loading(NamedTuple):
    """The model is being loaded since `seconds`; `share` of it is done, where that is known."""

    seconds: float
    share: float | None = None


class Read(NamedTuple):
    """Of the prompt's `total` tokens so many were found computed, and so many are computed after `seconds`."""

    total: int
    cached: int
    computed: int
    seconds: float


class Piece(NamedTuple):
    """A part of an answer, or with `read` of its prompt."""

    content: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    ids: tuple[int, ...] = ()
    logprobs: tuple[Chosen, ...] = ()
    choice: int = 0  # of the answers to a request for several
    usage: Usage | None = None  # so far
    read: Read | None = None


class End(NamedTuple):
    """The last event. `reason`: stop, length, tool_calls, load or unload."""

    reason: str
    usage: Usage = Usage()
    context: tuple[int, ...] = ()
    stop: str | None = None  # the stop text that ended it
    prompt: str | None = None  # the text, where only that was asked for
    choice: int = 0
    params: SamplingParams | None = None  # with which the answer was made
    n_ctx: int = 0  # the tokens that prompt and answer may have


Event = Loading | Piece | End
Events = Iterator[Event]


class Whole(NamedTuple):
    """An answer in one."""

    piece: Piece
    end: End


def whole(events: Events) -> Whole:
    """Wait for the end and join the pieces."""
    pieces: list[Piece] = []
    end = End("stop")
    for event in events:
        if isinstance(event, Piece):
            pieces.append(event)
        elif isinstance(event, End):
            end = event
    return Whole(joined(pieces), end)


def wholes(events: Events) -> list[Whole]:
    """Wait for the ends of all answers and join the pieces of each, in the order of the choices."""
    by_choice: dict[int, list[Event]] = {}
    for event in events:
        if not isinstance(event, Loading):
            by_choice.setdefault(event.choice, []).append(event)
    return [whole(iter(by_choice[choice])) for choice in sorted(by_choice)]


def joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces of one answer as one."""
    return Piece(
        "".join(piece.content for piece in pieces),
        "".join(piece.thinking for piece in pieces),
        tuple(call for piece in pieces for call in piece.tool_calls),
        tuple(id for piece in pieces for id in piece.ids),
        tuple(chosen for piece in pieces for chosen in piece.logprobs),
    )


def together(ends: Iterable[End], ask: Ask) -> Usage:
    """What several answers took; a prompt that has several answers counts once."""
    all = {end.choice: end.usage for end in ends}
    prompts = [usage for choice, usage in all.items() if not ask.parts or not ask.parts[choice].copy]
    first = next(iter(all.values()), Usage())
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in prompts),
        cached_tokens=sum(usage.cached_tokens for usage in prompts),
        tokens=sum(usage.tokens for usage in all.values()),
        thinking_tokens=sum(usage.thinking_tokens for usage in all.values()),
        load_seconds=first.load_seconds,
        prompt_seconds=max((usage.prompt_seconds for usage in all.values()), default=0.0),
        decode_seconds=max((usage.decode_seconds for usage in all.values()), default=0.0),
        total_seconds=max((usage.total_seconds for usage in all.values()), default=0.0),
        experts=first.experts,
    )
