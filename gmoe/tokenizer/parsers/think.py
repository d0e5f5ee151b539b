"""Thinking between `<think>` and `</think>`, no tool calls: DeepSeek-R1's distilled models and their like."""

from gmoe.tokenizer.parsers.arguments import Tools
from gmoe.tokenizer.parsers.tags import THINK, Dialect, Parser, TagParser

MARKS = THINK


def parser(tools: Tools, prompt: str) -> Parser:
    """A new parser."""
    return TagParser(Dialect(), tools, prompt)
