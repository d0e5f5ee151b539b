"""From a request to the ids that the model continues: templates, system texts, shortening to the context."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from gmoe.llm import LLM
from gmoe.server.ask import Ask, Message, Refused
from gmoe.server.calls import with_ids
from gmoe.server.catalog import Entry
from gmoe.server.models import capabilities
from gmoe.server.stream import log
from gmoe.tokenizer.chat import TemplateError
from gmoe.tokenizer.gofunctions import TemplateError as GoTemplateError
from gmoe.tokenizer.gotemplate import GoTemplate
from gmoe.tokenizer.parsers.choose import dialect_of
from gmoe.tokenizer.thinking import think_values

CUT = "<cut here, for the answer goes on>"


class Prompt(NamedTuple):
    """`room` is how many tokens the answer may have, `think` what the template was told."""

    ids: list[int]
    room: int
    text: str | None = None
    think: bool | str | None = None


def prompt_of(llm: LLM, entry: Entry, ask: Ask) -> Prompt:
    """What the model continues. Raises `Refused` where the template fails or the text does not fit."""
    limit = min(ask.num_ctx or llm.context, llm.context)
    try:
        if ask.messages is not None or (ask.templated and not ask.suffix):
            ask = _thinking(llm, entry, ask)
        if ask.messages is not None:
            dialect = dialect_of(llm.template.source_for(ask.tools), entry.modelfile.last("parser"))
            return _of_chat(llm, entry, replace(ask, messages=list(with_ids(ask.messages, dialect))), limit)
        if ask.templated or ask.suffix:
            return _of_generate(llm, entry, ask, limit)
    except TemplateError as error:
        raise Refused(400, f"model '{entry.name}': {error.fault}") from None
    except GoTemplateError as error:
        raise Refused(400, str(error) if ask.template else f"model '{entry.name}': {error}") from None
    if isinstance(ask.prompt, str):
        ids = llm.tokenizer.encode(ask.prompt, add_special=ask.special_tokens, parse_special=ask.special_tokens)
        return _fitted(llm, ask, ids, limit, ask.prompt)
    ids = []
    for n, part in enumerate(ask.prompt or ()):
        special = ask.special_tokens
        ids += [part] if isinstance(part, int) else llm.tokenizer.encode(part, special and n == 0, special)
    return _fitted(llm, ask, ids, limit, None)


def _thinking(llm: LLM, entry: Entry, ask: Ask) -> Ask:
    """The request, told to think where it does not speak of it and the model can."""
    said = ask.think is not None or not ask.template_values.keys().isdisjoint(think_values("high"))
    if said or "thinking" not in capabilities(llm.file.metadata, entry.modelfile):
        return ask
    return replace(ask, think=True)


def _of_chat(llm: LLM, entry: Entry, ask: Ask, limit: int) -> Prompt:
    messages = entry.modelfile.conversation(ask.messages or ())
    text = render(llm, entry, ask, messages)
    ids = llm.encode_chat(text)
    if len(ids) >= limit and ask.truncate:
        text, ids = _without_oldest(llm, entry, ask, messages, limit) or (text, ids)
    return _fitted(llm, ask, ids, limit, text)


def _without_oldest(
    llm: LLM, entry: Entry, ask: Ask, messages: Sequence[Message], limit: int
) -> tuple[str, list[int]] | None:
    """The conversation without as few of its oldest messages as need be, never the last or a system message.

    Where the template cannot begin there (an assistant's message, say), it begins later; None: it can nowhere.
    Twice as many are kept until it is too long, so that a long conversation is not rendered once a message.
    """
    oldest = [n for n, message in enumerate(messages[:-1]) if message["role"] != "system"]

    def kept(count: int) -> tuple[str, list[int]] | None:
        for left in range(count, -1, -1):
            gone = set(oldest[: len(oldest) - left])
            try:
                text = render(llm, entry, ask, [m for n, m in enumerate(messages) if n not in gone])
            except (TemplateError, GoTemplateError):
                continue
            return text, llm.encode_chat(text)
        return None

    best, fits, over = kept(0), 0, 1
    while over < len(oldest) and (found := kept(over)) and len(found[1]) < limit:
        best, fits, over = found, over, 2 * over
    over = min(over, len(oldest))
    while over - fits > 1:
        middle = (fits + over) // 2
        found = kept(middle)
        if found and len(found[1]) < limit:
            best, fits = found, middle
        else:
            over = middle
    return best


def _of_generate(llm: LLM, entry: Entry, ask: Ask, limit: int) -> Prompt:
    if ask.suffix:
        text = _filled_in(llm, entry, ask)
    else:
        system = ask.system if ask.system is not None else entry.modelfile.last("system")
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        if not ask.context:
            messages += entry.modelfile.messages
        messages.append({"role": "user", "content": ask.prompt or ""})
        text = render(llm, entry, ask, messages)
    if ask.context:  # the text stands amid a conversation: nothing begins or ends with it
        bos = llm.tokenizer.bos_id
        text = text if bos is None else text.removeprefix(llm.tokenizer.text(bos))
        ids = [*ask.context, *llm.tokenizer.encode(text, add_special=False, parse_special=True)]
    else:
        ids = llm.encode_chat(text)
    return _fitted(llm, ask, ids, limit, text)


def render(llm: LLM, entry: Entry, ask: Ask, messages: Sequence[Message]) -> str:
    """The prompt's text: by the request's or the Modelfile's Go template, else by the GGUF's own."""
    template = parsed(ask.template) if ask.template else own_template(entry.modelfile.template)
    if template is None:
        values = {**think_values(ask.think, llm.template.source_for(ask.tools)), **ask.template_values}
        taken = next((name for name in ("messages", "tools", "self") if name in values), None)
        if taken:
            raise Refused(400, f"chat_template_kwargs: {taken!r} is not for the request to set")
        return _opened(llm, ask, messages, values)
    think = ask.think if isinstance(ask.think, str) else ""
    given = {"Think": bool(ask.think), "ThinkLevel": think, "IsThinkSet": ask.think is not None}
    return template.chat(messages, ask.tools, **given)


def _opened(llm: LLM, ask: Ask, messages: Sequence[Message], values: Mapping[str, Any]) -> str:
    """The prompt's text; a last message of the assistant's is left open where the template shows it whole."""
    last, tools = messages[-1], ask.tools or None
    if last["role"] == "assistant" and last.get("content") and not last.get("tool_calls"):
        marked = {**last, "content": f"{last['content']}{CUT}"}
        text, cut, _ = llm.template.render(
            [*messages[:-1], marked], tools, **{"add_generation_prompt": False, **values}
        ).partition(CUT)
        if cut:
            return text
    return llm.template.render(messages, tools, **values)


@lru_cache(64)
def parsed(source: str) -> GoTemplate:
    """A Go template; `TemplateError` where it is beyond what is supported."""
    return GoTemplate.parse(source)


@lru_cache(64)
def own_template(source: str | None) -> GoTemplate | None:
    """A Modelfile's template; None, and said once, where it is beyond what is supported: the GGUF's counts then."""
    try:
        return parsed(source) if source else None
    except GoTemplateError as error:
        log.warning("a model's TEMPLATE cannot be used, its GGUF's chat template is: %s", error)
        return None


def fim_tokens(metadata: Mapping[str, Any], tokens: Sequence[str] = ()) -> tuple[int, int, int] | None:
    """The ids that stand before a prefix, a suffix and the middle between them."""
    found = []
    for names in (("fim_pre", "prefix"), ("fim_suf", "suffix"), ("fim_mid", "middle")):
        keys = (f"tokenizer.ggml.{name}_token_id" for name in names)
        id = next((metadata[key] for key in keys if key in metadata), None)
        if not isinstance(id, int):
            return None
        found.append(id)
    return found[0], found[1], found[2]


def _filled_in(llm: LLM, entry: Entry, ask: Ask) -> str:
    template = parsed(ask.template) if ask.template else own_template(entry.modelfile.template)
    if template and "Suffix" in template.fields:
        return template.render({"Prompt": ask.prompt or "", "Suffix": ask.suffix, "Response": ""})
    tokens = fim_tokens(llm.file.metadata)
    if tokens is None:
        raise Refused(400, f'"{ask.model}" does not support insert')
    before, after, middle = map(llm.tokenizer.text, tokens)
    return f"{before}{ask.prompt or ''}{after}{ask.suffix}{middle}"


def _fitted(llm: LLM, ask: Ask, ids: list[int], limit: int, text: str | None) -> Prompt:
    """Shorten a prompt that is too long and to be answered: its first `num_keep` tokens and its end stay."""
    if not ids:
        bos = llm.tokenizer.bos_id if llm.tokenizer.bos_id is not None else llm.tokenizer.eos_id
        ids = [bos or 0]
    if len(ids) >= limit and not ask.only_render:
        if not ask.truncate or not ask.shift or limit < 2:
            raise Refused(400, f"the prompt has {len(ids)} tokens, the context holds {limit}")
        keep = max(0, min(ask.num_keep, limit // 2, limit - 2))
        tail = max(1, (limit - keep) // 2)
        ids = [*ids[:keep], *ids[-tail:]]
    return Prompt(ids, max(0, limit - len(ids)), text, ask.think)
