"""Vocabulary: the tokens of a file, read where they lie when they are asked for."""

from collections.abc import Collection, Sequence

from gmoe.gguf.file import Strings


class Vocabulary:
    """Token texts by id; an empty one is called by its id, as llama.cpp does."""

    def __init__(self, strings: Sequence[str]):
        self._strings = strings

    def __len__(self) -> int:
        return len(self._strings)

    def __getitem__(self, id: int) -> str:
        return self._strings[id] or f"[EMPTY_{id}]"

    def where(self, texts: Collection[str]) -> dict[str, int]:
        """The ids of those of the texts that are tokens, the last of equals."""
        strings = self._strings
        firsts = bytes({text.encode()[0] for text in texts})
        ids = strings.starting_with(firsts) if isinstance(strings, Strings) else range(len(self))
        return {text: id for id in ids if (text := self[id]) in texts}
