"""The names of a town's places and areas, to look up what a question calls a place."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from lore.nearby.town import Town
from lore.places.place import plain_name
from lore.places.walk import haversine
from lore.support.nearest import nearest

MAX_WORDS = 12
"""Of a name that is looked up. Each Han character counts as a word."""
MOST_SIMILAR = 3


class Named(NamedTuple):
    """row: of the nearest place with the name. others: how many more places have it."""

    row: int
    others: int


class Gazetteer:
    """names: plain names by row of the town; "" for a post or event, which is no place to be near."""

    def __init__(self, town: Town):
        self._town = town
        kinds = zip(town.names, town.kinds, strict=True)
        self.names = [plain_name(name) if kind in ("place", "area") else "" for name, kind in kinds]

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        rows = defaultdict(list)
        for row, name in enumerate(self.names):
            if name:
                rows[name].append(row)
        return dict(rows)

    @cached_property
    def _by_start(self) -> dict[str, list[str]]:
        """Plain names by the first two letters of each of their words."""
        starts = defaultdict(list)
        for name in self._rows:
            for start in {word[:2] for word in name.split()}:
                starts[start].append(name)
        return dict(starts)

    def find(self, name: str, lat: float, lon: float) -> Named | None:
        """The place or area with a plain name, the nearest to a position if there are several."""
        rows = self._rows.get(name)
        if not rows:
            return None
        distances = haversine(lat, lon, self._town.lats[rows], self._town.lons[rows])
        return Named(rows[int(np.argmin(distances))], len(rows) - 1)

    def similar(self, name: str) -> list[str]:
        """At most MOST_SIMILAR names of the town: the shortest that hold all words of a name, then the one spelled most like it."""
        plain = plain_name(name)
        words = plain.split()
        known = dict.fromkeys(one for word in words for one in self._by_start.get(word[:2], []))
        longer = sorted((one for one in known if set(words) <= set(one.split())), key=len)
        found = dict.fromkeys(filter(None, [*longer[: MOST_SIMILAR - 1], nearest(plain, known)]))
        return [self._town.names[self._rows[one][0]] for one in found]


_OPEN: WeakKeyDictionary[Town, Gazetteer] = WeakKeyDictionary()


def gazetteer(town: Town) -> Gazetteer:
    """The names of an open town, read once."""
    if town not in _OPEN:
        _OPEN[town] = Gazetteer(town)
    return _OPEN[town]
