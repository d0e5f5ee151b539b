"""Engine: add, abort, step; it knows token ids only."""

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Ids
from itertools import accumulate, chain, islice
from typing import NamedTuple

import numpy as np

from gmoe.engine.block_manager import BlockManager
from gmoe.engine.runner import Model, Runner
from gmoe.engine.sampler import Logprobs, NotNumbers
from gmoe.engine.sampling import SamplingParams
from gmoe.engine.scheduler import Scheduler, Turn
from gmoe.engine.sequence import Sequence
from gmoe.engine.speculation import Speculation
from gmoe.engine.state_slots import StateSlots
from gmoe.engine.waiting import load
from gmoe.layers.kv_cache import KvType

BLOCK_SIZE = 32
SCORED_AT_ONCE = 128  # tokens whose logits are in memory together


class StepOutput(NamedTuple):
    """One new token of one sequence; with an `error` there is none, and the sequence has ended.

    None, too, where `n_read` tokens of its prompt are computed and the sequence `tells` so.
    """

    seq: Sequence
    token_id: int | None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    error: ValueError | None = None
    n_read: int = 0


class Engine:
    """Runs sequences of at most `context` tokens, `max_sequences` of them together, prompts in chunks.

    `n_blocks` of BLOCK_SIZE tokens are the KV cache of all; None: enough for every sequence to fill its context.
    `admission` is a file name in admission/; `name` is the model's, for what it does wrong.
    With `speculation` a sequence that runs alone may get several tokens in a step.
    """

    def __init__(
        self,
        model: Model,
        context: int,
        max_sequences: int,
        kv_type: KvType,
        chunk: int = 512,
        n_blocks: int | None = None,
        admission: str = "first_come",
        clock: Callable[[], float] = time.monotonic,
        way: Callable[[], bytes] = lambda: b"",
        name: str = "",
        speculation: Speculation | None = None,
    ):
        self.name = name
        self.speculation = speculation
        self._only_forward = model.recurrent
        n_blocks = n_blocks or max_sequences * -(-context // BLOCK_SIZE)
        self.context = min(context, n_blocks * BLOCK_SIZE)
        apart = model.recurrent and model.device.type != "cpu"  # where memory may end in the middle of a pass
        states = StateSlots(max_sequences, apart, BLOCK_SIZE) if model.recurrent else None
        self.runner = Runner(model, n_blocks, BLOCK_SIZE, kv_type, states.n if states else 0)
        blocks = BlockManager(n_blocks, BLOCK_SIZE, states)
        self.scheduler = Scheduler(blocks, max_sequences, chunk, load(admission), clock, way)

    def add(self, seq: Sequence) -> None:
        """Queue a sequence; a prompt that is empty or longer than the context is a `ValueError`."""
        self._check(seq.ids)
        self.scheduler.add(seq)

    def abort(self, seq: Sequence) -> None:
        """End a sequence now."""
        seq.finish_reason = seq.finish_reason or "abort"
        self.scheduler.remove(seq)

    def step(self) -> list[StepOutput]:
        """One forward pass; a sequence whose prompt is not yet through gives no token."""
        turns = self._ahead(self.scheduler.schedule())
        if not turns:
            return []
        ends = accumulate(turn.n_new for turn in turns)
        rows = {turn: range(end)[-1 - len(turn.draft) :] for turn, end in zip(turns, ends, strict=True) if turn.is_last}
        began = self.scheduler.clock()
        logits = iter(self.runner.forward(turns, [*chain(*rows.values())]))
        seconds = self.scheduler.clock() - began
        self.scheduler.admission.stepped(sum(turn.n_new for turn in turns), seconds)
        if self.speculation is not None and len(turns) == 1 and len(rows.get(turns[0], ())) == turns[0].n_new:
            self.speculation.computed(turns[0].n_new, seconds)
        for turn in turns:
            self._cached(turn.seq, 0 if turn.draft and self._only_forward else turn.n_new - len(turn.draft))
        read = [turn.seq for turn in turns if turn.seq.tells and len(turn.seq.ids) == turn.seq.n_prompt]
        told = [StepOutput(seq, None, n_read=seq.n_cached) for seq in read]
        return told + [said for turn, n in rows.items() for said in self._said(turn, [*islice(logits, len(n))])]

    def _ahead(self, turns: list[Turn]) -> list[Turn]:
        """Where a sequence runs alone, its token and what may follow it."""
        if self.speculation is None or len(turns) != 1 or turns[0].seq.pending != 1:
            return turns
        seq = turns[0].seq
        length = min(self.context, seq.n_prompt + (seq.params.max_tokens or self.context))  # at which it ends
        draft = self.speculation.draft(seq, length - len(seq.ids) - 1)
        n_new = 1 + len(draft)
        room = draft and self.scheduler.blocks.grow(seq, seq.n_cached + n_new, ahead=True)
        return [Turn(seq, n_new, draft)] if room else turns

    def _said(self, turn: Turn, logits: list[np.ndarray]) -> list[StepOutput]:
        """What a turn brings: the next token and, as long as its draft is right, those behind it.

        A state that only goes forward is of use behind all of a draft; else it is computed anew from the one before.
        """
        seq, before = turn.seq, len(turn.seq.ids)
        said = [self._choose(seq, logits[0])]
        for left, guessed, row in zip(range(len(turn.draft))[::-1], turn.draft, logits[1:], strict=True):
            if seq.finish_reason or seq.ids[-1] != guessed:
                break
            self._cached(seq, 1 if not self._only_forward else 0 if left else turn.n_new)
            said.append(self._choose(seq, row))
        if self.speculation is not None:
            self.speculation.heard(seq, seq.ids[before:], turn.draft)
        return said

    def _cached(self, seq: Sequence, n: int) -> None:
        seq.n_cached += n
        self.scheduler.blocks.publish(seq)

    def logits(self, ids: Ids[int], step: int = 0) -> np.ndarray:
        """Logits [len(ids), n_vocab] float32 of one fresh sequence, every position; others may have to wait for it.

        `step` tokens are computed at a time, 1: as if they had been generated, 0: as a prompt is.
        """
        return self._whole(ids, self.runner.forward, step)

    def hidden(self, ids: Ids[int]) -> np.ndarray:
        """Final hidden states [len(ids), n_embd] float32, likewise."""
        return self._whole(ids, self.runner.hidden)

    def _whole(self, ids: Ids[int], forward: Callable[[Ids[Turn], Ids[int]], np.ndarray], step: int = 0) -> np.ndarray:
        seq = Sequence(list(ids), SamplingParams())
        seq.n_prompt = step or seq.n_prompt  # what comes behind it counts as generated
        found = self._passes(seq, forward, step)
        return np.concatenate([rows.copy() for rows in found])

    def _passes(
        self, seq: Sequence, forward: Callable[[Ids[Turn], Ids[int]], np.ndarray], step: int
    ) -> Iterator[np.ndarray]:
        """What `forward` gives for all positions of a fresh sequence, pass by pass; each is for use before the next."""
        self._check(seq.ids)
        try:
            while seq.pending:
                count = min(step or self.scheduler.chunk, seq.pending)
                self.scheduler.make_room(seq, seq.n_cached + count, keep=[])
                found = forward([Turn(seq, count)], range(count))
                seq.n_cached += count
                yield found
        finally:
            self.scheduler.blocks.release(seq)

    def prompt_logprobs(self, ids: Ids[int], top: int) -> list[Logprobs]:
        """Of each of `ids` but the first: how probable it was behind those before it, and the `top` best there.

        Others may have to wait; who continues `ids` finds them computed.
        """
        seq, found = Sequence(list(ids), SamplingParams(logprobs=top)), list[Logprobs]()
        seq.way = self.scheduler.way()
        for logits in self._passes(seq, self.runner.forward, SCORED_AT_ONCE):
            self.scheduler.blocks.publish(seq)
            found += filter(None, map(seq.sampler.logprobs, logits, ids[len(found) + 1 :]))
        return found

    def read(self, ids: Ids[int], n_prompt: int) -> None:
        """Compute ids as if the first `n_prompt` were a prompt and the rest had been generated, one by one."""
        self._check(ids)
        seq = Sequence(list(ids), SamplingParams())
        seq.n_prompt = n_prompt
        try:
            while seq.pending:
                count = min(self.scheduler.chunk, n_prompt - seq.n_cached) if seq.n_cached < n_prompt else 1
                self.scheduler.make_room(seq, seq.n_cached + count, keep=[])
                self.runner.forward([Turn(seq, count)], [count - 1])
                seq.n_cached += count
        finally:
            self.scheduler.blocks.release(seq)

    def _check(self, ids: Ids[int]) -> None:
        if not len(ids):
            raise ValueError("the prompt is empty: there is no token to begin with")
        if len(ids) > self.context:
            raise ValueError(f"the prompt has {len(ids)} tokens, the context holds {self.context}")

    def _choose(self, seq: Sequence, logits: np.ndarray) -> StepOutput:
        try:
            token = seq.sampler.sample(logits, seq.ids)
        except ValueError as error:  # the trouble of one sequence is not that of the others
            self.abort(seq)
            named = NotNumbers(f"{self.name}: {error}") if self.name and isinstance(error, NotNumbers) else error
            return StepOutput(seq, None, "abort", error=named)
        seq.ids.append(token)
        if token in seq.end_ids or (seq.constraint is not None and seq.constraint.complete):
            seq.finish_reason = "stop"
        elif len(seq.ids) - seq.n_prompt == seq.params.max_tokens or len(seq.ids) >= self.context:
            seq.finish_reason = "length"
        if seq.finish_reason:
            self.scheduler.remove(seq)
        return StepOutput(seq, token, seq.finish_reason, seq.sampler.logprobs(logits, token))
