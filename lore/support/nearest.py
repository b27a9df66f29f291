"""The most similar of some names, for errors that say what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, choices: Iterable[object], cutoff: float = 0.6) -> str:
    """The most similar choice, or nothing when none is similar."""
    return next(iter(difflib.get_close_matches(name, [str(c) for c in choices], n=1, cutoff=cutoff)), "")
