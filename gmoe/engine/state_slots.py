"""StateSlots: in which slot the recurrent layers have a sequence's state, and which states are kept for who begins so.

A state only goes forward. What another sequence can begin from is therefore kept while a pass goes by it: of a prompt
at every doubling of its length and shortly before its end, where the next one of a conversation may differ; and of an
answer the last.
"""

from collections import Counter
from collections.abc import Sequence as Keys
from dataclasses import dataclass

from gmoe.engine.sequence import NO_SLOT, Sequence, StatePath, Status

KEPT, KEPT_APART = 6, 2  # states that are kept beside one for each sequence; on a device, where experts want the room
BEFORE_THE_END = 16  # tokens of a prompt that the next one of a conversation may not have


def n_slots(sequences: int, apart: bool) -> int:
    """How many slots serve so many sequences: `StateSlots` says with what."""
    return (1 + apart) * (sequences + 1) + sequences + (KEPT_APART if apart else 1 + KEPT)


@dataclass
class _Own:
    """What a sequence has: its slots, where its state is, and what was planned for it last."""

    slots: tuple[int, ...]
    source: int = NO_SLOT
    reads: int = NO_SLOT  # the kept state that it has not yet begun from
    begin: int = 0  # the pass that was planned, in tokens of the sequence
    end: int = 0
    kept: bytes = b""  # the key of what is kept of its answer


class StateSlots:
    """Slots 0 to `n` - 1: of `sequences` and one more, and for states that are kept, the longest unused going first.

    `apart`: a pass leaves alone the state that it began with, so that it can be run again. Else one slot more serves
    the passes that go ahead of what is sure: they leave it alone too, and behind a wrong one the next begins with it.
    """

    def __init__(self, sequences: int, apart: bool, block_size: int):
        self.block_size = block_size
        self.n = n_slots(sequences, apart)
        each, live = 1 + apart, (1 + apart) * (sequences + 1)
        self._free = [tuple(range(first, first + each)) for first in range(0, live, each)]
        self._empty = list(range(live, self.n))
        self._ahead = NO_SLOT if apart else self._empty.pop()
        self._kept: dict[bytes, int] = {}  # by the key of the block that ends there, in the order of use
        self._readers: Counter[int] = Counter()  # of a kept state, who has not yet begun from it
        self._of: dict[Sequence, _Own] = {}

    def begin(self, seq: Sequence, keys: Keys[bytes]) -> int:
        """Let a sequence begin from the furthest state that is kept behind one of `keys`; behind how many of them."""
        for n in range(len(keys), 0, -1):
            slot = self._kept.pop(keys[n - 1], NO_SLOT)
            if slot != NO_SLOT:
                self._kept[keys[n - 1]] = slot
                own = self._own(seq)
                own.source = own.reads = slot
                self._readers[slot] += 1
                return n
        return 0

    def may_go_ahead(self, seq: Sequence) -> bool:
        """Whether no other's state is where that of its next pass would go."""
        others = ((other.path.target, own.source) for other, own in self._of.items() if other is not seq)
        return self._ahead != NO_SLOT and not any(self._ahead in slots for slots in others)

    def plan(self, seq: Sequence, length: int, ahead: bool = False) -> None:
        """Set the path of its next pass, which goes to `length` tokens, with `ahead` to some that are not sure."""
        own = self._own(seq)
        if own.end and own.end == seq.n_cached:  # the last one is done
            self._let_go(own)
            own.source = seq.path.target
        own.begin, own.end = seq.n_cached, length
        place = self._worth_keeping(seq, length)
        self._empty += [seq.path.kept] * (seq.path.kept != NO_SLOT)
        kept = self._room(own, seq) if place else NO_SLOT
        if ahead and own.source != self._ahead:
            target = self._ahead
        else:
            target = next(slot for slot in own.slots if slot != own.source or len(own.slots) == 1)
        seq.path = StatePath(own.source, target, kept, place - own.begin if kept != NO_SLOT else 0)

    def publish(self, seq: Sequence) -> None:
        """Let what a pass has kept, once it is done, be found by the key of the block that ends there."""
        own, path = self._of.get(seq), seq.path
        if own is None or path.kept == NO_SLOT or own.end != seq.n_cached:
            return
        key = seq.block_keys[(own.begin + path.kept_after) // self.block_size - 1]
        if key in self._kept:
            self._empty.append(path.kept)
        else:
            self._kept[key] = path.kept
            own.kept = key if own.end > seq.n_prompt else own.kept
        seq.path = path._replace(kept=NO_SLOT)

    def release(self, seq: Sequence) -> None:
        """Take its slots back; what is kept stays."""
        own = self._of.pop(seq, None)
        if own is not None:
            self._let_go(own)
            self._empty += [seq.path.kept] * (seq.path.kept != NO_SLOT)
            self._free.append(own.slots)
        seq.path = StatePath()

    def _let_go(self, own: _Own) -> None:
        if own.reads != NO_SLOT:
            self._readers[own.reads] -= 1
            own.reads = NO_SLOT

    def _own(self, seq: Sequence) -> _Own:
        if seq not in self._of:
            self._of[seq] = _Own(self._free.pop())
        return self._of[seq]

    def _worth_keeping(self, seq: Sequence, length: int) -> int:
        """Behind how many tokens, whole blocks of the next pass; 0: nowhere. Who reuses nothing leaves nothing."""
        size, begin = self.block_size, seq.n_cached
        if seq.status is not Status.RUNNING:
            return 0
        whole = length // size * size
        if seq.pending == 1 or begin >= seq.n_prompt:
            return whole if whole > begin else 0
        last = max(0, len(seq.ids) - BEFORE_THE_END) // size * size
        if begin < last <= length:
            return last
        return whole if whole > begin and whole.bit_length() > begin.bit_length() else 0

    def _room(self, own: _Own, seq: Sequence) -> int:
        """A slot to keep a state in: of an answer the same again; `NO_SLOT` where all are about to be read."""
        order = [own.kept, *self._kept] if seq.n_cached > seq.n_prompt and own.kept in self._kept else [*self._kept]
        if self._empty and not (order and order[0] == own.kept):
            return self._empty.pop()
        key = next((key for key in order if not self._readers[self._kept[key]]), None)
        return NO_SLOT if key is None else self._kept.pop(key)
