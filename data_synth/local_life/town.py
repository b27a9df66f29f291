"""The places of the made-up town: cafes, parks, concerts and their posts, in 16 areas, all drawn from a seed.

Hours come in the forms that OpenStreetMap has: over noon, overnight, with holidays, by the sun, missing, and unreadable. Left out
of a real town: streets, outlines, chains with many branches side by side, wrong tags. Never to be presented as a real town.
"""

from __future__ import annotations

import math
import random
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from lore.config.yaml_text import read_yaml
from lore.places.place import Place

LAT, LON = 41.10, -94.60
COUNTRY, TIMEZONE = "US", "America/Chicago"
SIDE_METRES, AREAS_A_SIDE = 500.0, 4
METRES_PER_DEGREE = 111_195.0
HELD_OUT_AREAS = 4
FIRST_DAY, DAYS = datetime(2026, 1, 1), 730
NO_HOURS, UNREADABLE, BRANDED, WITH_TEXT, WITH_POST, TAGGED = 0.08, 0.06, 0.6, 0.3, 0.15, 0.65


@cache
def lexicon() -> dict[str, Any]:
    """See lexicon.yaml."""
    return read_yaml(Path(__file__).with_name("lexicon.yaml"))


class MadeUpTown:
    """places: those of training areas and of held-out ones, by number. area_of: number of a place's area. held_out: areas that no
    training pair is in."""

    def __init__(self, seed: int = 0, places: int = 480):
        self.seed = seed
        self.areas = random.Random(f"{seed}/areas").sample(lexicon()["areas"], AREAS_A_SIDE**2)
        self.held_out = frozenset(random.Random(f"{seed}/held out").sample(range(AREAS_A_SIDE**2), HELD_OUT_AREAS))
        self.area_of = [number % AREAS_A_SIDE**2 for number in range(places)]
        self.places = [self._place(number) for number in range(places)]

    def point(self, area: int, north: float, east: float) -> tuple[float, float]:
        """Degrees of a point of an area. north, east: shares of its side, 0 to 1."""
        row, column = divmod(area, AREAS_A_SIDE)
        lat = LAT + SIDE_METRES * (row + north) / METRES_PER_DEGREE
        return round(lat, 6), round(LON + SIDE_METRES * (column + east) / METRES_PER_DEGREE / math.cos(math.radians(LAT)), 6)

    def rows(self) -> list[Place]:
        """Everything that `lore nearby index` reads: places and events, posts about some of them, and the areas."""
        rng, words = random.Random(f"{self.seed}/posts"), lexicon()
        posts = [
            Place(f"{one.place_id}-post", rng.choice(words["posts"]), one.lat, one.lon, "post", one.classes, about=one.place_id)
            for one in self.places
            if rng.random() < WITH_POST
        ]
        middles = {name: self.point(at, 0.5, 0.5) for at, name in enumerate(self.areas)}
        areas = [Place(name, name, *middle, "area", ["place=neighbourhood"]) for name, middle in middles.items()]
        return self.places + posts + areas

    def _place(self, number: int) -> Place:
        rng, words = random.Random(f"{self.seed}/place/{number}"), lexicon()
        kinds = words["kinds"]
        kind = rng.choices(list(kinds), [one["share"] for one in kinds.values()])[0]
        about = kinds[kind]
        lat, lon = self.point(self.area_of[number], rng.random(), rng.random())
        name = f"{rng.choice(words['first_names'])} {rng.choice(about['names'])}"
        tags = {key: rng.choice(words["tags"][key]) for key in about["tags"] if rng.random() < TAGGED}
        if about.get("brands") and rng.random() < BRANDED:
            brand = rng.choice(about["brands"])
            name, tags = rng.choice([brand, f"{brand} {self.areas[self.area_of[number]]}"]), {**tags, "brand": brand}
        place = Place(f"p{number}", name, lat, lon, classes=[kind], tags=tags)
        place.text = rng.choice(words["texts"]) if rng.random() < WITH_TEXT else ""
        form = rng.choice(about["hours"])
        if form == "event":
            place.kind = "event"
            place.starts = FIRST_DAY + timedelta(days=rng.randrange(DAYS), hours=rng.choice([18, 19, 20, 21]))
            place.ends = place.starts + timedelta(hours=rng.choice([2, 3, 5]))
        elif (draw := rng.random()) > NO_HOURS:
            place.hours = rng.choice(words["hours"]["unknown" if draw < NO_HOURS + UNREADABLE else form])
        return place
