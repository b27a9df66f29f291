"""A place, post or event, and a name as it is compared. Names, tags and texts come from strangers and are not trusted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Literal

from lore.codec.sanitize import fold

Kind = Literal["place", "event", "post", "area"]
MAX_NAME = 200
"""Characters of a name that are compared."""
WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+")
APOSTROPHES = str.maketrans("", "", "'’‘`´")
_ASCII = {code: " " for code in range(128) if not chr(code).isalnum()} | APOSTROPHES  # as WORD, ten times as fast


@dataclass(slots=True)
class Place:
    """lat, lon: degrees, WGS 84; of an outline, its middle.

    kind: an area is a neighborhood or park that others lie in. classes: OpenStreetMap's `key=value` (amenity=cafe) wherever tags or
    the words of lore/nearby/fclass.yaml tell the key; `fclass=word` for another word of a column fclass; else the plain words of a
    table. text: description, or the body of a post. hours: OpenStreetMap's `opening_hours`; None: unknown. starts, ends: wall clock
    of the town, for events. about: place_id of the place that a post or event belongs to. outline: (lat, lon) of a line, or of a
    polygon whose first and last points are equal. Several parts, and holes, follow each other with the point (nan, nan) between
    them: see parts.
    """

    place_id: str
    name: str
    lat: float
    lon: float
    kind: Kind = "place"
    classes: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    text: str = ""
    hours: str | None = None
    starts: datetime | None = None
    ends: datetime | None = None
    about: str | None = None
    outline: list[tuple[float, float]] | None = None


def parts(outline: list[tuple[float, float]]) -> Iterator[list[tuple[float, float]]]:
    """The lines or rings of an outline. Of the rings of a polygon, those inside another one are holes."""
    for is_gap, points in groupby(outline, lambda point: point[0] != point[0]):
        if not is_gap:
            yield list(points)


def plain_name(text: str) -> str:
    """A name as it is compared: no accents, case, apostrophes or marks; single spaces between words and Han characters."""
    folded = fold(text[:MAX_NAME])
    if folded.isascii():
        return " ".join(folded.translate(_ASCII).split())
    return " ".join(WORD.findall(folded.translate(APOSTROPHES)))
