"""Messages to the exact text a model reads. Training and every engine come through here, so the two cannot differ."""

from functools import lru_cache
from typing import Any

from lore.errors import LoreError
from lore.prompt import in_parts

_MARK = "\u241f verdict \u241f"


def prompt_text(processor: Any, messages: list[dict]) -> tuple[str, list]:
    """The prompt as text with the template's image placeholders, and the images in order.

    processor: a tokenizer or a multimodal processor with a chat template. A last message by the assistant is what the
    answer begins with: it is appended as it is. Templates that know `enable_thinking` get it switched off: the judge's
    reasoning is part of its answer.
    """
    begun = ""
    if messages[-1]["role"] == "assistant":
        *messages, last = messages
        begun = last["content"] if isinstance(last["content"], str) else "".join(part["text"] for part in last["content"])
    images = [
        visible(part["image"])
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image"
    ]
    plain = [_without_images(message) for message in messages]
    if hasattr(processor, "tokenizer"):
        plain = in_parts(plain)
    template = getattr(processor, "chat_template", None) or ""
    switch = {"enable_thinking": False} if "enable_thinking" in str(template) else {}
    text = processor.apply_chat_template(plain, tokenize=False, add_generation_prompt=True, **switch)
    return text + begun, images


def visible(image: Any) -> Any:
    """The photo; an all-black one a shade lighter, since Idefics3 takes all zeros for padding and drops them."""
    return image if image.getbbox() else image.point(lambda value: 1)


def image_tokens(processor: Any, image: Any) -> int:
    """Tokens by which a photo lengthens the tokenised prompt, beyond its placeholder.

    Asked of the processor itself, once per size of photo: tiles, rows and separators differ from model to model.
    """
    known = processor.__dict__.setdefault("_lore_image_tokens", {})
    if image.size not in known:
        mark = getattr(processor, "image_token", None) or "<image>"
        expanded = processor(text=[mark], images=[[image]], add_special_tokens=False)["input_ids"][0]
        known[image.size] = len(expanded) - len(processor.tokenizer(mark, add_special_tokens=False)["input_ids"])
    return known[image.size]


def turn_end(processor: Any) -> str:
    """What follows an answer in the chat template: the token that ends the turn.

    Raises LoreError where the template has none, since a model trained without it never stops.
    """
    return _turn_end(processor)


@lru_cache(maxsize=8)
def _turn_end(processor):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": [{"type": "text", "text": _MARK}]},
    ]
    if not hasattr(processor, "tokenizer"):
        messages = [{"role": m["role"], "content": m["content"][0]["text"]} for m in messages]
    after = processor.apply_chat_template(messages, tokenize=False).rpartition(_MARK)[2]
    tokenizer = getattr(processor, "tokenizer", processor)
    specials = [token for token in tokenizer.all_special_tokens if token in after]
    if specials:
        first = min(specials, key=after.index)
        return after[: after.index(first)] + first
    if tokenizer.eos_token:
        return tokenizer.eos_token
    raise LoreError(
        "The chat template puts no special token behind an answer and the tokenizer has no eos token.\n"
        "A model trained on it would never stop: give the tokenizer an eos_token."
    )


def _without_images(message):
    if isinstance(message["content"], str):
        return message
    parts = [{"type": "image"} if part["type"] == "image" else part for part in message["content"]]
    return {**message, "content": parts}
