"""Converts pairs to training rows. Prompts and answers are identical to those that the engines write and read.

A row without photos holds token ids and labels. A row with photos holds texts and photos, which TRL's collator tokenizes batch by
batch.
"""

from dataclasses import replace
from typing import Any

import pyarrow as pa

from lore.codec.chat_template import conversation_ids
from lore.codec.item_text import item_text
from lore.codec.judgement import Judgement, render_answer
from lore.codec.prompt import MAX_CHARACTERS_PER_TOKEN, PromptFormat, render
from lore.codec.sanitize import control_strings
from lore.data.images import ImageError
from lore.data.pair import Pair
from lore.data.rejected_rows import Rejection, short
from lore.engines.chat import image_tokens, open_photo, prompt_text, turn_end
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError
from lore.train.common.arrow_rows import IGNORE, IMAGE

TEXT_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("length", pa.int32()),
        ("tier", pa.string()),
        ("pair_id", pa.string()),
        ("cut", pa.bool_()),
        ("reasoned", pa.bool_()),
        ("book", pa.string()),
    ]
)
VISION_SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("images", pa.list_(IMAGE)),
        ("length", pa.int32()),
        ("prompt_length", pa.int32()),
        ("tier", pa.string()),
        ("pair_id", pa.string()),
        ("cut", pa.bool_()),
        ("reasoned", pa.bool_()),
        ("book", pa.string()),
        ("photo_refused", pa.bool_()),
    ]
)


def gold(pair: Pair) -> Judgement:
    """The supervision of a pair: its label and, if present, its rationale, mismatch and rules."""
    return Judgement(pair.label, None, pair.mismatch, pair.rules, pair.rationale or "")


def takes_photos(processor: Any, fmt: PromptFormat) -> bool:
    """Whether rows are texts with photos: the processor is multimodal and the prompt shows photos."""
    return hasattr(processor, "tokenizer") and fmt.photo


def sft_row(pair: Pair, rubric: Rubric, fmt: PromptFormat, processor: Any) -> dict[str, Any]:
    """One row: prompt and answer as token ids with labels, or as texts with photos (see `takes_photos`).

    Renders the prompt with the processor's chat template, which may differ from its tokenizer's. Omits a photo that the processor
    rejects and sets `photo_refused`. Raises ImageError for an unreadable photo.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    messages, refused = shown_messages(pair, rubric, fmt, processor)
    prompt, images = prompt_text(processor, messages)
    answer = render_answer(gold(pair), rubric, fmt, tokenizer=tokenizer) + turn_end(processor)
    cut = whole_text(pair, fmt, tokenizer, photo=bool(images)) != user_text(messages)
    ends = {"tier": pair.label, "pair_id": pair.pair_id, "cut": cut, "reasoned": "<reason>" in answer, "book": pair.rubric}
    return _row(prompt, answer, images, pair.image, processor, fmt, ends, refused=refused)


def shown_messages(pair: Pair, rubric: Rubric, fmt: PromptFormat, processor: Any) -> tuple[list[dict], bool]:
    """(messages, refused): a pair's messages with its photo, or without the photo if the processor refused it. Raises ImageError
    for an unreadable photo."""
    shown, refused = None, False
    if takes_photos(processor, fmt) and pair.image:
        try:
            shown = open_photo(pair.image, fmt, processor)
        except ImageError as error:
            if error.reason != "image_refused":
                raise
            refused = True
    return render(pair, rubric, fmt if shown else replace(fmt, photo=False), tokenizer=processor, image=shown), refused


def _row(
    prompt: str,
    answer: str,
    shown: list,
    stored: Any,
    processor: Any,
    fmt: PromptFormat,
    ends: dict[str, Any],
    *,
    refused: bool = False,
) -> dict[str, Any]:
    """A row of either schema. shown: the photos in the prompt; stored: the photo for the collator; ends: the last columns."""
    ids, prompt_length = conversation_ids(processor, prompt, answer)
    if not takes_photos(processor, fmt):
        labels = [IGNORE] * prompt_length + ids[prompt_length:]
        return {"input_ids": ids, "labels": labels, "length": len(ids), **ends}
    photo_tokens = sum(image_tokens(processor, image) for image in shown)
    images = [dict(stored)] if shown else []
    lengths = {"length": len(ids) + photo_tokens, "prompt_length": prompt_length + photo_tokens}
    return {"prompt": prompt, "completion": answer, "images": images, **lengths, **ends, "photo_refused": refused}


def task_row(task: dict[str, Any], fmt: PromptFormat, processor: Any) -> dict[str, Any]:
    """The row of a single-step task (lore.data_synth.synthesis.tasks). Omits the photo for a model that is shown none."""
    shown = open_photo(task["image"], fmt, processor) if takes_photos(processor, fmt) and task["image"] else None
    messages = [{**message, "content": _content(message["content"], shown)} for message in task["messages"]]
    prompt, images = prompt_text(processor, messages)
    ends = {"tier": task["label"], "pair_id": f"{task['pair_id']}/{task['task']}", "cut": False, "reasoned": False, "book": None}
    return _row(prompt, task["completion"] + turn_end(processor), images, task["image"], processor, fmt, ends)


def _content(content: str | list[dict], shown: Any) -> str | list[dict]:
    if isinstance(content, str):
        return content
    if shown is None:
        return "".join(part["text"] for part in content if part["type"] == "text")
    return [{"type": "image", "image": shown} if part["type"] == "image" else part for part in content]


def rejection_of(pair: Pair, error: LoreError, file: str, row: int) -> Rejection:
    """The record of a pair that could not become a row."""
    known = {"pair_id": pair.pair_id, "query": pair.query, "title": pair.title, "label": pair.label}
    field, reason, found, expected = "prompt", "cannot_be_rendered", str(error), "a pair that the recipe's prompt can show"
    if isinstance(error, ImageError):
        field, reason, found, expected = "image", error.reason, error.found, error.expected
    return Rejection(file, row, f"pair {pair.pair_id}, {field}", reason, found, expected, short(known))


def whole_text(pair: Pair, fmt: PromptFormat, tokenizer: Any, photo: bool) -> str:
    """The user's text before the photo, without a token limit."""
    return item_text(pair, control_strings(tokenizer), fmt.max_prompt_tokens * MAX_CHARACTERS_PER_TOKEN).block(photo)[0]


def user_text(messages: list[dict]) -> str:
    """The user's text before the photo."""
    content = messages[-1]["content"]
    return content if isinstance(content, str) else content[0]["text"]


