"""Step 2, multimodal: what the item offers for each demand, and where it is written or visible.

There are two ways: a vision model writes a caption and a text teacher reads it, or a vision-language teacher sees the photo.
"""

from lore.codec.prompt import Message
from lore.codec.sanitize import neutralize
from lore.data.pair import Pair
from lore.data_synth.synthesis.teacher_prompts import Prompts
from lore.data_synth.synthesis.trace import Evidence, Unreadable, Wish, one_object, rows_of, spoken
from lore.rubric.demand import SOURCES

MAX_CAPTION = 600  # characters


def caption_prompt(prompts: Prompts, pair: Pair) -> list[Message]:
    return prompts.messages("caption", photo=pair.image)


def read_caption(text: str) -> str:
    caption = neutralize(spoken(text))[:MAX_CAPTION].strip()
    if not caption:
        raise Unreadable("an empty caption")
    return caption


def prompt(
    prompts: Prompts, pair: Pair, wishes: list[Wish], facts: list[str], *, caption: str | None, photo: bool
) -> list[Message]:
    """photo: include the photo in the prompt."""
    values = {"wishes": wishes, "facts": facts, "caption": caption, "item": prompts.item(pair, photo)}
    return prompts.messages("multimodal", photo=pair.image if photo else None, **values)


def read(text: str, wishes: list[Wish]) -> list[Evidence]:
    """One finding per demand, or fewer if the item is a different kind of thing. Raises Unreadable for any other form."""
    rows = rows_of(one_object(text, "evidence"), "evidence", ("found", "source"))
    if not rows or len(rows) > len(wishes):
        raise Unreadable(f"{len(rows)} findings for {len(wishes)} demands")
    for row in rows:
        if row["source"] not in SOURCES:
            raise Unreadable(f"source {row['source'][:60]!r} is none of {', '.join(SOURCES)}")
    return [Evidence(row["found"] or "none", row["source"]) for row in rows]
