"""The most similar of some names, for errors that say what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, choices: Iterable[object], cutoff: float = 0.6) -> str:
    """The most similar choice, whatever its case, or "" when none is similar."""
    by_folded = {str(choice).casefold(): str(choice) for choice in choices}
    close = difflib.get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=cutoff)
    return by_folded[close[0]] if close else ""


def nearest_hint(name: str, choices: Iterable[object], cutoff: float = 0.6) -> str:
    """` Nearest: 'x'.` to put behind an error's sentence, or "" when no choice is similar."""
    found = nearest(name, choices, cutoff)
    return f" Nearest: '{found}'." if found else ""
