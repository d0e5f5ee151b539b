"""BlockManager: which sequence owns which block of the KV cache; integers only."""

from gmoe.engine.sequence import Sequence


class BlockManager:
    """Hands out blocks of `block_size` tokens and takes them back."""

    def __init__(self, n_blocks: int, block_size: int):
        self.block_size = block_size
        self.free = list(range(n_blocks - 1, -1, -1))

    def missing(self, seq: Sequence, length: int) -> int:
        """Blocks that `seq` still needs to hold `length` tokens."""
        return max(0, -(-length // self.block_size) - len(seq.blocks))

    def grow(self, seq: Sequence, length: int) -> bool:
        """Let `seq` hold `length` tokens; False, and nothing changed, where there is no room."""
        n = self.missing(seq, length)
        if n > len(self.free):
            return False
        seq.blocks += [self.free.pop() for _ in range(n)]
        return True

    def release(self, seq: Sequence) -> None:
        """Take all its blocks back; its tokens must be computed anew if it goes on."""
        self.free += reversed(seq.blocks)
        seq.blocks = []
        seq.n_cached = 0
