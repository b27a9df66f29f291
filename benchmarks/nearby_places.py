"""Retrieval of real places: Chicago and Washington from OpenStreetMap, asked in words that the relations do not hold.

    python benchmarks/nearby_places.py $LORE_DATA/osm_poi --encoder FOLDER [--save fusion.json]
    python benchmarks/nearby_places.py --speed

--encoder: all-MiniLM-L6-v2 or another sentence encoder. Queries are the wordings of nearby_places.yaml at centers that lie at a
place. Half of the wordings and half of the neighborhoods (cells of 0.02 degrees) develop: the linker's constants and the learned
fusion come from them. The other halves measure. A center has at least one relevant place within 15 minutes. One in three of
Chicago's queries asks what is open at a time of the week.

A place is relevant if its categories and tags match the key, it lies within the circle, and it is not known to be closed. The
layers see the words and never the key. P@4: relevant places among the first 4, out of 4. NDCG@4: against the best order of the
circle. STR: share of the shown places within the circle and not known to be closed; the last column, the same over shown places
with known hours in queries with a time. A query for which nothing is shown has no STR. Intervals are over wordings, because centers
of one wording are alike. Names are those of rows of the town, so that none is made up.
"""

import argparse
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from pathlib import Path

import bm25s
import numpy as np
import yaml

from lore.codec.tokenize import content_terms
from lore.eval.measures.bootstrap import Estimate, mean_estimate
from lore.nearby.fusion import DEPTH, LearnedFusion, evidence, fuse
from lore.nearby.graph import Graph, Linker, Relations, load_relations
from lore.nearby.retrieval import Reach
from lore.nearby.sources import index_town
from lore.nearby.streets import within
from lore.nearby.town import Town
from lore.nearby.vectors import Encode, Vectors, hashed_words, place_text, sentence_encoder
from lore.places.hours import opening
from lore.places.place import Place
from lore.places.question import WALK_MINUTES, Intent, Need
from lore.support.text import normalize

CITIES = {"Chicago": "Chicago-2020.csv", "Washington": "DC-2017.csv"}
CELL, SHOWN = 0.02, 4


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


@dataclass(frozen=True)
class City:
    town: Town
    places: list[Place]
    everywhere: Reach

    def state(self, row: int, when: datetime | None) -> str:
        place = self.places[row]
        return "unknown" if when is None else opening(place.hours, place.lat, place.lon, when, "US", "America/Chicago").state


def open_city(path: Path, file: Path, encode: Encode, relations: Relations) -> City:
    if not path.exists():
        index_town([file], path, country="US", encode=lambda some: encode([place_text(place, relations) for place in some]))
    town = Town.open(path)
    return City(town, list(town.stream()), Reach(np.arange(len(town)), np.zeros(len(town)), np.zeros(len(town))))


def make_queries(city: City, name: str, keys: list[dict], most_centers: int, seed: int = 0) -> list[Query]:
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
                reach = within(city.town, middle.lat, middle.lon, WALK_MINUTES)
                relevant = frozenset(rows).intersection(reach.rows.tolist())
                when = None
                if name == "Chicago" and centers % 2:
                    when = datetime(2026, 1, 5) + timedelta(hours=int(rng.integers(7 * 24)))
                if not any(city.state(row, when) != "closed" for row in relevant):
                    continue
                intent = Intent(wording, middle.lat, middle.lon, needs=(Need(wording),), when=when, open_then=when is not None)
                found.append(Query(name, key["key"], wording, develops, intent, reach, relevant))
                centers += 1
                if centers == most_centers:
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
        return self.open_only(query, [row for row, _ in fuse(reach, hits, learned)])

    def open_only(self, query: Query, rows: list[int]) -> list[int]:
        return [row for row in rows if self.city.state(row, query.intent.when) != "closed"][:SHOWN]

    def bm25(self, query: Query) -> list[int]:
        terms = [term for term in content_terms(query.wording) if term in self.words.vocab_dict]
        return np.argsort(-self.words.get_scores(terms), kind="stable")[:SHOWN].tolist() if terms else []

    def post_filter(self, query: Query) -> list[int]:
        inside = set(query.reach.rows.tolist())
        hits = self.vector.retrieve(query.intent, self.city.everywhere, DEPTH)
        return self.open_only(query, [hit.row for hit in hits if hit.row in inside])

    def all(self, learned: LearnedFusion) -> dict[str, Callable[[Query], list[int]]]:
        graph, vector, everywhere = self.graph, self.vector, self.city.everywhere
        return {
            "full": lambda one: self.fused(one, [graph, vector], one.reach, learned),
            "full, reciprocal ranks": lambda one: self.fused(one, [graph, vector], one.reach),
            "without vector": lambda one: self.fused(one, [graph], one.reach),
            "without graph": lambda one: self.fused(one, [vector], one.reach),
            "without geo": lambda one: self.fused(one, [graph, vector], everywhere, learned),
            "graph alone": lambda one: self.fused(one, [graph], everywhere),
            "vector alone": lambda one: self.fused(one, [vector], everywhere),
            "geo alone (nearest first)": lambda one: self.open_only(one, one.reach.rows.tolist()),
            "BM25 over the city": self.bm25,
            "vector, then the circle": self.post_filter,
            "full, hashed words": lambda one: self.fused(one, [graph, self.hashed], one.reach),
            "hashed words in the circle": lambda one: self.fused(one, [self.hashed], one.reach),
            "best possible": lambda one: self.open_only(one, sorted(one.relevant)),
        }


def fit(queries: list[Query], systems: dict[str, Systems]) -> LearnedFusion:
    """On the lists of the developing queries."""
    features, relevant = [], []
    for query in queries:
        one = systems[query.city]
        hits = {layer.name: layer.retrieve(query.intent, query.reach, DEPTH) for layer in (one.graph, one.vector)}
        rows = [row for row, _ in fuse(query.reach, hits)]
        is_shown = np.array([one.city.state(row, query.intent.when) != "closed" for row in rows])
        features.append(evidence(hits, rows)[is_shown])
        relevant.append(np.array([row in query.relevant for row in rows])[is_shown])
    return LearnedFusion.fit(np.concatenate(features), np.concatenate(relevant))


def speed(size: int = 200_000, dimension: int = 384) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((size, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    layer = Vectors(vectors, lambda texts: vectors[:1], load_relations())
    for reached in (1_000, 5_000, 20_000, size):
        rows = np.sort(rng.permutation(size)[:reached])
        reach, seconds = Reach(rows, np.zeros(reached), np.zeros(reached)), []
        for _ in range(20):
            began = time.process_time()
            layer.retrieve(Intent("words", 0, 0), reach, DEPTH)
            seconds.append(time.process_time() - began)
        print(f"{reached:,} of {size:,} rows within reach: median {1000 * np.median(seconds):.1f} ms of processor time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="osm_poi")
    parser.add_argument("--encoder", help="folder of a sentence encoder")
    parser.add_argument("--save", type=Path, help="where the learned fusion goes")
    parser.add_argument("--speed", action="store_true", help="only measure dot products over 200,000 rows")
    parser.add_argument("--centers", type=int, default=3, help="per wording and city")
    arguments = parser.parse_args()
    if arguments.speed:
        return speed()
    began, work = time.perf_counter(), Path(os.environ.get("LORE_RUNS", "runs")) / "nearby_places"
    work.mkdir(parents=True, exist_ok=True)
    relations, keys = load_relations(), yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    check_held_out(keys, relations)
    encode = kept(sentence_encoder(arguments.encoder), work / "texts.npz")
    linker, systems, queries = Linker(relations, encode), {}, []
    for name, file in CITIES.items():
        city = open_city(work / f"{name}.db", arguments.folder / file, encode, relations)
        systems[name] = Systems(city, relations, encode, linker)
        queries += make_queries(city, name, keys, arguments.centers)
    develop, measure = ([one for one in queries if one.develops is side] for side in (True, False))
    learned = fit(develop, systems)
    encode.save()
    if arguments.save:
        learned.save(arguments.save)
    print(f"{time.perf_counter() - began:.0f} s until {len(develop):,} queries had developed; {len(measure):,} measure")
    print("learned:", dict(zip(learned.features, np.round(np.array(learned.weight) / learned.scale, 2).tolist(), strict=True)))

    groups = np.unique([one.wording for one in measure], return_inverse=True)[1]
    shown = {}
    for name in systems["Chicago"].all(learned):
        run = {city: one.all(learned)[name] for city, one in systems.items()}
        took = time.perf_counter()
        found = [run[query.city](query) for query in measure]
        milliseconds = 1000 * (time.perf_counter() - took) / len(measure)
        shown[name] = [judge(systems[query.city].city, query, rows) for query, rows in zip(measure, found, strict=True)]
        print(f"| {name} | {' | '.join(map(str, summary(shown[name], groups).values()))} | {milliseconds:.1f} |", flush=True)
    timed = sum(query.intent.when is not None for query in measure)
    known = sum(not np.isnan(one.known) for one in shown["full"])
    print(f"{timed} queries with a time; full shows a place with known hours in {known} of them\n\nFull, minus:")
    for name, those in shown.items():
        parts = [
            estimate_of([getattr(full, part) - getattr(one, part) for full, one in zip(shown["full"], those, strict=True)], groups)
            for part in ("precision", "ndcg", "str")
        ]
        print(f"| {name} | {' | '.join(map(str, parts))} |")
    for city in CITIES:
        mask = [query.city == city for query in measure]
        for name in ("full", "without graph", "without vector", "best possible"):
            those = [one for one, here in zip(shown[name], mask, strict=True) if here]
            print(f"| {city}: {name} | {' | '.join(map(str, summary(those, groups[mask]).values()))} |")
    print(f"{time.perf_counter() - began:.0f} s")


def summary(shown: list[Shown], groups: np.ndarray) -> dict[str, Estimate]:
    return {one.name: estimate_of([getattr(each, one.name) for each in shown], groups) for one in fields(Shown)}


def estimate_of(values: list[float], groups: np.ndarray) -> "Percent":
    return Percent(mean_estimate(np.array(values), groups))


@dataclass(frozen=True)
class Percent:
    estimate: Estimate

    def __str__(self) -> str:
        one = self.estimate
        return f"{100 * one.value:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"


class kept:  # noqa: N801 - used as a function
    """An encoder that keeps the vectors of single texts in a file, so that a rerun encodes nothing."""

    def __init__(self, encode: Encode, path: Path):
        self._encode, self._path = encode, path
        self._known = {}
        if path.exists():
            with np.load(path) as file:
                self._known = dict(zip(file["texts"].tolist(), file["vectors"], strict=True))

    def __call__(self, texts: list[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._encode(new), strict=True))
        return np.stack([self._known[text] for text in texts])

    def save(self) -> None:
        np.savez(self._path, texts=list(self._known), vectors=np.stack(list(self._known.values())))


if __name__ == "__main__":
    main()
