"""JSON of servers, and of journals that hold their numbers: every text that is no plain JSON is a ValueError, whatever is wrong."""

from __future__ import annotations

import json
from typing import Any

LONGEST_INTEGER = 20
"""Characters of the longest integer that stays one. A longer one becomes a float: Python refuses to read or print long integers."""


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text. Raises ValueError for anything else, also for brackets nested too deeply, and for a key that is
    given twice with different values: two readers would take different ones."""
    try:
        return json.loads(text, parse_int=_number, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("brackets nested too deeply") from None


def shown_json(value: Any, most: int) -> str:
    """A parsed value as JSON on one line for people, at most `most` characters."""
    try:
        return json.dumps(value, ensure_ascii=False)[:most]
    except (RecursionError, ValueError):
        return "a value nested too deeply to show"


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) <= LONGEST_INTEGER else float(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        first: dict[str, Any] = {}
        for key, value in pairs:
            if first.setdefault(key, value) != value:
                raise ValueError(f"the key {key[:40]!r} twice, with different values")
    return found
