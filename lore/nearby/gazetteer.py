"""The names of a town's places and areas, to look up what a question calls a place."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lore.nearby.town import Town
from lore.places.place import plain_name
from lore.places.walk import haversine
from lore.support.nearest import nearest

MAX_WORDS = 12
"""Of a name that is looked up. Each Han character counts as a word."""
MOST_SIMILAR, MOST_COMPARED = 3, 200


class Named(NamedTuple):
    """row: of the nearest place with the name. others: how many more places have it."""

    row: int
    others: int


def find(town: Town, name: str, lat: float, lon: float) -> Named | None:
    """The place or area with a plain name, the nearest to a position if there are several."""
    rows = town.named(name)
    if not rows:
        return None
    distances = haversine(lat, lon, town.lats[rows], town.lons[rows])
    return Named(rows[int(np.argmin(distances))], len(rows) - 1)


def similar(town: Town, name: str) -> list[str]:
    """At most MOST_SIMILAR names of the town: the shortest that hold all words of a name, then the one spelled most like it."""
    words = plain_name(name).split()[:MAX_WORDS]
    known = {plain_name(town.names[row]): row for row in town.names_like(words, MOST_COMPARED)}
    longer = sorted((one for one in known if set(words) <= set(one.split())), key=len)
    found = dict.fromkeys(filter(None, [*longer[: MOST_SIMILAR - 1], nearest(" ".join(words), known)]))
    return [town.names[known[one]] for one in found]
