"""Messages to the exact text a model reads. Training and every engine come through here, so the two cannot differ."""

from typing import Any

from lore.codec.chat_template import template_text, text_after_answer
from lore.codec.prompt import PromptFormat
from lore.data.images import ImageError, bounded, load_image
from lore.data.pair import Pair
from lore.support.errors import LoreError


def prompt_text(processor: Any, messages: list[dict]) -> tuple[str, list]:
    """The prompt as text with the template's image placeholders, and the images in order.

    processor: a tokenizer or a multimodal processor with a chat template. A last message by the assistant is what the
    answer begins with: it is appended as it is. See lore.codec.chat_template for what the template gets.
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
    return template_text(processor, [without_images(message) for message in messages]) + begun, images


def open_photo(image: Any, fmt: PromptFormat, processor: Any) -> Any:
    """A pair's photo as the model is shown it: upright, of at most fmt.max_photo_pixels.

    Raises ImageError, with reason image_refused where the model's processor cannot take it (Qwen-VL: a side 200 times as
    long as the other).
    """
    photo = visible(bounded(load_image(image), fmt.max_photo_pixels))
    if hasattr(processor, "tokenizer"):
        try:
            image_tokens(processor, photo)
        except ValueError as error:
            found = f"a photo of {photo.width} x {photo.height} that the model's processor refuses ({str(error)[:160]})"
            raise ImageError("image_refused", found, "a photo that it takes") from error
    return photo


def photo_of(pair: Pair, fmt: PromptFormat, processor: Any) -> tuple[Any, str]:
    """The photo to show, or None, and what became of it: seen, hidden, failed or none."""
    if pair.image is None:
        return None, "none"
    if not fmt.photo:
        return None, "hidden"
    try:
        return open_photo(pair.image, fmt, processor), "seen"
    except ImageError:
        return None, "failed"


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


def at_verdict(messages: list[dict], prefix: str) -> list[dict]:
    """`messages` up to where the tier is decided: a begun answer as it is, else behind the opening of a verdict."""
    if messages[-1]["role"] == "assistant":
        return messages
    return [*messages, {"role": "assistant", "content": prefix}]


def turn_end(processor: Any) -> str:
    """What follows an answer in the chat template: the token that ends the turn.

    Raises LoreError where the template has none, since a model trained without it never stops.
    """
    after = text_after_answer(processor)
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


def stop_ids(processor: Any, known: set[int]) -> list[int]:
    """Tokens that end an answer: the template's end of turn, the tokenizer's eos and those that the checkpoint knows."""
    tokenizer = getattr(processor, "tokenizer", processor)
    end = tokenizer(turn_end(processor), add_special_tokens=False)["input_ids"][-1]
    return sorted(known | {end} | ({tokenizer.eos_token_id} - {None}))


def without_images(message: dict) -> dict:
    """The message with a placeholder for each photo, as chat templates want it."""
    if isinstance(message["content"], str):
        return message
    parts = [{"type": "image"} if part["type"] == "image" else part for part in message["content"]]
    return {**message, "content": parts}
