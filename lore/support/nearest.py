"""The most similar name, for suggestions in error messages."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Iterable

from lore.support.text import printable

MAX_CHARACTERS, MAX_CHOICES = 100, 1_000  # a comparison takes the square of the length, and a table may have 100,000 columns


def nearest(name: str, choices: Iterable[object], cutoff: float = 0.6) -> str:
    """The most similar choice, ignoring case, or "" if none is similar enough or the name is no name but a text.

    Of more than MAX_CHOICES choices, those of about the same length and letters are compared.
    """
    folded = name[: MAX_CHARACTERS + 1].casefold()
    if len(name) > MAX_CHARACTERS:
        return ""
    texts = (str(choice) for choice in choices)
    by_folded = {text.casefold(): text for text in texts if len(text) <= MAX_CHARACTERS}
    if folded in by_folded:
        return by_folded[folded]
    known = list(by_folded)
    if len(known) > MAX_CHOICES:
        letters = set(folded)
        known = heapq.nsmallest(MAX_CHOICES, known, key=lambda text: abs(len(text) - len(folded)) + len(letters ^ set(text)))
    close = difflib.get_close_matches(folded, known, n=1, cutoff=cutoff)
    return by_folded[close[0]] if close else ""


def nearest_hint(name: str, choices: Iterable[object], cutoff: float = 0.6) -> str:
    """The suffix ` Nearest: 'x'.` for an error message, or "" if no choice is similar enough."""
    found = nearest(name, choices, cutoff)
    return f" Nearest: '{printable(found)}'." if found else ""
