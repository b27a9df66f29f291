"""A question about places as it was understood, and a place that was found for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from lore.places.hours import Opening
from lore.places.place import Place

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
    the person. around_id: its place_id. around_others: how many places farther from the person have the same name. unknown_places:
    names that the question gives and the index lacks: said, never guessed. similar_places: names of the town that are spelled like
    them. minutes: on foot. when: wall clock of the town. open_then: only places that are open at `when` are wanted.
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
    around_id: str | None = None
    around_others: int = 0
    similar_places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hit:
    """row: of the town. score: larger is better, comparable only within its layer. why: a short reason for people."""

    row: int
    score: float
    why: str


@dataclass(frozen=True)
class Candidate:
    """A place that was found. hits: by name of the layer. tier: of rubrics/local_life.yaml; None: not judged."""

    row: int
    place: Place
    metres: float
    minutes: float
    opening: Opening
    score: float
    hits: dict[str, Hit]
    tier: str | None = None
