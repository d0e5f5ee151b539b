"""BlockManager: which sequence owns which block of the KV cache, and which blocks several share; integers only."""

import hashlib

import numpy as np

from gmoe.engine.sequence import Sequence
from gmoe.engine.state_slots import StateSlots


class BlockManager:
    """Hands out blocks of `block_size` tokens and takes them back.

    A full block is known by the hash of its sequence's `way` and of all tokens up to its end. It keeps that name when
    nobody uses it any more, until its turn comes to be handed out again: the longest unused goes first. Where a model
    has `states` beside its blocks, a beginning is of use only as far as its state is kept.
    """

    def __init__(self, n_blocks: int, block_size: int, states: StateSlots | None = None):
        self.block_size = block_size
        self.states = states
        self.users = [0] * n_blocks
        self._free: dict[int, None] = dict.fromkeys(range(n_blocks))  # in the order in which they are handed out
        self._by_key: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}

    @property
    def n_free(self) -> int:
        """Blocks that no sequence uses."""
        return len(self._free)

    def missing(self, seq: Sequence, length: int) -> int:
        """Blocks that `seq` still needs to hold `length` tokens."""
        return max(0, -(-length // self.block_size) - len(seq.blocks))

    def grow(self, seq: Sequence, length: int, ahead: bool = False) -> bool:
        """Let the next pass of `seq` go to `length` tokens; False, and nothing changed, where there is no room.

        `ahead`: it may turn out not to have all of these, and go on from where it is now.
        """
        n = self.missing(seq, length)
        if n > len(self._free) or (ahead and self.states is not None and not self.states.may_go_ahead(seq)):
            return False
        seq.blocks += [self._take() for _ in range(n)]
        if self.states is not None:
            self.states.plan(seq, length, ahead)
        return True

    def reuse(self, seq: Sequence) -> int:
        """Give a sequence without blocks those that hold its beginning; how many tokens they spare it.

        The last token is always left to compute: its logits are wanted.
        """
        for end in range(self.block_size, len(seq.ids), self.block_size):
            key = self._key(seq, end)
            if key not in self._by_key:
                break
            seq.block_keys.append(key)
        if self.states is not None:
            del seq.block_keys[self.states.begin(seq, seq.block_keys) :]
        for block in [self._by_key[key] for key in seq.block_keys[len(seq.blocks) :]]:
            self._free.pop(block, None)
            self.users[block] += 1
            seq.blocks.append(block)
        seq.n_cached = len(seq.blocks) * self.block_size
        if not seq.admitted:
            seq.n_reused = seq.n_cached
        return seq.n_cached

    def publish(self, seq: Sequence) -> None:
        """Make the full blocks that `seq` has computed findable."""
        for index in range(len(seq.block_keys), seq.n_cached // self.block_size):
            key = self._key(seq, (index + 1) * self.block_size)
            seq.block_keys.append(key)
            if key not in self._by_key:
                self._by_key[key] = seq.blocks[index]
                self._keys[seq.blocks[index]] = key
        if self.states is not None:
            self.states.publish(seq)

    def release(self, seq: Sequence) -> None:
        """Take all its blocks back; its tokens must be computed anew if it goes on."""
        for block in reversed(seq.blocks):  # so that a beginning outlives what follows it
            self.users[block] -= 1
            if not self.users[block]:
                self._free[block] = None
        seq.blocks = []
        seq.block_keys = []
        seq.n_cached = 0
        if self.states is not None:
            self.states.release(seq)

    def _take(self) -> int:
        block = next(iter(self._free))
        del self._free[block]
        self.users[block] = 1
        if key := self._keys.pop(block, None):
            del self._by_key[key]
        return block

    def _key(self, seq: Sequence, end: int) -> bytes:
        before = seq.block_keys[-1] if seq.block_keys else seq.way
        tokens = np.array(seq.ids[end - self.block_size : end], dtype=np.int64).tobytes()
        return hashlib.sha256(before + tokens).digest()
