"""GoChatTemplate: the TEMPLATE of a Modelfile in the place of the file's own chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

from gmoe.tokenizer.chat import ChatTemplate
from gmoe.tokenizer.gofunctions import TemplateError
from gmoe.tokenizer.gotemplate import GoTemplate
from gmoe.tokenizer.tokenizer import Tokenizer


class GoChatTemplate:
    """Used as a `ChatTemplate`; a template beyond the subset is a `TemplateError`."""

    fallback = False

    def __init__(self, source: str):
        self.source = source
        self._template = GoTemplate.parse(source)

    def source_for(self, tools: Sequence[Mapping[str, Any]] | None) -> str:
        """The template."""
        return self.source

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt's text; of `kwargs` it knows `enable_thinking` and `reasoning_effort`; raises `TemplateError`."""
        if not add_generation_prompt:
            raise TemplateError("a TEMPLATE of a Modelfile always opens the answer")
        think = kwargs.get("enable_thinking", kwargs.get("thinking"))
        level = str(kwargs.get("reasoning_effort") or "")
        return self._template.chat(
            messages, tools or (), Think=bool(think), ThinkLevel=level, IsThinkSet=think is not None
        )


def template_of(
    metadata: Mapping[str, Any], tokenizer: Tokenizer, file: str, source: str | None = None
) -> tuple[ChatTemplate | GoChatTemplate, list[str]]:
    """The Modelfile's template where it has one that can be read, else the file's own; and what should be said."""
    notices: list[str] = []
    if source is not None:
        try:
            return GoChatTemplate(source), notices
        except TemplateError as error:
            notices.append(f"the model's TEMPLATE cannot be used, its GGUF's chat template is: {error}")
    template = ChatTemplate.from_gguf(metadata, tokenizer, file)
    if template.fallback:
        notices.append(f"{file} has no chat template; ChatML is used")
    return template, notices
