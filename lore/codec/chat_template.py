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
from datetime import date
from functools import lru_cache
from typing import Any

from lore.support.errors import LoreError

Message = dict[str, Any]

_MARK = "\u241f mark \u241f"
_ANSWERS = ("<reason>", "<verdict>")  # how an answer begins
_MAX_GLUE = 64  # characters
_SAMPLE = [{"role": "user", "content": "a"}]
PROMPT_DATE = date(2024, 7, 26)
"""The date that templates write into a prompt instead of today's, which would change the judge's prompts every day. It is the
default of Llama 3.2's own template."""
# Switches of templates for reasoning outside the answer. The judge's reasoning is part of its answer.
THINKING_SWITCHES = ("enable_thinking", "thinking", "enable_reasoning", "reasoning", "use_thinking", "think")


def template_text(processor: Any, messages: list[Message]) -> str:
    """The prompt: the template's text up to the position where the answer's first token begins.

    processor: a tokenizer or a multimodal processor. If the template rejects or drops the system message (Gemma), the
    system text is prepended to the user message. Reasoning outside the answer is switched off, and the date is PROMPT_DATE.
    Raises LoreError if the template omits any message text: the model would answer an incomplete prompt.
    """
    return _before_answer(processor, messages).removesuffix(answer_glue(processor))


def _before_answer(processor: Any, messages: list[Message]) -> str:
    """The template's text before an assistant's answer to `messages`."""
    import jinja2  # only where a template is applied

    system = messages[0]["role"] == "system" and len(messages) > 1
    try:
        text, _ = _around_answer(processor, messages)
        folded = system and _omitted_text(messages[:1], text)
    except jinja2.TemplateError as error:  # raised by raise_exception in a template
        if not system:
            raise LoreError(f"The chat template of {_name(processor)} rejects the prompt: {error}") from error
        folded = True
    if folded:
        return _before_answer(processor, fold_system(messages))
    if missing := _omitted_text(messages, text):
        raise _omits(processor, missing)
    return text


def _around_answer(processor: Any, messages: list[Message]) -> tuple[str, str]:
    """The template's text before and after an answer to `messages`."""
    text = _apply(processor, [*messages, {"role": "assistant", "content": _MARK}], **template_options(processor))
    before, found, after = text.rpartition(_MARK)
    if not found:
        if missing := _omitted_text(messages, text):
            raise _omits(processor, missing)
        raise LoreError(
            f"The chat template of {_name(processor)} omits the assistant message, so the end of an answer is "
            "unknown.\nA model trained with it would never stop generating. Use the checkpoint's own template."
        )
    return before, after


def _omits(processor: Any, missing: str) -> LoreError:
    return LoreError(
        f"The chat template of {_name(processor)} omits part of the prompt: {missing[:80]!r} is not in the rendered text.\n"
        "The model would answer an incomplete prompt. Use the checkpoint's own template, or one that copies the message text."
    )


def own_conversation(processor: Any, messages: list[Message], answer: str) -> str:
    """The whole conversation as the template itself writes it."""
    if messages[0]["role"] == "system" and folds_system(processor):
        messages = fold_system(messages)
    return _apply(processor, [*messages, {"role": "assistant", "content": answer}], **template_options(processor))


def conversation_fingerprint(processor: Any) -> str:
    """Fingerprint of a short conversation as the template writes it: header and end of an answer, switches and date."""
    before, after = _around_answer(processor, _SAMPLE)
    return hashlib.blake2b(f"{before}{_MARK}{after}".encode(), digest_size=8).hexdigest()


def template_options(processor: Any) -> dict[str, Any]:
    """Arguments for `apply_chat_template` that fix what the template leaves open: no reasoning outside the answer, and a fixed
    date. `strftime_now` is a function; see `server_options` for a server."""
    names = _variables(_template(processor))
    options: dict[str, Any] = {name: False for name in THINKING_SWITCHES if name in names}
    if "strftime_now" in names:
        options["strftime_now"] = PROMPT_DATE.strftime
    return options


def server_options(processor: Any | None) -> dict[str, Any]:
    """`template_options` as a server takes them in `chat_template_kwargs`. processor: None if the server's template is unknown."""
    names = {"enable_thinking", "thinking", "date_string"} if processor is None else _variables(_template(processor))
    options: dict[str, Any] = {name: False for name in THINKING_SWITCHES if name in names}
    for name, style in (("date_string", "%d %b %Y"), ("current_date", "%Y-%m-%d")):
        if name in names:
            options[name] = PROMPT_DATE.strftime(style)
    return options


@lru_cache(maxsize=8)
def _variables(template: str) -> frozenset[str]:
    """Names that the template reads without setting them first."""
    import jinja2.meta  # only where a template is applied

    # The extensions that transformers allows in a template; `generation` is its own and has no variables.
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    return frozenset(jinja2.meta.find_undeclared_variables(environment.parse(_GENERATION.sub("", template))))


_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


def folds_system(processor: Any) -> bool:
    """Whether the template rejects or drops a system message, so that `template_text` moves it into the user message."""
    import jinja2  # only where a template is applied

    messages = [{"role": "system", "content": _MARK}, {"role": "user", "content": "a"}]
    try:
        return _omitted_text(messages[:1], _apply(processor, messages, add_generation_prompt=True)) is not None
    except jinja2.TemplateError:
        return True


def answer_glue(processor: Any) -> str:
    """The template's last characters before an answer that share a token with the answer; empty for most tokenizers.

    `template_text(...) + answer_glue(...) + answer` is the conversation.
    """
    return _glue(processor, _template(processor))


@lru_cache(maxsize=8)
def _glue(processor: Any, template: str) -> str:
    before = _before_answer(processor, _SAMPLE)
    for size in range(min(len(before), _MAX_GLUE) + 1):
        prompt = before[: len(before) - size]
        ids = text_ids(processor, prompt)
        if all(text_ids(processor, before + answer)[: len(ids)] == ids for answer in _ANSWERS):
            return before[len(prompt) :]
    raise LoreError(
        f"The tokenizer of {_name(processor)} joins the end of every prompt with the answer: no part of {before[-_MAX_GLUE:]!r} "
        "keeps its tokens when an answer follows, so a prompt has no last token.\nUse the checkpoint's own template and tokenizer."
    )


def text_ids(processor: Any, text: str) -> list[int]:
    """Token ids of a text that holds its special tokens already."""
    tokenizer = getattr(processor, "tokenizer", processor)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_ids(processor: Any, answer: str) -> list[int]:
    """Token ids of an answer, or of the beginning of one, behind any prompt of `template_text`."""
    prompt = template_text(processor, _SAMPLE)
    before, glue = text_ids(processor, prompt), answer_glue(processor)
    together = text_ids(processor, prompt + glue + answer)
    if together[: len(before)] == before:
        return together[len(before) :]
    # Sampled text that begins unlike any answer, such as with a line break: the sampler's ids began behind the prompt's last token.
    return text_ids(processor, glue + answer)


def conversation_ids(processor: Any, prompt: str, answer: str) -> tuple[list[int], int]:
    """(token ids of prompt and answer, how many of them are the prompt's). prompt: of `template_text`, without photos."""
    answered = answer_ids(processor, answer)
    ids = text_ids(processor, prompt + answer_glue(processor) + answer)
    if ids[len(ids) - len(answered) :] == answered:
        return ids, len(ids) - len(answered)
    prompt_ids = text_ids(processor, prompt)
    if ids[: len(prompt_ids)] != prompt_ids:
        ids = prompt_ids + answered
    return ids, len(prompt_ids)


def _omitted_text(messages: list[Message], text: str) -> str | None:
    parts = (part.strip() for message in messages for part in _texts(message))
    return next((part for part in parts if part not in text), None)


def text_after_answer(processor: Any) -> str:
    """The text that the template appends to an assistant answer. Raises LoreError if the template omits the answer."""
    return _after_answer(processor, _template(processor))


@lru_cache(maxsize=8)
def _after_answer(processor: Any, template: str) -> str:
    return _around_answer(processor, _SAMPLE)[1]


def _apply(processor: Any, messages: list[Message], **options: Any) -> str:
    if not hasattr(processor, "tokenizer"):
        return processor.apply_chat_template(messages, tokenize=False, **options)
    messages = in_parts(messages)
    if "strftime_now" in options:  # a processor does not pass on functions that replace those of the template's environment
        tokenizer = processor.tokenizer
        return tokenizer.apply_chat_template(messages, chat_template=processor.chat_template, tokenize=False, **options)
    return processor.apply_chat_template(messages, tokenize=False, **options)


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
