"""The two texts of a pair that a student reads: the query, and the item as one plain line.

    red mug                    Lumo mug | Lumo | kitchen > mugs | price 7.50 | color: red; size: 0.3 l | A mug for ...

A judge reads instructions, a rubric and tags around every field (lore.codec.prompt); an encoder with a head has learned all of that
and reads the texts alone. Both get them from the same sanitizer.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lore.codec.sanitize import neutralize, neutralize_attribute
from lore.support.errors import LoreError

if TYPE_CHECKING:  # loads pyarrow, which the texts do not need
    from lore.data.pair import Pair
    from lore.rubric.rubric import Rubric

PAIR_TEXT_VERSION = 2
ITEM_FIELDS = ("title", "brand", "category", "shop", "price", "attributes", "description")
MAX_CHARACTERS_PER_TOKEN = 12
"""Of the item: more characters than max_tokens times this are not tokenized, because their tokens would be cut anyway."""
MAX_QUERY_CHARACTERS = 4096
BETWEEN = " | "


@dataclass(frozen=True)
class PairTextFormat:
    """Which fields of the item a student reads, in this order, and how much of them.

    max_field_characters: longer texts of a field are cut. max_tokens: longest pair in tokens, special tokens included; a longer
    one loses the end of its item.
    """

    fields: tuple[str, ...] = ITEM_FIELDS
    max_field_characters: int = 512
    max_tokens: int = 128

    def __post_init__(self):
        object.__setattr__(self, "fields", tuple(self.fields))
        unknown = [name for name in self.fields if name not in ITEM_FIELDS]
        if unknown or "title" not in self.fields or len(set(self.fields)) < len(self.fields):
            raise LoreError(
                f"A student's text has the fields {', '.join(map(str, self.fields)) or 'none'}; expected title and others of "
                f"{', '.join(ITEM_FIELDS)}, each once."
            )
        if min(self.max_field_characters, self.max_tokens) < 1:
            raise LoreError(
                f"A student's text has max_field_characters {self.max_field_characters} and max_tokens {self.max_tokens}; expected "
                "at least 1 of both."
            )

    def to_dict(self) -> dict[str, Any]:
        """The format as plain JSON, which the constructor takes again."""
        return asdict(self) | {"fields": list(self.fields)}


def pair_texts(pair: Pair, fmt: PairTextFormat) -> tuple[str, str]:
    """(query, item) as single printable lines without tags. Empty fields are left out."""
    most = fmt.max_tokens * MAX_CHARACTERS_PER_TOKEN
    parts, left = [], most
    for name in fmt.fields:
        if left <= 0:
            break
        text = _field(pair, name, min(fmt.max_field_characters, left))
        if text:
            parts.append(text)
            left -= len(text) + len(BETWEEN)
    return neutralize(pair.query[:MAX_QUERY_CHARACTERS]), BETWEEN.join(parts)[:most]


def _field(pair: Pair, name: str, most: int) -> str:
    """A field as one line of at most `most` characters; "" if it is empty."""
    if name == "price":
        known = pair.price is not None and math.isfinite(pair.price)
        # 20 and not 20.00: the token that a query for at most 20 dollars has.
        return f"price {pair.price:.2f}".removesuffix(".00")[:most] if known else ""
    if name == "attributes":
        texts, left = [], most
        for key, value in pair.attributes.items():
            if left <= 0:
                break
            if text := neutralize_attribute(key[:left], value[:left]):
                texts.append(text)
                left -= len(text) + 2
        return "; ".join(texts)[:most].rstrip()
    # neutralize may shorten a text, and seldom lengthens it.
    return neutralize((getattr(pair, name) or "")[:most])[:most].rstrip()


def pair_text_hash(rubric: Rubric | str, fmt: PairTextFormat) -> str:
    """16 hex digits that identify what a student reads and answers: rubric, fields, length, layout. rubric: it, or its hash.

    It is the renderer hash of a student, see lore.judge.card.judge_id.
    """
    parts = [PAIR_TEXT_VERSION, rubric if isinstance(rubric, str) else rubric.hash, fmt.to_dict(), BETWEEN]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
