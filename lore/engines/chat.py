"""Converts messages to the exact text that a model reads. Training and every engine use these functions, so they agree."""

from functools import lru_cache
from typing import Any

from lore.codec.chat_template import answer_glue, template_text, text_after_answer, text_ids
from lore.codec.prompt import PromptFormat
from lore.data.images import ImageError, bounded, load_image
from lore.data.pair import Pair
from lore.support.errors import LoreError


def prompt_text(processor: Any, messages: list[dict]) -> tuple[str, list]:
    """The prompt text with the template's image placeholders, and the images in order.

    processor: a tokenizer or a multimodal processor with a chat template. A trailing assistant message is used as prefill:
    its text follows as it does in a finished conversation. See lore.codec.chat_template for the template's arguments.
    """
    prefill = ""
    if messages[-1]["role"] == "assistant":
        *messages, last = messages
        prefill = last["content"] if isinstance(last["content"], str) else "".join(part["text"] for part in last["content"])
        prefill = answer_glue(processor) + prefill
    images = [
        visible(part["image"])
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image"
    ]
    return template_text(processor, [without_images(message) for message in messages]) + prefill, images


def open_photo(image: Any, fmt: PromptFormat, processor: Any) -> Any:
    """A pair's photo as the model sees it: upright, with at most fmt.max_photo_pixels.

    Raises ImageError; its reason is image_refused if the model's processor rejects the photo (Qwen-VL rejects aspect ratios
    of 200 and above).
    """
    photo = visible(bounded(load_image(image), fmt.max_photo_pixels))
    if hasattr(processor, "tokenizer"):
        try:
            image_tokens(processor, photo)
        except ValueError as error:
            found = f"a photo of {photo.width} x {photo.height} that the model's processor rejects ({str(error)[:160]})"
            raise ImageError("image_refused", found, "a photo that the processor accepts") from error
    return photo


def photo_of(pair: Pair, fmt: PromptFormat, processor: Any) -> tuple[Any, str]:
    """The photo to show, or None, and its status: seen, hidden (fmt.photo is false), failed (unreadable) or none."""
    if pair.image is None:
        return None, "none"
    if not fmt.photo:
        return None, "hidden"
    try:
        return open_photo(pair.image, fmt, processor), "seen"
    except ImageError:
        return None, "failed"


def visible(image: Any) -> Any:
    """The photo. An all-black photo becomes one gray level lighter, because Idefics3 drops all-zero images as padding."""
    return image if image.getbbox() else image.point(lambda value: 1)


def image_tokens(processor: Any, image: Any) -> int:
    """Tokens that a photo adds to the tokenized prompt, beyond its placeholder.

    Measured with the processor once per photo size and cached: tiles, rows and separators differ between models.
    """
    known = processor.__dict__.setdefault("_lore_image_tokens", {})
    if image.size not in known:
        mark = getattr(processor, "image_token", None) or "<image>"
        expanded = processor(text=[mark], images=[[image]], add_special_tokens=False)["input_ids"][0]
        known[image.size] = len(expanded) - len(processor.tokenizer(mark, add_special_tokens=False)["input_ids"])
    return known[image.size]


def prompt_tokens(processor: Any, messages: list[dict]) -> int:
    """Length of a prompt in tokens, including photos."""
    text, images = prompt_text(processor, messages)
    return len(text_ids(processor, text)) + sum(image_tokens(processor, image) for image in images)


def at_verdict(messages: list[dict], prefix: str) -> list[dict]:
    """`messages` that end right before the tier: an existing prefill stays as it is, otherwise `prefix` is added as prefill."""
    if messages[-1]["role"] == "assistant":
        return messages
    return [*messages, {"role": "assistant", "content": prefix}]


def turn_end(processor: Any) -> str:
    """The token that ends the assistant turn in the chat template, special or only added, else the eos token.

    Raises LoreError if there is neither: a model trained without it never stops generating.
    """
    return _turn_end(processor, text_after_answer(processor))


@lru_cache(maxsize=8)  # called once a training row, and some tokenizers have thousands of added tokens
def _turn_end(processor: Any, after: str) -> str:
    tokenizer = getattr(processor, "tokenizer", processor)
    added = {str(token) for token in tokenizer.get_added_vocab()}  # special or not, such as Gemma's <end_of_turn>
    ends = [token for token in {*tokenizer.all_special_tokens, *added} if token.strip() and token in after]
    if ends:
        first = min(ends, key=lambda token: (after.index(token), -len(token)))
        return after[: after.index(first)] + first
    if tokenizer.eos_token:
        return tokenizer.eos_token
    raise LoreError(
        "The chat template ends an answer without a special token and the tokenizer has no eos token.\n"
        "A model trained with it would never stop generating. Set the tokenizer's eos_token."
    )


def stop_ids(processor: Any, known: set[int]) -> list[int]:
    """Token ids that end an answer: the template's end of turn, the tokenizer's eos and `known`, the checkpoint's own."""
    tokenizer = getattr(processor, "tokenizer", processor)
    end = text_ids(processor, turn_end(processor))[-1]
    return sorted(known | {end} | ({tokenizer.eos_token_id} - {None}))


def without_images(message: dict) -> dict:
    """The message with a placeholder for each photo, as chat templates expect it."""
    if isinstance(message["content"], str):
        return message
    parts = [{"type": "image"} if part["type"] == "image" else part for part in message["content"]]
    return {**message, "content": parts}
