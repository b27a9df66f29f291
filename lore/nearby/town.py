"""A town in one SQLite file: places, posts and events with an R*Tree over their boxes, and one vector per row.

    with Town.open("town.db") as town:
        rows, metres = town.near(41.88, -87.63, 1200)

Row numbers are those of the order in which places were written, from 0. Coordinates, names and classes are read into memory at
opening (about 150 bytes per place); everything else when it is asked for.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np

from lore.nearby.place import Place
from lore.support.atomic_files import open_part, part_of, remove, replace_file
from lore.support.errors import LoreError

APPLICATION_ID = 0x4C4F5245  # "LORE", in the header of the file
VERSION = 1
EARTH_METRES = 6_371_008.8
"""Mean radius, IUGG."""
METRES_PER_DEGREE = math.pi * EARTH_METRES / 180
SCHEMA = """
create table meta (key text primary key, value text);
create table place (row integer primary key, place_id text not null unique, name text not null, kind text not null,
    lat real not null, lon real not null, classes text not null, tags text not null, text text not null, hours text,
    starts text, ends text, about text, outline text);
create index place_about on place (about) where about is not null;
create virtual table box using rtree (row, south, north, west, east);
create table vector (row integer primary key, value blob not null);
"""
COLUMNS = [one.name for one in fields(Place)]
AS_JSON, AS_TIME = ("classes", "tags", "outline"), ("starts", "ends")


def write_town(path: Path, places: Iterable[Place], meta: dict[str, Any] | None = None) -> int:
    """Writes a town, complete or not at all, and returns the number of its places. meta: JSON values that Town.meta gives back.
    Raises LoreError for a place_id that comes twice."""
    part = part_of(path)
    open_part(part, path).close()
    try:
        with closing(sqlite3.connect(part)) as connection:
            count = _fill(connection, places, meta or {})
        replace_file(part, path)
    finally:
        remove(part)
    return count


def _fill(connection: sqlite3.Connection, places: Iterable[Place], meta: dict[str, Any]) -> int:
    connection.execute("pragma journal_mode = off")  # a file that is not finished is not kept
    connection.execute(f"pragma application_id = {APPLICATION_ID}")
    connection.execute(f"pragma user_version = {VERSION}")
    connection.executescript(SCHEMA)
    insert = f"insert into place (row, {', '.join(COLUMNS)}) values (?{', ?' * len(COLUMNS)})"
    count = 0
    for row, place in enumerate(places):
        values = {name: getattr(place, name) for name in COLUMNS}
        for name in AS_JSON:
            values[name] = None if values[name] is None else json.dumps(values[name], ensure_ascii=False)
        for name in AS_TIME:
            values[name] = values[name] and values[name].isoformat()
        try:
            connection.execute(insert, [row, *values.values()])
        except sqlite3.IntegrityError as error:
            raise LoreError(f"place_id {place.place_id} comes twice, so places could not be told apart.") from error
        connection.execute("insert into box values (?, ?, ?, ?, ?)", [row, *_box(place)])
        count = row + 1
    connection.executemany("insert into meta values (?, ?)", [(key, json.dumps(value)) for key, value in meta.items()])
    connection.commit()
    return count


def _box(place: Place) -> tuple[float, float, float, float]:
    points = place.outline or [(place.lat, place.lon)]
    lats, lons = [lat for lat, _ in points], [lon for _, lon in points]
    return min(lats), max(lats), min(lons), max(lons)


class Town:
    """Open with Town.open. names, place_ids: by row. lats, lons (n,): degrees. classes: by row, see Place."""

    def __init__(self, path: Path, connection: sqlite3.Connection):
        self.path, self._connection = path, connection
        self.meta: dict[str, Any] = {key: json.loads(value) for key, value in connection.execute("select key, value from meta")}
        read = connection.execute("select place_id, name, kind, lat, lon, classes from place order by row").fetchall()
        self.place_ids, self.names, self.kinds = ([one[at] for one in read] for at in range(3))
        self.lats, self.lons = (np.array([one[at] for one in read], dtype=np.float64) for at in (3, 4))
        self.classes = [json.loads(one[5]) for one in read]
        self._rows = {place_id: row for row, place_id in enumerate(self.place_ids)}

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Raises LoreError for a file that is no town."""
        if not os.path.isfile(path):
            raise LoreError(f"{path} does not exist. `lore nearby index PLACES -o {path}` writes a town.")
        connection = None
        try:
            connection = sqlite3.connect(f"file:{Path(path).resolve().as_posix()}?mode=ro", uri=True, check_same_thread=False)
            (application,) = connection.execute("pragma application_id").fetchone()
            (version,) = connection.execute("pragma user_version").fetchone()
            if (application, version) == (APPLICATION_ID, VERSION):
                return cls(Path(path), connection)
        except (sqlite3.DatabaseError, ValueError) as error:
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

    def places(self, rows: Sequence[int] | np.ndarray) -> list[Place]:
        """In the order of rows."""
        return [self._place(int(row)) for row in rows]

    def _place(self, row: int) -> Place:
        found = self._connection.execute(f"select {', '.join(COLUMNS)} from place where row = ?", [row]).fetchone()
        values = dict(zip(COLUMNS, found, strict=True))
        for name in AS_JSON:
            values[name] = values[name] and json.loads(values[name])
        for name in AS_TIME:
            values[name] = values[name] and datetime.fromisoformat(values[name])
        values["outline"] = values["outline"] and [(lat, lon) for lat, lon in values["outline"]]
        return Place(**values)

    def stream(self) -> Iterator[Place]:
        """All places in the order of rows."""
        for row in range(len(self)):
            yield self._place(row)

    def near(self, lat: float, lon: float, metres: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n,) whose point lies within a straight distance, and the distances (n,), the nearest first."""
        distances = haversine(lat, lon, self.lats, self.lons)
        rows = np.flatnonzero(distances <= metres)
        order = np.argsort(distances[rows], kind="stable")
        return rows[order], distances[rows][order]


def haversine(lat: float, lon: float, lats: np.ndarray, lons: np.ndarray) -> np.ndarray:
    """Metres (n,) on the sphere between a point and points (n,), all in degrees."""
    south, north = np.radians(lat), np.radians(lats)
    half = np.sin((north - south) / 2) ** 2 + np.cos(south) * np.cos(north) * np.sin(np.radians(lons - lon) / 2) ** 2
    return 2 * EARTH_METRES * np.arcsin(np.sqrt(np.clip(half, 0, 1)))
