"""Messages through a model's chat template, the same for training, every engine and the count of tokens."""

from functools import lru_cache
from typing import Any

from lore.support.errors import LoreError

Message = dict[str, Any]

_MARK = "\u241f mark \u241f"


def template_text(processor: Any, messages: list[Message]) -> str:
    """The text of a prompt, up to where the answer begins.

    processor: a tokenizer or a multimodal processor. A system text goes into the user's turn where the template refuses or
    drops it (Gemma). Templates that know `enable_thinking` get it switched off: the judge's reasoning is part of its
    answer. Raises LoreError where the template leaves a text out, since the model would answer an empty question.
    """
    import jinja2

    options = {"add_generation_prompt": True, **template_options(processor)}
    system = messages[0]["role"] == "system" and len(messages) > 1
    try:
        text = _apply(processor, messages, **options)
        folded = system and _left_out(messages[:1], text)
    except jinja2.TemplateError as error:  # what a template's raise_exception becomes
        if not system:
            raise LoreError(f"The chat template of {_name(processor)} refuses the prompt: {error}") from error
        folded = True
    if folded:
        return template_text(processor, fold_system(messages))
    if missing := _left_out(messages, text):
        raise LoreError(
            f"The chat template of {_name(processor)} leaves out a part of the prompt: {missing[:80]!r} is not in its text.\n"
            "The model would be asked about nothing: use the checkpoint's own template, or one that writes text as it is."
        )
    return text


def template_options(processor: Any) -> dict[str, Any]:
    """What a template is told beside the messages, where it knows of it."""
    return {"enable_thinking": False} if "enable_thinking" in _template(processor) else {}


def folds_system(processor: Any) -> bool:
    """Whether the template refuses or drops a system text, so that `template_text` puts it into the user's turn."""
    import jinja2

    messages = [{"role": "system", "content": _MARK}, {"role": "user", "content": "a"}]
    try:
        return _left_out(messages[:1], _apply(processor, messages, add_generation_prompt=True)) is not None
    except jinja2.TemplateError:
        return True


def _left_out(messages: list[Message], text: str) -> str | None:
    parts = (part.strip() for message in messages for part in _texts(message))
    return next((part for part in parts if part not in text), None)


def text_after_answer(processor: Any) -> str:
    """What the template puts behind an assistant's answer. Raises LoreError where it leaves the answer out."""
    return _after_answer(processor, _template(processor))


@lru_cache(maxsize=8)
def _after_answer(processor: Any, template: str) -> str:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    _, found, after = _apply(processor, messages).rpartition(_MARK)
    if not found:
        raise LoreError(
            f"The chat template of {_name(processor)} leaves out what the assistant says, so the end of an answer is not "
            "known.\nA model trained on it would never stop: use the checkpoint's own template."
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
    """Every content as a list of parts: templates of vision-language processors walk over parts and read no strings."""
    return [{**m, "content": parts_of(m)} for m in messages]


def parts_of(message: Message) -> list[dict]:
    """A message's content as a list of parts, whichever way it is written."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _texts(message: Message) -> list[str]:
    return [part["text"] for part in parts_of(message) if part["type"] == "text"]


def fold_system(messages: list[Message]) -> list[Message]:
    """The messages with the system text, which comes first, at the beginning of the user's turn."""
    system, user, *rest = messages
    head = "".join(_texts(system)) + "\n\n"
    if isinstance(user["content"], str):
        return [{**user, "content": head + user["content"]}, *rest]
    return [{**user, "content": [{"type": "text", "text": head}, *user["content"]]}, *rest]
