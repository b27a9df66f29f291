"""A town in one SQLite file: places, posts and events with an R*Tree over their boxes, vectors by row, and a street graph.

    with Town.open("town.db") as town:
        rows, metres = town.near(41.88, -87.63, 1200)

Row numbers are those of the order in which places were written, from 0. Ids, names, kinds, coordinates, classes and hours are read
into memory at opening, and outlines as one array; tags, texts, vectors and streets when they are asked for. Times and memory of
towns of 500 to 200,000 places: benchmarks/nearby_speed.py.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import fields
from datetime import datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from lore.places.place import Place, plain_name
from lore.places.walk import EARTH_METRES, haversine
from lore.support.atomic_files import open_part, part_of, remove, replace_file
from lore.support.errors import LoreError

APPLICATION_ID = 0x4C4F5245  # "LORE", in the header of the file
VERSION = 2
METRES_PER_DEGREE = math.pi * EARTH_METRES / 180
CHUNK = 1024
GAP = (math.nan, math.nan)
"""Behind each part of an outline."""
NO_POINTS = np.empty((0, 2))
FLOAT32_DEGREES = 1e-4
"""More than the R*Tree, whose boxes are float32, rounds a coordinate by."""
WHOLE_TOWN_METRES = 10_000.0
"""Of a circle this large most rows are found: reading all of them is faster than asking the R*Tree."""
SCHEMA = """
create table meta (key text primary key, value text);
create table place (row integer primary key, place_id text not null unique, name text not null, kind text not null,
    lat real not null, lon real not null, classes text not null, hours text, tags text not null, text text not null,
    starts text, ends text, about text, plain text not null);
create index place_about on place (about) where about is not null;
create index place_plain on place (plain) where plain != '';
create virtual table name using fts5 (plain, content='', prefix='2 3 4');
create virtual table box using rtree (row, south, north, west, east);
create table vector (first_row integer primary key, value blob not null);
create table array (name text primary key, dtype text not null, value blob not null);
"""
COLUMNS = [one.name for one in fields(Place) if one.name != "outline"]
PLAIN_KINDS = ("place", "area")
"""What a question may call by its name. A post or event is no place to be near."""
AS_JSON, AS_TIME = ("classes", "tags"), ("starts", "ends")
Encode = Callable[[Sequence[Place]], np.ndarray]
"""From n places to vectors (n, dimension), for example of a sentence encoder."""


def write_town(
    path: Path,
    places: Iterable[Place],
    meta: dict[str, Any] | None = None,
    *,
    encode: Encode | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
) -> int:
    """Writes a town, complete or not at all, and returns the number of its places. Raises LoreError for a repeated place_id.

    meta: JSON values that Town.meta gives back. encode: called for 1,024 places at a time. arrays: of numbers, in one dimension,
    that Town.array gives back.
    """
    part = part_of(path)
    open_part(part, path).close()
    try:
        with closing(sqlite3.connect(part)) as connection:
            count = _fill(connection, iter(places), meta or {}, encode, arrays or {})
        replace_file(part, path)
    finally:
        remove(part)
    return count


def _fill(
    connection: sqlite3.Connection,
    places: Iterator[Place],
    meta: dict[str, Any],
    encode: Encode | None,
    arrays: Mapping[str, np.ndarray],
) -> int:
    connection.execute("pragma journal_mode = off")  # a file that is not finished is not kept
    connection.execute("pragma synchronous = off")  # replace_file flushes
    connection.execute(f"pragma application_id = {APPLICATION_ID}")
    connection.execute(f"pragma user_version = {VERSION}")
    connection.executescript(SCHEMA)
    insert = f"insert into place (row, {', '.join(COLUMNS)}, plain) values (?{', ?' * len(COLUMNS)}, ?)"
    count, outlines = 0, []
    while chunk := list(islice(places, CHUNK)):
        try:
            connection.executemany(insert, ((count + at, *_cells(place)) for at, place in enumerate(chunk)))
        except sqlite3.IntegrityError as error:
            rows = dict(connection.execute("select place_id, row from place"))
            twice = next(one.place_id for at, one in enumerate(chunk) if rows.get(one.place_id) != count + at)
            raise LoreError(f"place_id {twice} comes twice, so places could not be told apart.") from error
        connection.executemany("insert into box values (?, ?, ?, ?, ?)", ((count + at, *_box(one)) for at, one in enumerate(chunk)))
        if encode is not None:
            vectors = np.ascontiguousarray(encode(chunk), dtype=np.float16)
            connection.execute("insert into vector values (?, ?)", [count, vectors.tobytes()])
            meta = {**meta, "vector_dimension": vectors.shape[1]}
        outlines += [np.array([*one.outline, GAP], dtype="<f8") if one.outline else NO_POINTS for one in chunk]
        count += len(chunk)
    connection.execute("insert into name (rowid, plain) select row, plain from place where plain != ''")
    arrays = {
        **arrays,
        "outline_points": np.concatenate([NO_POINTS, *outlines]).ravel(),
        "outline_starts": np.cumsum([0, *map(len, outlines)], dtype="<i8"),
    }
    connection.executemany("insert into meta values (?, ?)", [(key, json.dumps(value)) for key, value in meta.items()])
    kept = [(name, value.dtype.str, np.ascontiguousarray(value).tobytes()) for name, value in arrays.items()]
    connection.executemany("insert into array values (?, ?, ?)", kept)
    connection.commit()
    return count


def _cells(place: Place) -> list[Any]:
    values = {name: getattr(place, name) for name in COLUMNS}
    for name in AS_JSON:
        values[name] = json.dumps(values[name], ensure_ascii=False)
    for name in AS_TIME:
        values[name] = values[name] and values[name].isoformat()
    return [*values.values(), plain_name(place.name) if place.kind in PLAIN_KINDS else ""]


def _box(place: Place) -> tuple[float, float, float, float]:
    """South, north, west, east. An outline that spans more than 180 degrees crosses the date line or surrounds a pole."""
    if not place.outline:
        return place.lat, place.lat, place.lon, place.lon
    points = np.array(place.outline)
    (south, west), (north, east) = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    if east - west > 180:
        return (south, 90, -180, 180) if north > 0 else (-90, north, -180, 180)
    bulge = math.degrees(math.radians(east - west) ** 2 / 16)  # of the great circle between two points of a parallel, at most
    return south - bulge, north + bulge, west, east


class Town:
    """Open with Town.open. names, place_ids, kinds, hours, outlined: by row. lats, lons (n,): degrees. classes: by row, see Place;
    rows of the same classes share one list, which must not be changed."""

    def __init__(self, path: Path, connection: sqlite3.Connection):
        self.path, self._connection = path, connection
        self.meta: dict[str, Any] = {key: json.loads(value) for key, value in connection.execute("select key, value from meta")}
        (count,) = connection.execute("select count(*) from place").fetchone()
        self.place_ids, self.names, self.kinds, self.classes, self.hours = ([None] * count for _ in range(5))
        self.lats, self.lons = np.empty(count), np.empty(count)
        self._points, self._starts = self.array("outline_points").reshape(-1, 2), self.array("outline_starts")
        self.outlined = np.diff(self._starts) > 0
        lists: dict[str, list[str]] = {}
        texts: dict[str | None, str | None] = {}
        read = connection.execute("select row, place_id, name, kind, lat, lon, classes, hours from place")
        for row, place_id, name, kind, lat, lon, classes, hours in read:
            self.place_ids[row], self.names[row], self.kinds[row] = place_id, name, texts.setdefault(kind, kind)
            self.lats[row], self.lons[row] = lat, lon
            self.hours[row] = texts.setdefault(hours, hours)
            if classes not in lists:
                lists[classes] = json.loads(classes)
            self.classes[row] = lists[classes]
        self._rows = {place_id: row for row, place_id in enumerate(self.place_ids)}

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Raises LoreError for a file that is no town."""
        if not os.path.isfile(path):
            raise LoreError(f"{path} does not exist. `lore nearby index PLACES -o {path}` writes a town.")
        connection = None
        try:
            connection = sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
            if _is_current(connection):
                return cls(Path(path), connection)
        except (sqlite3.DatabaseError, ValueError, IndexError, AttributeError, TypeError) as error:
            if connection is not None:
                connection.close()
            raise LoreError(f"{path} is no town ({error}). `lore nearby index PLACES -o {path}` writes one.") from error
        connection.close()
        raise LoreError(f"{path} is no town of this version of LORE. `lore nearby index PLACES -o {path}` writes one.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def __len__(self) -> int:
        return len(self.place_ids)

    def row(self, place_id: str) -> int | None:
        return self._rows.get(place_id)

    def named(self, plain: str) -> list[int]:
        """Rows of the places and areas with a plain_name."""
        query = "select row from place where plain = ? and plain != '' order by row"
        return [row for (row,) in self._connection.execute(query, [plain])]

    def known_names(self, plain: Iterable[str]) -> list[str]:
        """Those of the plain names that a place or area has."""
        query = "select distinct plain from place where plain != '' and plain in (select value from json_each(?))"
        return [name for (name,) in self._connection.execute(query, [json.dumps(list(dict.fromkeys(plain)))])]

    def begun_names(self, starts: Iterable[str]) -> set[str]:
        """Those of the starts with which the plain name of a place or area begins."""
        query = """select value from json_each(?) where exists
            (select 1 from place where plain != '' and plain >= value and plain < value || char(1114111))"""
        return {start for (start,) in self._connection.execute(query, [json.dumps(list(dict.fromkeys(starts)))])}

    def names_like(self, words: Sequence[str], most: int) -> list[int]:
        """At most `most` rows of places and areas: those whose names hold all of the words, then for each word the same share:
        those with the word, then those with one that begins as it does, with four letters, three or two."""
        found = dict.fromkeys(self._match(" ".join(f'"{word}"' for word in words), most)) if words else {}
        for word in words:
            of_word: dict[int, None] = {}
            for part in (f'"{word}"', *(f'"{word[:size]}"*' for size in (4, 3, 2))):
                share = most // len(words) - len(of_word)
                of_word |= dict.fromkeys(self._match(part, share)) if share > 0 else {}
            found |= of_word
        return list(found)[:most]

    def names_holding(self, plain: str) -> list[int]:
        """Rows of the places and areas whose plain_name holds the words of another one, in their order."""
        return self._match(f'"{plain}"', -1) if plain else []

    def _match(self, words: str, most: int) -> list[int]:
        """Rows whose names match words of FTS5, in the order of rows; -1: all."""
        return [row for (row,) in self._connection.execute("select rowid from name where name match ? limit ?", [words, most])]

    def places(self, rows: Sequence[int] | np.ndarray) -> list[Place]:
        """In the order of rows."""
        wanted = [int(row) for row in rows]
        query = f"select row, {', '.join(COLUMNS)} from place where row in (select value from json_each(?))"
        found = {row: _place(cells) for row, *cells in self._connection.execute(query, [json.dumps(wanted)])}
        for row in found:
            if self.outlined[row]:
                found[row].outline = list(map(tuple, self._points[self._starts[row] : self._starts[row + 1] - 1].tolist()))
        return [found[row] for row in wanted]

    def stream(self) -> Iterator[Place]:
        """All places in the order of rows."""
        for first in range(0, len(self), CHUNK):
            yield from self.places(range(first, min(first + CHUNK, len(self))))

    def tags(self) -> Iterator[tuple[int, dict[str, str]]]:
        """(row, tags) of the places that have tags."""
        for row, tags in self._connection.execute("select row, tags from place where tags != '{}' order by row"):
            yield row, json.loads(tags)

    def about(self, rows: Sequence[int] | np.ndarray) -> dict[int, list[int]]:
        """Rows of the posts and events about each of the rows that have some."""
        found: dict[int, list[int]] = {}
        ids = json.dumps([self.place_ids[int(row)] for row in rows])
        query = "select about, row from place where about in (select value from json_each(?)) order by row"
        for place_id, row in self._connection.execute(query, [ids]):
            found.setdefault(self._rows[place_id], []).append(row)
        return found

    @cached_property
    def vectors(self) -> np.ndarray | None:
        """(n, dimension), float16, read at the first use; None for a town without vectors."""
        if (dimension := self.meta.get("vector_dimension")) is None:
            return None
        vectors = np.empty((len(self), dimension), dtype=np.float16)
        for first, value in self._connection.execute("select first_row, value from vector"):
            chunk = np.frombuffer(value, dtype=np.float16).reshape(-1, dimension)
            vectors[first : first + len(chunk)] = chunk
        return vectors

    def array(self, name: str) -> np.ndarray | None:
        found = self._connection.execute("select dtype, value from array where name = ?", [name]).fetchone()
        return None if found is None else np.frombuffer(found[1], dtype=found[0])

    def near(self, lat: float, lon: float, metres: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n,) within a straight distance, and the distances (n,), the nearest first. The distance to an outline is that to
        its nearest point, and 0 inside of a polygon. Raises LoreError for coordinates out of range."""
        check_point(lat, lon)
        rows = self._touching(lat, lon, metres)
        distances = haversine(lat, lon, self.lats[rows], self.lons[rows])
        at = np.flatnonzero(self.outlined[rows])
        if len(at):
            distances[at] = outline_metres(lat, lon, *self.outlines(rows[at]))
        order = np.argsort(distances, kind="stable")
        order = order[distances[order] <= metres]
        return rows[order], distances[order]

    def areas(self, lat: float, lon: float) -> list[int]:
        """Rows of the areas that a point lies in. Raises LoreError for coordinates out of range."""
        rows, _ = self.near(lat, lon, 0.0)
        return [int(row) for row in rows if self.kinds[row] == "area" and self.outlined[row]]

    def _touching(self, lat: float, lon: float, metres: float) -> np.ndarray:
        """Rows, in order, whose box a circle touches; some others too, never one less."""
        angle = metres / EARTH_METRES
        if metres > WHOLE_TOWN_METRES:
            return np.arange(len(self))
        high = math.degrees(angle) + FLOAT32_DEGREES
        south, north, wide = lat - high, lat + high, 180.0
        if north < 90 and south > -90:
            wide = math.degrees(math.asin(min(1.0, math.sin(angle) / math.cos(math.radians(lat))))) + FLOAT32_DEGREES
        spans = [(lon - wide, lon + wide)]
        spans += [(west + turn, east + turn) for west, east in spans for turn in (-360, 360) if not -180 < west < east < 180 > wide]
        return self._in_boxes(south, north, spans)

    def in_box(self, south: float, west: float, north: float, east: float) -> np.ndarray:
        """Rows, in order, whose box touches this one, in degrees. A west above the east is a box across the date line. Raises
        LoreError for coordinates out of range."""
        check_point(south, west)
        check_point(north, east)
        return self._in_boxes(south, north, [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)])

    def _in_boxes(self, south: float, north: float, spans: list[tuple[float, float]]) -> np.ndarray:
        query = "select row from box where north >= ? and south <= ? and east >= ? and west <= ?"
        found = [row for west, east in spans for (row,) in self._connection.execute(query, [south, north, west, east])]
        return np.unique(np.array(found, dtype=np.int64))

    def outlines(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The points (p, 2) of the outlines of rows that have one, a row of NaN behind each part, and where each outline starts
        (n,)."""
        lengths = self._starts[rows + 1] - self._starts[rows]
        starts = np.cumsum(lengths) - lengths
        return self._points[np.arange(lengths.sum()) + np.repeat(self._starts[rows] - starts, lengths)], starts


def is_town_file(path: Path) -> bool:
    """Whether LORE wrote a file as a town, of any version."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        try:
            return connection.execute("pragma application_id").fetchone() == (APPLICATION_ID,)
        except sqlite3.DatabaseError:
            return False


def _is_current(connection: sqlite3.Connection) -> bool:
    values = [connection.execute(f"pragma {name}").fetchone() for name in ("application_id", "user_version")]
    return values == [(APPLICATION_ID,), (VERSION,)]


def _place(cells: list[Any]) -> Place:
    values = dict(zip(COLUMNS, cells, strict=True))
    for name in AS_JSON:
        values[name] = json.loads(values[name])
    for name in AS_TIME:
        values[name] = values[name] and datetime.fromisoformat(values[name])
    return Place(**values)


def check_point(lat: float, lon: float) -> None:
    """Raises LoreError for coordinates out of range, also NaN."""
    if not (-90 <= lat <= 90 and -180 <= lon <= 180):
        raise LoreError(f"{lat},{lon} is no place on Earth: expected a latitude of -90 to 90, then a longitude of -180 to 180.")


def outline_metres(lat: float, lon: float, points: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Metres (n,) from a point to the outlines of Town.outlines; 0 inside of a polygon, by the even-odd rule.

    The azimuthal equidistant projection around the point needs no special case at the poles and the date line. It is exact at the
    points of an outline; between them it takes a great circle for straight, which is off by less than a metre for the edges of a
    town (shorter than 50 km, within 50 km of the point).
    """
    distances = haversine(lat, lon, points[:, 0], points[:, 1])
    south, north, turn = np.radians(lat), np.radians(points[:, 0]), np.radians(points[:, 1] - lon)
    ahead = np.cos(south) * np.sin(north) - np.sin(south) * np.cos(north) * np.cos(turn)
    bearings = np.arctan2(np.sin(turn) * np.cos(north), ahead)
    x, y = distances * np.sin(bearings), distances * np.cos(bearings)
    next_x, next_y = np.append(x[1:], np.nan), np.append(y[1:], np.nan)
    along_x, along_y = next_x - x, next_y - y
    with np.errstate(divide="ignore", invalid="ignore"):  # points that are repeated, and gaps
        share = np.clip(-(x * along_x + y * along_y) / (along_x**2 + along_y**2), 0, 1)
        crosses = ((y > 0) != (next_y > 0)) & (x - y * along_x / along_y > 0)
    to_edges = np.hypot(x + share * along_x, y + share * along_y)
    gaps = np.flatnonzero(np.isnan(points[:, 0]))
    firsts = np.append(0, gaps[:-1] + 1)
    rings = (points[firsts] == points[gaps - 1]).all(axis=1) & (gaps - firsts >= 4)
    crosses &= np.repeat(rings, gaps - firsts + 1)
    inside = np.add.reduceat(crosses, starts, dtype=int) % 2 == 1
    return np.where(inside, 0.0, np.fmin.reduceat(np.fmin(distances, to_edges), starts))


def on_sphere(lats: np.ndarray, lons: np.ndarray) -> np.ndarray:
    """Points (n, 3) on a sphere with the size of the Earth: straight lines between near ones are as long as the ground, in metres,
    also across the date line and at the poles."""
    lat, lon = np.radians(lats), np.radians(lons)
    return EARTH_METRES * np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)
