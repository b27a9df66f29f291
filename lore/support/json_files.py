"""JSON objects that LORE has written and that something may have damaged since: cut, emptied, edited, overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lore.support.errors import LoreError, reason

MAX_DIGITS = 300
"""A longer integer does not fit a float, and every number here is shown or compared as one."""


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The object in a text. Raises ValueError for anything else, however deep or large."""
    try:
        content = json.loads(text if isinstance(text, str) else text.decode(), parse_int=_integer)
        json.dumps(content, ensure_ascii=False).encode()  # half a character cannot be printed or stored
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(content, dict):
        raise ValueError(f"{type(content).__name__} instead of an object")
    return content


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def read_object(path: Path, lost: str, advice: str) -> dict[str, Any]:
    """The JSON object in a file. Raises LoreError for a damaged one. lost: what is lost with it; advice: what to do."""
    try:
        return parse_object(path.read_bytes())
    except (OSError, ValueError) as error:
        raise LoreError(f"{path} is damaged ({reason(error)}), so {lost}.\n{advice}") from error
