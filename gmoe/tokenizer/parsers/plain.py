"""No dialect: every word is content."""

from gmoe.tokenizer.parsers.arguments import Tools
from gmoe.tokenizer.parsers.tags import Parser, Piece

MARKS: tuple[str, ...] = ()


class _Plain:
    def push(self, text: str) -> list[Piece]:
        return [("content", text)] if text else []

    def close(self) -> list[Piece]:
        return []


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return _Plain()
