"""What a question asks for: needs, where, when, how far, with whom."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

WALK_MINUTES = 15.0
"""The 15-minute life circle."""


@dataclass(frozen=True)
class Need:
    """text: words of the question. key: the need in the relations of lore.nearby.graph that they mean; None: only the vector layer
    can answer them. excluded: places that have it are not wanted ("not a chain")."""

    text: str
    key: str | None = None
    excluded: bool = False


@dataclass(frozen=True)
class Intent:
    """lat, lon: middle of the circle. around: name of the place or area that the question gave as the middle; None: the position of
    the person. unknown_places: names that the question gives and the index lacks: said, never guessed. minutes: on foot. when: wall
    clock of the town. open_then: only places that are open at `when` are wanted.
    """

    text: str
    lat: float
    lon: float
    language: Literal["en", "zh"] = "en"
    needs: tuple[Need, ...] = ()
    around: str | None = None
    unknown_places: tuple[str, ...] = ()
    minutes: float = WALK_MINUTES
    when: datetime | None = None
    open_then: bool = False
    companions: tuple[str, ...] = ()
