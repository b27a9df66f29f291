"""Retrieval of real places: Chicago and Washington from OpenStreetMap, asked in words that the relations do not hold.

    python benchmarks/nearby_places.py $LORE_DATA/osm_poi --encoder FOLDER [--save fusion.json]
    python benchmarks/nearby_places.py --speed

--encoder: all-MiniLM-L6-v2 or another sentence encoder. Queries are the wordings of nearby_places.yaml at centers that lie at a
place. Half of the wordings and half of the neighborhoods (cells of 0.02 degrees) develop: the threshold of the linker and the learned
fusion come from them. The other halves measure. A center has at least one relevant place within 15 minutes. Half of Chicago's queries
ask what is open at a time of the week.

A place is relevant if its categories and tags match the key, it lies within the circle, and it is not known to be closed. The layers
see the words and never the key. P@4: relevant places among the first 4, out of 4. NDCG@4: against the best order of the circle. STR:
share of the shown places within the circle and not known to be closed; `known`: the same over shown places with known hours in
queries with a time. A query of a layer that shows nothing has no STR. Intervals are over wordings, because centers of one wording
are alike. Names are those of rows of the town, so that none is made up.
"""

import argparse
import csv
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import bm25s
import numpy as np
import yaml

from lore.codec.tokenize import content_terms
from lore.eval.measures.bootstrap import Estimate, mean_estimate
from lore.nearby.fusion import DEPTH, LearnedFusion, evidence, fuse
from lore.nearby.graph import Graph, Linker, Relations, load_relations
from lore.nearby.intent import Intent, Need
from lore.nearby.place import Place
from lore.nearby.retrieval import Reach
from lore.nearby.town import Town, write_town
from lore.nearby.vectors import Encode, Vectors, hashed_words, place_text, sentence_encoder
from lore.support.text import normalize

CITIES = {"Chicago": "Chicago-2020.csv", "Washington": "DC-2017.csv"}
MINUTES, METRES_A_MINUTE, WINDING = 15.0, 80.0, 1.3
CENTERS, CELL, SHOWN = 6, 0.02, 4
TAG = re.compile(r'"([^"\\]*)"=>"([^"\\]*)"')


@dataclass(frozen=True)
class Query:
    city: str
    key: str
    wording: str
    develops: bool
    intent: Intent
    reach: Reach
    relevant: frozenset[int]
    """Rows, whatever the hours."""


@dataclass
class City:
    town: Town
    places: list[Place]
    everywhere: Reach
    hours: dict[int, object] = field(default_factory=dict)
    """Parsed, by row."""

    def state(self, row: int, when: datetime | None) -> str:
        if when is None or row not in self.hours:
            return "unknown"
        return self.hours[row].state(when)


def read_places(path: Path) -> Iterator[Place]:
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            tags = dict(TAG.findall(row.get("other_tags", "")))
            kind = tags.get("amenity") or row["fclass"].strip()
            classes = [f"amenity={kind}"] if kind else []
            classes += [f"{key}={tags[key]}" for key in ("shop", "leisure", "tourism") if key in tags]
            lat, lon = float(row["lat"]), float(row["lon"])
            yield Place(row["osm_id"], row["name"], lat, lon, classes=classes, tags=tags, hours=tags.get("opening_hours"))


def open_city(path: Path, file: Path, encode: Encode, relations: Relations) -> City:
    from opening_hours import OpeningHours

    if not path.exists():
        write_town(path, read_places(file), encode=lambda some: encode([place_text(place, relations) for place in some]))
    town = Town.open(path)
    places = list(town.stream())
    hours = {}
    for row, place in enumerate(places):
        if place.hours:
            try:
                hours[row] = OpeningHours(place.hours)
            except Exception:  # noqa: BLE001 - ParserError is no public class
                continue
    size = len(places)
    return City(town, places, Reach(np.arange(size), np.zeros(size), np.zeros(size)), hours)


def make_queries(city: City, name: str, keys: list[dict], seed: int = 0) -> list[Query]:
    rng, found = np.random.default_rng(seed), []
    for key in keys:
        if name not in key.get("cities", CITIES):
            continue
        rows = [row for row, place in enumerate(city.places) if is_relevant(place, key)]
        if len(rows) < 2:
            continue
        for number, wording in enumerate(key["wordings"]):
            develops = number < len(key["wordings"]) // 2
            centers = 0
            for _ in range(200):
                middle = city.places[rng.integers(len(city.places))]
                cell = (int(middle.lat // CELL), int(middle.lon // CELL))
                if (sum(cell) % 2 == 0) != develops:  # a chessboard of cells
                    continue
                near, metres = city.town.near(middle.lat, middle.lon, MINUTES * METRES_A_MINUTE / WINDING)
                relevant = frozenset(rows).intersection(near.tolist())
                when = None
                if name == "Chicago" and centers % 2:
                    when = datetime(2026, 1, 5) + timedelta(hours=int(rng.integers(7 * 24)))
                if not any(city.state(row, when) != "closed" for row in relevant):
                    continue
                walked = metres * WINDING
                intent = Intent(wording, middle.lat, middle.lon, needs=(Need(wording),), when=when, open_then=when is not None)
                found.append(Query(name, key["key"], wording, develops, intent, Reach(near, walked, walked / METRES_A_MINUTE), relevant))
                centers += 1
                if centers == CENTERS:
                    break
    return found


def is_relevant(place: Place, key: dict) -> bool:
    marks = set(place.classes) | {f"{name}={value.strip()}" for name, text in place.tags.items() for value in text.split(";")}
    return not marks.isdisjoint(key["is"]) and ("with" not in key or not marks.isdisjoint(key["with"]))


def check_held_out(keys: list[dict], relations: Relations) -> None:
    phrases = [normalize(phrase) for need in relations.needs for phrase in need.en]
    known = [
        f"{wording!r} holds {phrase!r}"
        for key in keys
        for wording in key["wordings"]
        for phrase in phrases
        if re.search(rf"\b{re.escape(phrase)}\b", normalize(wording))
    ]
    if known:
        raise SystemExit("Wordings that the relations know:\n" + "\n".join(known))


@dataclass(frozen=True)
class Shown:
    """Of one query: P@4, NDCG@4, STR, and STR over known hours; nan where undefined."""

    precision: float
    ndcg: float
    str: float
    known: float


def judge(city: City, query: Query, rows: list[int]) -> Shown:
    inside, when = set(query.reach.rows.tolist()), query.intent.when
    states = [city.state(row, when) for row in rows]
    fits = [row in inside and state != "closed" for row, state in zip(rows, states, strict=True)]
    gains = np.array([row in query.relevant and fit for row, fit in zip(rows, fits, strict=True)], dtype=float)
    best = min(SHOWN, sum(city.state(row, when) != "closed" for row in query.relevant))
    discount = 1 / np.log2(np.arange(SHOWN) + 2)
    known = [row in inside and state == "open" for row, state in zip(rows, states, strict=True) if state != "unknown"]
    return Shown(
        gains.sum() / SHOWN,
        float(gains @ discount[: len(gains)] / discount[:best].sum()),
        float(np.mean(fits)) if fits else float("nan"),
        float(np.mean(known)) if known else float("nan"),
    )


class Systems:
    """Every row of the table: from a query to the rows shown."""

    def __init__(self, city: City, relations: Relations, encode: Encode, linker: Linker):
        self.city, self.town = city, city.town
        self.graph = Graph(city.town, relations, linker)
        self.vector = Vectors(city.town.vectors, encode, relations)
        self.hashed = Vectors(hashed_words([place_text(one, relations) for one in city.places]), hashed_words, relations)
        self.words = bm25s.BM25()
        self.words.index([content_terms(place_text(place, relations)) for place in city.places], show_progress=False)

    def fused(self, query: Query, layers: list, reach: Reach, learned: LearnedFusion | None = None) -> list[int]:
        hits = {layer.name: layer.retrieve(query.intent, reach, DEPTH) for layer in layers}
        return self.open_only(query, [row for row, _ in fuse(self.town, reach, hits, learned)])

    def open_only(self, query: Query, rows: list[int]) -> list[int]:
        return [row for row in rows if self.city.state(row, query.intent.when) != "closed"][:SHOWN]

    def bm25(self, query: Query) -> list[int]:
        terms = [term for term in content_terms(query.wording) if term in self.words.vocab_dict]
        return np.argsort(-self.words.get_scores(terms), kind="stable")[:SHOWN].tolist() if terms else []

    def post_filter(self, query: Query) -> list[int]:
        inside = set(query.reach.rows.tolist())
        hits = self.vector.retrieve(query.intent, self.city.everywhere, DEPTH)
        return self.open_only(query, [hit.row for hit in hits if hit.row in inside])

    def all(self, learned: LearnedFusion | None) -> dict[str, Callable[[Query], list[int]]]:
        graph, vector, everywhere = self.graph, self.vector, self.city.everywhere
        found = {
            "full": lambda one: self.fused(one, [graph, vector], one.reach),
            "full, learned": lambda one: self.fused(one, [graph, vector], one.reach, learned),
            "without vector": lambda one: self.fused(one, [graph], one.reach),
            "without graph": lambda one: self.fused(one, [vector], one.reach),
            "without geo": lambda one: self.fused(one, [graph, vector], everywhere),
            "graph alone": lambda one: self.fused(one, [graph], everywhere),
            "vector alone": lambda one: self.fused(one, [vector], everywhere),
            "geo alone (nearest first)": lambda one: self.open_only(one, one.reach.rows.tolist()),
            "BM25 over the city": self.bm25,
            "vector, then the circle": self.post_filter,
            "full, hashed words": lambda one: self.fused(one, [graph, self.hashed], one.reach),
            "hashed words in the circle": lambda one: self.fused(one, [self.hashed], one.reach),
            "best possible": lambda one: self.open_only(one, sorted(one.relevant)),
        }
        if learned is None:
            del found["full, learned"]
        return found
