"""JSON that others have written, such as a server, or that something may have damaged since: cut, emptied, edited, overwritten.

Every text that is no plain JSON is a ValueError, whatever is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lore.support.errors import LoreError, reason

LONGEST_INTEGER = 20
"""Characters of the longest integer that stays one. A longer one becomes a float: Python refuses to read or print long integers."""


def parse_json(
    text: bytes | str, *, long_integer: Callable[[str], Any] = float, constants: bool = True, depth: int | None = None
) -> Any:
    """The value of a JSON text. Raises ValueError for anything else, also for brackets nested too deeply, and for a key that is
    given twice with different values: two readers would take different ones.

    long_integer: from the digits of an integer that is longer than LONGEST_INTEGER to its value. constants: whether NaN and
    Infinity, which Python writes and JSON does not have, are numbers. depth: of nested brackets; null: Python's own limit.
    """

    def number(digits: str) -> Any:
        return int(digits) if len(digits) <= LONGEST_INTEGER else long_integer(digits)

    try:
        found = json.loads(text, parse_int=number, parse_constant=None if constants else _refuse, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("brackets nested too deeply") from None
    if depth is not None and _is_deeper(found, depth):
        raise ValueError(f"brackets nested more than {depth} deep")
    return found


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The object in a text that LORE has written. Raises ValueError for anything else, also for half a character, which cannot be
    printed or stored, and for a number that no float holds, which LORE does not write."""
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError(f"{type(content).__name__} instead of an object")
    try:
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("nested too deep") from None
    return content


def read_object(path: Path, lost: str, advice: str, **error: Any) -> dict[str, Any]:
    """The JSON object in a file that LORE has written. Raises LoreError for a damaged one. lost: what is lost with it; advice: what
    to do; error: further arguments of the LoreError."""
    try:
        return parse_object(path.read_bytes())
    except (OSError, ValueError) as cause:
        raise LoreError(f"{path} is damaged ({reason(cause)}), so {lost}.\n{advice}", **error) from cause


def shown_json(value: Any, most: int) -> str:
    """A parsed value as JSON on one line for people, at most `most` characters."""
    try:
        return json.dumps(value, ensure_ascii=False)[:most]
    except (RecursionError, ValueError):
        return "a value nested too deeply to show"


def _refuse(name: str) -> None:
    raise ValueError(f"{name}, which is no number of JSON")


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether arrays and objects are nested in more than `depth` levels."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(depth):
        if not level:
            return False
        inner = (one for outer in level for one in (outer.values() if type(outer) is dict else outer))
        level = [one for one in inner if type(one) in (dict, list)]
    return bool(level)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        first: dict[str, Any] = {}
        for key, value in pairs:
            if first.setdefault(key, value) != value:
                raise ValueError(f"the key {key[:40]!r} twice, with different values")
    return found
