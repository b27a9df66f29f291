"""The graph layer: from the needs of a question over categories, tags, events and areas to the places within reach.

    words -> need                        by Need.key, else to the needs whose phrases mean about the same (Linker), each weighted
    need -> category, tag                its weight
    category -> narrower category        x decay
    category, tag -> place               1
    event, post -> the place it is about x decay; not of an event that is over
    area -> a place that lies in it      x decay, only beside another need of the question: "a cafe in a park"

The relations are data: relations.yaml, or a file of the user. The strength of a need at a place is 1 - product(1 - weight) over the
paths that lead there, and what speaks against the need is taken off. The score of a place is the sum over the needs; a condition
("with wifi") counts half, because most places do not say, and lets in no place that meets none of the other needs.

Left out: a learned graph embedding. The graph has a few hundred edges above the places, all of them readable, and every hit names
its path.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from lore.config.sections import Conflict, StrictModel
from lore.config.validation import validate
from lore.config.yaml_text import read_recipe_text
from lore.nearby.retrieval import Reach
from lore.nearby.town import Town
from lore.places.place import parts
from lore.places.question import Hit, Intent, Need
from lore.support.errors import LoreError
from lore.support.nearest import nearest
from lore.support.text import normalize, printable

RELATIONS = Path(__file__).with_name("relations.yaml")
CONDITION_WEIGHT, MEETS = 0.5, 0.5
"""Of a condition in the score; the strength from which on a place has what is excluded."""
MOST_AREAS = 100
LINKS, TEMPERATURE, CONDITION_LIKENESS = 10, 0.05, 0.35
"""Of Linker: chosen on the developing half of benchmarks/nearby_places.py."""
Encode = Callable[[Sequence[str]], np.ndarray]
"""From n texts to unit vectors (n, dimension)."""
Phrase = Annotated[str, Field(min_length=1, max_length=100)]


class Category(StrictModel):
    en: Phrase
    zh: Phrase
    broader: list[str] = []


class NeedRelations(StrictModel):
    """See the head of relations.yaml."""

    key: Phrase
    en: list[Phrase] = Field(min_length=1)
    zh: list[Phrase] = Field(min_length=1)
    classes: dict[str, Annotated[float, Field(gt=0, le=1)]] = {}
    tags: dict[str, Annotated[float, Field(ge=-1, le=1)]] = {}
    condition: bool = False


class Relations(StrictModel):
    decay: float = Field(0.8, gt=0, lt=1)
    categories: dict[str, Category]
    needs: list[NeedRelations]

    def conflicts(self) -> Iterator[Conflict]:
        known: dict[tuple[str, str], str] = {}
        for at, need in enumerate(self.needs):
            if self.by_key[need.key] is not need:
                yield Conflict((f"needs.{at}.key",), f"{need.key} twice", "each key once")
            if not (need.classes or need.tags):
                yield Conflict((f"needs.{at}",), f"{need.key} without classes and tags", "what meets the need")
            for mark in need.classes.keys() - self.categories.keys():
                yield Conflict((f"needs.{at}.classes",), mark, "a key of categories", nearest(mark, self.categories))
            for mark in need.tags:
                if not all(mark.partition("=")):
                    yield Conflict((f"needs.{at}.tags",), mark, "key=value")
            for language in ("en", "zh"):
                for phrase in getattr(need, language):
                    if (other := known.setdefault((language, normalize(phrase)), need.key)) != need.key:
                        yield Conflict((f"needs.{at}.{language}",), f"'{phrase}', also of {other}", "a phrase of one need")
        for name, category in self.categories.items():
            for broader in category.broader:
                if broader not in self.categories:
                    at = (f"categories.{name}.broader",)
                    yield Conflict(at, broader, "a key of categories", nearest(broader, self.categories))

    @cached_property
    def by_key(self) -> dict[str, NeedRelations]:
        return {need.key: need for need in self.needs}

    @cached_property
    def narrower(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for name, category in self.categories.items():
            for broader in category.broader:
                found[broader].append(name)
        return dict(found)

    @cached_property
    def by_word(self) -> dict[str, str]:
        """Plain words of a table, such as cafe, to categories."""
        words = [(word, mark) for mark, one in self.categories.items() for word in (mark.partition("=")[2], one.en, one.zh) if word]
        return {normalize(word.replace("_", " ")): mark for word, mark in reversed(words)}

    def need(self, key: str) -> NeedRelations:
        if key not in self.by_key:
            close = nearest(key, self.by_key)
            hint = f" Nearest: {close}." if close else ""
            raise LoreError(f"'{printable(key)}' is no need of the relations, which know {len(self.needs)} needs.{hint}")
        return self.by_key[key]

    def readable(self, mark: str, language: str = "en") -> str:
        """What people call a category or tag."""
        if mark in self.categories:
            return getattr(self.categories[mark], language)
        key, _, value = mark.partition("=")
        return printable(f"{key}: {value}" if value else key).replace("_", " ")

    def paths(self, need: NeedRelations) -> dict[str, tuple[float, tuple[str, ...]]]:
        """Category or tag that a place can have -> strength, and the categories on the way to it, the best way only."""
        found: dict[str, tuple[float, tuple[str, ...]]] = {}
        work = [(weight, (mark,)) for mark, weight in need.classes.items()]
        while work:
            weight, path = work.pop()
            if found.get(path[-1], (0.0,))[0] < weight:
                found[path[-1]] = weight, path
                work += [(weight * self.decay, (*path, name)) for name in self.narrower.get(path[-1], ())]
        return found | {tag: (weight, (tag,)) for tag, weight in need.tags.items()}


def load_relations(path: str | Path = RELATIONS) -> Relations:
    """Raises LoreError with all problems of the file."""
    return validate(read_recipe_text(path), Relations)


class Linker:
    """Finds the needs that words mean where the grammar found no phrase of the relations in them."""

    def __init__(self, relations: Relations, encode: Encode):
        phrases = [(need, phrase) for need in relations.needs for phrase in need.en]
        self._needs, self._encode = [need for need, _ in phrases], encode
        self._vectors = encode([phrase for _, phrase in phrases])
        self.link = lru_cache(maxsize=256)(self._link)

    def _link(self, text: str) -> list[tuple[str, float]]:
        """(key, weight): the LINKS needs whose phrases are most like the text, by a softmax over their likeness, because the first
        one is often a near miss; and the best condition, if it is alike enough, by its likeness."""
        likeness = self._vectors @ self._encode([text])[0]
        best: dict[str, tuple[NeedRelations, float]] = {}
        for at in np.argsort(-likeness).tolist():
            best.setdefault(self._needs[at].key, (self._needs[at], float(likeness[at])))
        kinds = [(key, alike) for key, (need, alike) in best.items() if not need.condition][:LINKS]
        conditions = [(key, alike) for key, (need, alike) in best.items() if need.condition and alike > CONDITION_LIKENESS][:1]
        weights = np.exp(np.array([alike for _, alike in kinds]) / TEMPERATURE)
        return [(key, float(weight)) for (key, _), weight in zip(kinds, weights / weights.sum(), strict=True)] + conditions


@dataclass(frozen=True)
class _Met:
    """What meets a need. rows (m,): of the town, once for each way there. strengths (m,): -1 to 1. ways (m,): number of the
    categories on the way, in `categories`. stories (m,): row of the event or post on the way; -1: none."""

    rows: np.ndarray
    strengths: np.ndarray
    ways: np.ndarray
    stories: np.ndarray
    categories: list[tuple[str, ...]]


@dataclass(frozen=True)
class _Found:
    """One need at the n places within reach that meet any need. strengths (n,): -1 to 1. entries (n,): number of the way in `met`
    that counts; -1: none. areas (n,): row of the area that a place inherits from; -1: none."""

    need: NeedRelations
    weight: float
    met: _Met
    strengths: np.ndarray
    entries: np.ndarray
    areas: np.ndarray


class Graph:
    """The layer over one town. linker: for needs without a key; None: the layer says nothing about them."""

    name = "graph"

    def __init__(self, town: Town, relations: Relations, linker: Linker | None = None):
        self._town, self.relations, self._linker = town, relations, linker
        self._met = lru_cache(maxsize=32)(self._meeting)
        self._is_area = np.array([kind == "area" for kind in town.kinds], dtype=bool)
        others = [row for row, kind in enumerate(town.kinds) if kind in ("event", "post")]
        stories = town.places(others)
        targets = [-1 if one.about is None else town.row(one.about) for one in stories]
        self._about = {row: target for row, target in zip(others, targets, strict=True) if target is not None and target >= 0}
        self._ends = {row: one.ends or one.starts for row, one in zip(others, stories, strict=True) if one.ends or one.starts}

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        """Category or tag -> rows of the town that have it. Only what the relations ask for."""
        found: dict[str, list[int]] = defaultdict(list)
        asked = {tag for need in self.relations.needs for tag in need.tags}
        keys = {tag.partition("=")[0] for tag in asked}
        for row, classes in enumerate(self._town.classes):
            for name in classes:
                found[name if "=" in name else self.relations.by_word.get(normalize(name), name)].append(row)
        for row, tags in self._town.tags():
            for key in keys.intersection(tags):
                marks = {f"{key}={value.strip()}" for value in tags[key].split(";")}
                marks |= set() if f"{key}=no" in marks else {f"{key}=*"}
                for mark in marks & asked:
                    found[mark].append(row)
        return {mark: np.array(rows, dtype=np.int32) for mark, rows in found.items()}

    def allowed(self, intent: Intent, reach: Reach) -> Reach:
        """Reach without the places that have what the question excludes, and without events that are over at intent.when."""
        out = np.zeros(len(self._town), dtype=bool)
        for need in intent.needs:
            if need.excluded:
                for key, _ in self._keys(need)[:1]:
                    met = self._met(key)
                    out[met.rows[(met.strengths >= MEETS) & (met.stories < 0)]] = True
        out[[row for row in self._ends if self._is_over(row, intent.when)]] = True
        keep = ~out[reach.rows]
        return Reach(reach.rows[keep], reach.metres[keep], reach.minutes[keep])

    def retrieve(self, intent: Intent, reach: Reach, k: int) -> list[Hit]:
        keys = [one for need in intent.needs if not need.excluded for one in self._keys(need)]
        is_met = np.zeros(len(self._town), dtype=bool)
        for key, _ in keys:
            is_met[self._met(key).rows] = True
        rows = reach.rows[is_met[reach.rows]]
        if not len(rows):
            return []
        position = np.full(len(self._town), -1, dtype=np.int32)
        position[rows] = np.arange(len(rows))
        found = [self._within(key, weight, position, len(rows), intent.when) for key, weight in keys]
        self._inherit(found, rows)
        main = [one for one in found if not one.need.condition] or found
        score = sum(one.weight * (CONDITION_WEIGHT if one.need.condition else 1.0) * one.strengths for one in found)
        score = np.where(np.max([one.strengths for one in main], axis=0) > 0, score, 0.0)
        best = np.argsort(-score, kind="stable")[:k]  # of equal ones the nearest first
        best = best[score[best] > 0].tolist()
        return [Hit(int(rows[at]), float(score[at]), self._why(found, at, intent.language)) for at in best]

    def _keys(self, need: Need) -> list[tuple[str, float]]:
        if need.key is not None:
            return [(need.key, 1.0)]
        return [] if self._linker is None else self._linker.link(need.text)

    def _is_over(self, row: int, when: datetime | None) -> bool:
        return when is not None and row in self._ends and self._ends[row] < when

    def _meeting(self, key: str) -> _Met:
        paths = self.relations.paths(self.relations.need(key))
        left, most, way = np.ones(len(self._town)), np.zeros(len(self._town)), np.zeros(len(self._town), dtype=np.int16)
        against = np.zeros(len(self._town))
        for at, (mark, (weight, _)) in enumerate(paths.items()):
            rows = self._rows.get(mark, np.zeros(0, dtype=np.int32))
            if weight < 0:
                against[rows] = np.minimum(against[rows], weight)
                continue
            left[rows] *= 1 - weight
            stronger = rows[weight > most[rows]]
            most[stronger], way[stronger] = weight, at
        strengths = np.clip(1 - left + against, -1, 1)
        rows = np.flatnonzero(strengths)
        stories = np.array([row for row in rows.tolist() if row in self._about and strengths[row] > 0], dtype=np.int64)
        targets = np.array([self._about[row] for row in stories.tolist()], dtype=np.int64)
        return _Met(
            rows=np.concatenate([rows, targets]),
            strengths=np.concatenate([strengths[rows], self.relations.decay * strengths[stories]]),
            ways=np.concatenate([way[rows], way[stories]]),
            stories=np.concatenate([np.full(len(rows), -1), stories]),
            categories=[categories for _, categories in paths.values()],
        )

    def _within(self, key: str, weight: float, position: np.ndarray, reached: int, when: datetime | None) -> _Found:
        met = self._met(key)
        keep = position[met.rows] >= 0
        for at in np.flatnonzero(keep & (met.stories >= 0)).tolist():
            keep[at] = not self._is_over(int(met.stories[at]), when)
        kept = np.flatnonzero(keep)
        kept = kept[np.argsort(met.strengths[kept], kind="stable")]  # of several ways to a place the last one, the best, stays
        strengths, entries = np.zeros(reached), np.full(reached, -1)
        strengths[position[met.rows[kept]]] = met.strengths[kept]
        entries[position[met.rows[kept]]] = kept
        return _Found(self.relations.need(key), weight, met, strengths, entries, np.full(reached, -1))

    def _inherit(self, found: list[_Found], rows: np.ndarray) -> None:
        """Gives a need that an area meets to the places in it that meet another need."""
        is_area = self._is_area[rows]
        met = [one.strengths > 0 for one in found]
        for at, one in enumerate(found):
            beside = [is_met for other, is_met in enumerate(met) if other != at]
            areas = np.flatnonzero(met[at] & is_area)[:MOST_AREAS]
            if not beside or not len(areas):
                continue
            inside = np.flatnonzero(np.any(beside, axis=0) & ~met[at] & ~is_area)
            lats, lons = self._town.lats[rows[inside]], self._town.lons[rows[inside]]
            for area, place in zip(areas.tolist(), self._town.places(rows[areas]), strict=True):
                held = inside[_holds(place.outline or [], lats, lons)]
                one.strengths[held] = self.relations.decay * one.strengths[area]
                one.entries[held], one.areas[held] = one.entries[area], rows[area]

    def _why(self, found: list[_Found], at: int, language: str) -> str:
        """The paths to the place at a position of reach: `quiet to work -> library; live music -> concert -> Jazz Night`."""
        reasons = []
        for one in found:
            if one.strengths[at] > 0:
                entry = one.entries[at]
                names = [getattr(one.need, language)[0]]
                names += [self.relations.readable(mark, language) for mark in one.met.categories[one.met.ways[entry]]]
                via = [row for row in (one.met.stories[entry], one.areas[at]) if row >= 0]
                names += [printable(self._town.names[row]) for row in via]
                reasons.append(" -> ".join(name for name, _ in groupby(names)))
        return "; ".join(reasons)


def _holds(outline: list[tuple[float, float]], lats: np.ndarray, lons: np.ndarray) -> np.ndarray:
    """Whether points (n,) lie in the rings of an outline, by the even-odd rule, also across the date line. None around a pole."""
    inside = np.zeros(len(lats), dtype=bool)
    for ring in parts(outline):
        if ring[0] != ring[-1]:
            continue
        middle = ring[0][1]
        east_of = (lons - middle + 180) % 360 - 180
        for (south, west), (north, east) in pairwise((lat, (lon - middle + 180) % 360 - 180) for lat, lon in ring):
            if south != north:
                crosses = (south > lats) != (north > lats)
                inside ^= crosses & (east_of < west + (lats - south) / (north - south) * (east - west))
    return inside
