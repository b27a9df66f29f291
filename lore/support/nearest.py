"""The most similar name, for suggestions in error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from lore.support.text import printable


def nearest(name: str, choices: Iterable[object], cutoff: float = 0.6) -> str:
    """The most similar choice, ignoring case, or "" if none is similar enough."""
    by_folded = {str(choice).casefold(): str(choice) for choice in choices}
    close = difflib.get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=cutoff)
    return by_folded[close[0]] if close else ""


def nearest_hint(name: str, choices: Iterable[object], cutoff: float = 0.6) -> str:
    """The suffix ` Nearest: 'x'.` for an error message, or "" if no choice is similar enough."""
    found = nearest(name, choices, cutoff)
    return f" Nearest: '{printable(found)}'." if found else ""
