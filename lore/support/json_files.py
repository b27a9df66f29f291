"""JSON objects that LORE has written and that something may have damaged since: cut, emptied, edited, overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lore.support.errors import LoreError, reason
from lore.support.untrusted_json import parse_json


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The object in a text. Raises ValueError for anything else, however deep or large."""
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError(f"{type(content).__name__} instead of an object")
    try:
        # Half a character cannot be printed or stored, and LORE writes no number that a float does not hold.
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("nested too deep") from None
    return content


def read_object(path: Path, lost: str, advice: str) -> dict[str, Any]:
    """The JSON object in a file. Raises LoreError for a damaged one. lost: what is lost with it; advice: what to do."""
    try:
        return parse_object(path.read_bytes())
    except (OSError, ValueError) as error:
        raise LoreError(f"{path} is damaged ({reason(error)}), so {lost}.\n{advice}") from error
