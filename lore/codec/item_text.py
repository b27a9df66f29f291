"""The texts of a pair as they appear in a prompt: sanitized, without empty fields."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lore.codec.sanitize import neutralize, neutralize_attribute

if TYPE_CHECKING:  # loads pyarrow, which prompts and judgements do not need
    from lore.data.pair import Pair

ITEM_FIELDS = ("brand", "category", "shop")
MAX_FIELD_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class ItemText:
    """The sanitized texts of one pair.

    fields: complete lines (`<brand>…</brand>`); attributes: `key: value` strings; facts: explanations of words in the query.
    """

    query: str
    title: str
    fields: list[str] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    description: str = ""
    facts: list[str] = field(default_factory=list)

    def block(self, photo: bool) -> tuple[str, str]:
        """The user text before and after the photo. Without a photo the second text is ""."""
        lines = [f"<facts>{'; '.join(self.facts)}</facts>"] if self.facts else []
        lines += [f"<query>{self.query}</query>\n<item>\n<title>{self.title}</title>", *self.fields]
        if self.attributes:
            lines.append(f"<attributes>{'; '.join(self.attributes)}</attributes>")
        if self.description:
            lines.append(f"<description>{self.description}</description>")
        head = "\n".join(lines)
        return (f"{head}\n<photo>", "</photo>\n</item>") if photo else (f"{head}\n</item>", "")


def item_text(pair: Pair, control: frozenset[str] = frozenset(), max_characters: int | None = None) -> ItemText:
    """The pair's texts, sanitized for a prompt, without empty fields.

    control: the tokenizer's control strings, which are removed; max_characters: longer texts are cut.
    """
    fields = []
    for key in ITEM_FIELDS:
        value = getattr(pair, key)
        if value:
            value = neutralize(value[: 4 * MAX_FIELD_CHARACTERS], control)[:MAX_FIELD_CHARACTERS].rstrip()
            if value:
                fields.append(f"<{key}>{value}</{key}>")
    if pair.price is not None and math.isfinite(pair.price):
        fields.append(f"<price>{pair.price:.2f}</price>".replace(".00<", "<"))
    attributes = (neutralize_attribute(k, v[:max_characters], control) for k, v in pair.attributes.items())
    return ItemText(
        query=neutralize(pair.query, control),
        title=neutralize(pair.title[:max_characters], control),
        fields=fields,
        attributes=[text for text in attributes if text],
        description=neutralize(pair.description[:max_characters], control) if pair.description else "",
    )
