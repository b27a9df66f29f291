"""Pairs of rows whose texts need no cleaning, as most rows of requests are: the same pairs as those of lore.data.row_validation, in
less than half of its time. All other rows are left to that.
"""

import math
from typing import Any

from lore.data.pair import FIELDS, REQUIRED, Pair, item_key, make_pair_id, market_of
from lore.data.row_validation import MAX_CHARACTERS, MAX_LIST, MAX_OTHER_CHARACTERS, is_visible
from lore.data.tables.ids import id_text
from lore.support.text import encodable, has_html

_IDS = frozenset(("pair_id", "item_id"))
_TEXTS = _IDS | {"query", "title", "description", "category", "brand", "shop"}
_LONG_INTEGER_BITS = 64


def plain_pair(row: dict[str, Any], most_characters: int) -> Pair | None:
    """The pair of a row, without its photo. None: the row has to be checked field by field. most_characters: of all texts together;
    more than MAX_OTHER_CHARACTERS are never plain."""
    values: dict[str, Any] = {"pair_id": ""}
    texts: list[str] = []
    for name, value in row.items():
        kind = type(value)
        if kind is str and name in _TEXTS:
            texts.append(value)
            if name in _IDS:
                value = id_text(value)
            if value := value.strip():
                values[name] = value
        elif name == "price" and (
            kind is float and math.isfinite(value) or kind is int and value.bit_length() <= _LONG_INTEGER_BITS
        ):
            values[name] = float(value)
        elif name == "attributes" and kind is dict and len(value) <= MAX_LIST:
            attributes = values[name] = _attributes(value, texts)
            if attributes is None:
                return None
        elif name == "slices" and kind is list and len(value) <= MAX_LIST and all(type(one) is str for one in value):
            texts += value
            values[name] = [text for one in value if (text := one.strip())]
        elif name != "image" and (value is not None or name not in FIELDS):
            return None
    if not all(is_visible(values.get(name)) for name in REQUIRED[1:]) or len(row["query"]) > MAX_CHARACTERS["query"]:
        return None
    if not _is_clean("\n".join(texts), min(most_characters, MAX_OTHER_CHARACTERS)):
        return None
    pair = Pair(**values)
    if not pair.pair_id:
        pair.pair_id = make_pair_id(pair.query, pair.item_id or item_key(pair), market_of(pair.slices))
    return pair


def _attributes(given: dict[Any, Any], texts: list[str]) -> dict[str, str] | None:
    """The attributes, whose texts are added to those of the row; None if two names are the same, or one is empty."""
    found: dict[str, str] = {}
    for key, value in given.items():
        if type(key) is not str or type(value) is not str:
            return None
        texts += (key, value)
        name, content = key.strip(), value.strip()
        if content:
            if not name or name in found:
                return None
            found[name] = content
    return found


def _is_clean(text: str, most: int) -> bool:
    """Whether no cleaning would change the texts that are joined to this one."""
    if len(text) > most or "\0" in text or ("<" in text or "&" in text) and has_html(text):
        return False
    return text.isascii() or "\ufeff" not in text and encodable(text) is text
