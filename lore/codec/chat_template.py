"""Applies a model's chat template: the one place that says which text, and so which token ids, a prompt and an answer are.

Training rows, every engine, rollouts and token counting call these functions. A prompt is what the template writes before an
assistant's answer in a finished conversation. Many templates end a generation prompt elsewhere: gpt-oss leaves out
`<|channel|>final<|message|>`, DeepSeek's distilled models open a `<think>` that a finished conversation does not have.

Prompt and answer become token ids as one text. Where the template's last characters before an answer share a token with the
answer (Llama 2: `[/INST] ` and `<reason>` give `▁<`), the prompt ends before those characters (`answer_glue`), so that the ids of
a prompt are always the first ids of the conversation.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from lore.codec import prefix_ids
from lore.support.errors import LoreError

Message = dict[str, Any]

_MARK = "\u241f mark \u241f"
_ANSWERS = ("<reason>", "<verdict>")  # how an answer begins
_MAX_GLUE = 64  # characters
_SAMPLE = [{"role": "system", "content": "\u241f system \u241f"}, {"role": "user", "content": "red lamp"}]
PROMPT_DATE = datetime(2024, 7, 26)
"""The date that templates write into a prompt instead of today's, which would change the judge's prompts every day. It is the
default of Llama 3.2's own template."""
_DATES = {"date_string": "%d %b %Y", "current_date": "%Y-%m-%d"}
# Switches of templates for reasoning outside the answer. The judge's reasoning is part of its answer.
_THINKING = {
    **dict.fromkeys(("enable_thinking", "thinking", "enable_reasoning", "reasoning", "reasoning_enabled"), False),
    **dict.fromkeys(("use_thinking", "enable_think", "think", "add_thoughts"), False),
    **dict.fromkeys(("disable_thinking", "no_think"), True),
    "thinking_budget": 0,
}
_GENERATION = re.compile(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}")


@dataclass(frozen=True)
class _Frame:
    """What a template writes around messages and answer of a finished conversation.

    folds: the template rejects or drops a system message. before, after: the text around the answer to _SAMPLE. glue: see
    `answer_glue`. prompt_ids: of `before` without the glue.
    """

    folds: bool
    before: str
    after: str
    glue: str
    prompt_ids: list[int]

    @property
    def prompt(self) -> str:
        return self.before.removesuffix(self.glue)


@lru_cache(maxsize=8)
def _frame_of(processor: Any, template: str) -> _Frame:
    import jinja2  # only where a template is applied

    try:
        before, after = _around_answer(processor, _SAMPLE)
        folds = _omitted_text(_SAMPLE[:1], before) is not None
    except jinja2.TemplateError:  # raised by raise_exception in a template
        folds = True
    if folds:
        before, after = _around_answer(processor, fold_system(_SAMPLE))
    for size in range(min(len(before), _MAX_GLUE) + 1):
        prompt = before[: len(before) - size]
        ids = text_ids(processor, prompt)
        if all(text_ids(processor, before + answer)[: len(ids)] == ids for answer in _ANSWERS):
            return _Frame(folds, before, after, before[len(prompt) :], ids)
    raise LoreError(
        f"The tokenizer of {_name(processor)} joins the end of every prompt with the answer: no part of {before[-_MAX_GLUE:]!r} "
        "keeps its tokens when an answer follows, so a prompt has no last token.\nUse the checkpoint's own template and tokenizer."
    )


def _frame(processor: Any) -> _Frame:
    import jinja2  # only where a template is applied

    try:
        return _frame_of(processor, _template(processor))
    except jinja2.TemplateError as error:
        raise LoreError(f"The chat template of {_name(processor)} rejects the prompt: {error}") from error


def template_text(processor: Any, messages: list[Message]) -> str:
    """The prompt: the template's text up to the position where the answer's first token begins.

    processor: a tokenizer or a multimodal processor. If the template rejects or drops the system message (Gemma), the
    system text is prepended to the user message. Reasoning outside the answer is switched off, and the date is PROMPT_DATE.
    Raises LoreError if the template omits any message text: the model would answer an incomplete prompt.
    """
    import jinja2  # only where a template is applied

    messages = _folded(processor, messages)
    try:
        before, _ = _around_answer(processor, messages)
    except jinja2.TemplateError as error:
        raise LoreError(f"The chat template of {_name(processor)} rejects the prompt: {error}") from error
    if missing := _omitted_text(messages, before):
        raise _omits(processor, missing)
    return before.removesuffix(_frame(processor).glue)


def _folded(processor: Any, messages: list[Message]) -> list[Message]:
    system = messages[0]["role"] == "system" and len(messages) > 1
    return fold_system(messages) if system and folds_system(processor) else messages


def _around_answer(processor: Any, messages: list[Message]) -> tuple[str, str]:
    """The template's text before and after an answer to `messages`."""
    text = _apply(processor, [*messages, {"role": "assistant", "content": _MARK}], **template_options(processor))
    before, found, after = text.rpartition(_MARK)
    if not found:
        if missing := _omitted_text([message for message in messages if message["role"] != "system"], text):
            raise _omits(processor, missing, also="omits the assistant message and ")
        raise LoreError(
            f"The chat template of {_name(processor)} omits the assistant message or rewrites its text, so the end of an answer is "
            "unknown.\nA model trained with it would never stop generating. Use the checkpoint's own template."
        )
    return before, after


def _omits(processor: Any, missing: str, also: str = "") -> LoreError:
    return LoreError(
        f"The chat template of {_name(processor)} {also}omits part of the prompt: {missing[:80]!r} is not in the rendered text.\n"
        "The model would answer an incomplete prompt. Use the checkpoint's own template, or one that copies the message text."
    )


def own_conversation(processor: Any, messages: list[Message], answer: str) -> str:
    """The whole conversation as the template itself writes it."""
    messages = [*_folded(processor, messages), {"role": "assistant", "content": answer}]
    return _apply(processor, messages, **template_options(processor))


def conversation_fingerprint(processor: Any) -> str:
    """Fingerprint of a short conversation as the template writes it: header and end of an answer, switches and date."""
    frame = _frame(processor)
    return hashlib.blake2b(f"{frame.before}{_MARK}{frame.after}".encode(), digest_size=8).hexdigest()


def template_options(processor: Any) -> dict[str, Any]:
    """Arguments for `apply_chat_template` that fix what the template leaves open: no reasoning outside the answer, and a fixed
    date."""
    names = _variables(_template(processor))
    options = {name: value for name, value in _THINKING.items() if name in names}
    return options | {name: PROMPT_DATE.strftime(style) for name, style in _DATES.items() if name in names}


def server_options(processor: Any | None) -> dict[str, Any]:
    """`template_options` for the field `chat_template_kwargs` of a request. processor: None if the server's template is unknown.

    A server cannot be told the date of a template that calls `strftime_now`.
    """
    if processor is None:
        date_string = PROMPT_DATE.strftime(_DATES["date_string"])
        return {"enable_thinking": False, "thinking": False, "date_string": date_string}
    return template_options(processor)


@lru_cache(maxsize=8)
def _variables(template: str) -> frozenset[str]:
    """Names that the template takes from its caller: read but not set, or set only from their own value, as a default."""
    import jinja2.meta  # only where a template is applied

    # The extensions that transformers allows in a template; `generation` is its own and has no variables.
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(_GENERATION.sub("", template))
    except jinja2.TemplateError:  # applying the template says what is wrong
        return frozenset()
    own = set()
    for assigned in tree.find_all(jinja2.nodes.Assign):
        read = {name.name for name in assigned.node.find_all(jinja2.nodes.Name)}
        written = [assigned.target, *assigned.target.find_all(jinja2.nodes.Name)]
        own |= {name.name for name in written if isinstance(name, jinja2.nodes.Name) and name.name not in read}
    kept = {name for name in {**_THINKING, **_DATES} if _defaulted(tree, name)}
    return frozenset(jinja2.meta.find_undeclared_variables(tree) - (own - kept))


def _defaulted(tree: Any, name: str) -> bool:
    """Whether the template sets a variable only where the caller has not: `{% if x is not defined %}{% set x = true %}`."""
    import jinja2.nodes  # only where a template is applied

    def asks(test: Any) -> bool:
        tests = [test, *test.find_all(jinja2.nodes.Test)]
        return any(
            isinstance(one, jinja2.nodes.Test) and one.name in ("defined", "undefined") and getattr(one.node, "name", None) == name
            for one in tests
        )

    return any(
        asks(branch.test)
        for branch in tree.find_all(jinja2.nodes.If)
        if any(getattr(assigned.target, "name", None) == name for assigned in branch.find_all(jinja2.nodes.Assign))
    )


def folds_system(processor: Any) -> bool:
    """Whether the template rejects or drops a system message, so that `template_text` moves it into the user message."""
    return _frame(processor).folds


def answer_glue(processor: Any) -> str:
    """The template's last characters before an answer that share a token with the answer; empty for most tokenizers.

    `template_text(...) + answer_glue(...) + answer` is the conversation.
    """
    return _frame(processor).glue


def text_after_answer(processor: Any) -> str:
    """The text that the template appends to an assistant answer. Raises LoreError if the template omits the answer."""
    return _frame(processor).after


def template_tokens(processor: Any) -> set[str]:
    """Special and added tokens that the template writes around messages and answer. Within an answer they would end it or begin
    another turn."""
    tokenizer, frame = getattr(processor, "tokenizer", processor), _frame(processor)
    known = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    return {token for token in known if token.strip() and token in frame.before + frame.after}


def text_ids(processor: Any, text: str) -> list[int]:
    """Token ids of a text that holds its special tokens already."""
    return prefix_ids.text_ids(getattr(processor, "tokenizer", processor), text)


def answer_ids(processor: Any, answer: str) -> list[int]:
    """Token ids of an answer, or of the beginning of one, behind any prompt of `template_text`."""
    frame = _frame(processor)
    together = text_ids(processor, frame.before + answer)
    if together[: len(frame.prompt_ids)] == frame.prompt_ids:
        return together[len(frame.prompt_ids) :]
    # Sampled text that begins unlike any answer, such as with a line break: the sampler's ids began behind the prompt's last token.
    return text_ids(processor, frame.glue + answer)


def conversation_ids(processor: Any, prompt: str, answer: str) -> tuple[list[int], int]:
    """(token ids of prompt and answer, how many of them are the prompt's). prompt: of `template_text`, without photos."""
    answered = answer_ids(processor, answer)
    ids = text_ids(processor, prompt + answer_glue(processor) + answer)
    if ids[len(ids) - len(answered) :] == answered:
        return ids, len(ids) - len(answered)
    prompt_ids = text_ids(processor, prompt)
    if ids[: len(prompt_ids)] != prompt_ids:  # see answer_ids
        ids = prompt_ids + answered
    return ids, len(prompt_ids)


def _omitted_text(messages: list[Message], text: str) -> str | None:
    parts = (part.strip() for message in messages for part in _texts(message))
    return next((part for part in parts if part not in text), None)


def _apply(processor: Any, messages: list[Message], **options: Any) -> str:
    template = _template(processor)
    if "strftime_now" in _variables(template):
        options["chat_template"] = _dated(template)
    shown = in_parts(messages) if hasattr(processor, "tokenizer") else messages
    return processor.apply_chat_template(shown, tokenize=False, **options)


@lru_cache(maxsize=8)
def _dated(template: str) -> str:
    """The template with a `strftime_now` of its own, which writes PROMPT_DATE: transformers passes no functions to a template."""
    letters = "aAbBcCdDeFgGhHIjklmMpPrRSTuUVwWxXyYZ"
    known = [f"%{flag}{letter}" for flag in ("-", "") for letter in letters]
    replaced = "".join(f" | replace('{code}', '{PROMPT_DATE.strftime(code)}')" for code in known)
    # The output before the template keeps jinja from trimming its first line break; its own indentation is trimmed as usual.
    macro = "{% macro strftime_now(format) %}{{ format" + replaced + " }}{% endmacro %}{{ '' }}"
    return macro + re.sub(r"^[ \t]+(?=\{%)", "", template)


def _template(processor: Any) -> str:
    return str(getattr(processor, "chat_template", None) or "")


def _name(processor: Any) -> str:
    return getattr(getattr(processor, "tokenizer", processor), "name_or_path", "") or "this model"


def in_parts(messages: list[Message]) -> list[Message]:
    """Messages whose content is a list of parts. Templates of vision-language processors expect parts, not strings."""
    return [{**m, "content": parts_of(m)} for m in messages]


def parts_of(message: Message) -> list[dict]:
    """A message's content as a list of parts; a string becomes one text part."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _texts(message: Message) -> list[str]:
    return [part["text"] for part in parts_of(message) if part["type"] == "text"]


def fold_system(messages: list[Message]) -> list[Message]:
    """Prepends the system text (first message) to the user message (second message)."""
    system, user, *rest = messages
    head = "".join(_texts(system)) + "\n\n"
    if isinstance(user["content"], str):
        return [{**user, "content": head + user["content"]}, *rest]
    return [{**user, "content": [{"type": "text", "text": head}, *user["content"]]}, *rest]
