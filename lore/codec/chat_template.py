"""Applies a model's chat template. Training, every engine and token counting call the same functions."""

from functools import lru_cache
from typing import Any

from lore.support.errors import LoreError

Message = dict[str, Any]

_MARK = "\u241f mark \u241f"


def template_text(processor: Any, messages: list[Message]) -> str:
    """The prompt text, up to the position where the answer begins.

    processor: a tokenizer or a multimodal processor. If the template rejects or drops the system message (Gemma), the
    system text is prepended to the user message. Templates with an `enable_thinking` option get `False`, because the
    judge's reasoning is part of its answer. Raises LoreError if the template omits any message text: the model would
    answer an incomplete prompt.
    """
    import jinja2  # only where a template is applied

    options = {"add_generation_prompt": True, **template_options(processor)}
    system = messages[0]["role"] == "system" and len(messages) > 1
    try:
        text = _apply(processor, messages, **options)
        folded = system and _omitted_text(messages[:1], text)
    except jinja2.TemplateError as error:  # raised by raise_exception in a template
        if not system:
            raise LoreError(f"The chat template of {_name(processor)} rejects the prompt: {error}") from error
        folded = True
    if folded:
        return template_text(processor, fold_system(messages))
    if missing := _omitted_text(messages, text):
        raise LoreError(
            f"The chat template of {_name(processor)} omits part of the prompt: {missing[:80]!r} is not in the rendered text.\n"
            "The model would answer an incomplete prompt. Use the checkpoint's own template, or one that copies the message text."
        )
    return text


def template_options(processor: Any) -> dict[str, Any]:
    """Extra keyword arguments for `apply_chat_template`, limited to those that the template uses."""
    return {"enable_thinking": False} if "enable_thinking" in _template(processor) else {}


def folds_system(processor: Any) -> bool:
    """Whether the template rejects or drops a system message, so that `template_text` moves it into the user message."""
    import jinja2  # only where a template is applied

    messages = [{"role": "system", "content": _MARK}, {"role": "user", "content": "a"}]
    try:
        return _omitted_text(messages[:1], _apply(processor, messages, add_generation_prompt=True)) is not None
    except jinja2.TemplateError:
        return True


def _omitted_text(messages: list[Message], text: str) -> str | None:
    parts = (part.strip() for message in messages for part in _texts(message))
    return next((part for part in parts if part not in text), None)


def text_after_answer(processor: Any) -> str:
    """The text that the template appends to an assistant answer. Raises LoreError if the template omits the answer."""
    return _after_answer(processor, _template(processor))


@lru_cache(maxsize=8)
def _after_answer(processor: Any, template: str) -> str:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    _, found, after = _apply(processor, messages).rpartition(_MARK)
    if not found:
        raise LoreError(
            f"The chat template of {_name(processor)} omits the assistant message, so the end of an answer is "
            "unknown.\nA model trained with it would never stop generating. Use the checkpoint's own template."
        )
    return after


def _apply(processor: Any, messages: list[Message], **options: Any) -> str:
    if hasattr(processor, "tokenizer"):
        messages = in_parts(messages)
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
