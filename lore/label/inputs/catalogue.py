"""A catalogue of items: read once into an SQLite file in the work folder, then looked up by item id."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lore.data.pair import MARKETS
from lore.data.rejected_rows import Rejection
from lore.data.row_validation import RowChecker
from lore.label.inputs.database import open_database
from lore.label.inputs.questions import NUMBERS, questions_of
from lore.label.inputs.tables import Table
from lore.label.schema import QUESTION_SCHEMA
from lore.support.errors import LoreError
from lore.support.progress import track

ITEM_FIELDS = ("title", "attributes", "description", "category", "brand", "shop", "price", "image", "slices")
TARGETS = ("item_id", *ITEM_FIELDS, *MARKETS)
REQUIRED = ("item_id", "title")
PLAIN = ("description", "category", "brand", "shop", "price")
_COLUMNS = f"id, title, attributes, {', '.join(PLAIN)}, photo, photo_path, slices"
_BETWEEN = "\0"
"""Stands between the names and values of an item: no checked text holds it."""


class Catalogue:
    """Items by id. path: the table, for messages."""

    def __init__(self, path: str, database: sqlite3.Connection):
        self.path, self._database = path, database

    def close(self) -> None:
        self._database.close()

    def rejections(self) -> Iterator[Rejection]:
        """Rows of the catalogue that are no items."""
        for (line,) in self._database.execute("select line from rejected order by rowid"):
            yield Rejection(**json.loads(line))

    def an_id(self) -> str | None:
        """An id of the catalogue, for messages."""
        found = self._database.execute("select id from items limit 1").fetchone()
        return found and found[0]

    def items(self, ids: list[str]) -> tuple[pa.RecordBatch, np.ndarray]:
        """The items with these ids, in any order, as the fields ITEM_FIELDS; and for each id the row of its item, -1 if there is
        none."""
        rows = _rows(self._database, ids)
        place = {row[0]: at for at, row in enumerate(rows)}
        return _as_batch(rows), np.asarray([place.get(one, -1) for one in ids], dtype=np.int64)


def open_catalogue(table: Table, columns: dict[str, str], checker: RowChecker, path: Path, fingerprint: str) -> Catalogue:
    """columns: {target: column}, as far as the table has them. checker: requires REQUIRED. path: of the SQLite file. fingerprint:
    of the table and everything that decides how it is read. Raises LoreError for a table without items."""

    def fill(database: sqlite3.Connection) -> None:
        _fill(database, table, columns, checker)

    return Catalogue(table.path, open_database(path, fingerprint, fill))


def _fill(database: sqlite3.Connection, table: Table, columns: dict[str, str], checker: RowChecker) -> None:
    database.execute(f"create table items ({_COLUMNS.replace('id,', 'id text primary key,', 1)})")
    database.execute("create table rejected (line text)")
    items = 0
    numbers = [columns[name] for name in NUMBERS if name in columns]
    required = [columns[name] for name in REQUIRED]
    first: Rejection | None = None
    for raw in track(table.read(required, list(columns.values()), numbers), "reading the catalogue, blocks"):
        if isinstance(raw, Rejection):
            problems = [raw]
        else:
            questions, kept, problems = questions_of(raw, columns, checker)
            rows = list(_as_rows(questions))
            known = {row[0]: row for row in _rows(database, [row[0] for row in rows])}
            new = []
            for row, place in zip(rows, kept.tolist(), strict=True):
                if (before := known.get(row[0])) is None:
                    known[row[0]] = row
                    new.append(row)
                elif before != row:
                    found = f"item {row[0][:80]!r} again, with other content"
                    shown = {"item_id": row[0][:80], "title": row[1][:300]}
                    number = raw.numbers[place]
                    problems.append(Rejection(raw.file, number, "item_id", "item_repeated", found, "each item once", shown))
            items += len(new)
            database.executemany(f"insert into items values ({', '.join('?' * 11)})", new)
        first = first or next(iter(problems), None)
        database.executemany("insert into rejected values (?)", [(json.dumps(asdict(one)),) for one in problems])
    if not items:
        why = f"The first rejected row: {first}" if first else "It has no rows."
        raise LoreError(f"input.catalogue: {table.path} has no item with an id and a title, so nothing can be labelled. {why}")


def _rows(database: sqlite3.Connection, ids: Sequence[str]) -> list[tuple[Any, ...]]:
    return database.execute(f"select {_COLUMNS} from items where id in ({', '.join('?' * len(ids))})", list(ids)).fetchall()


def _as_rows(items: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    """Items as rows of the database."""
    plain = {name: items.column(name).to_pylist() for name in ("item_id", "title", *PLAIN)}
    keys, values = (part.to_pylist() for part in items.column("attributes").flatten().flatten())
    entries = [part for pair in zip(keys, values, strict=True) for part in pair]
    attributes = _joined(items.column("attributes"), entries, 2)
    slices = _joined(items.column("slices"), items.column("slices").flatten().to_pylist(), 1)
    photos = [part.to_pylist() for part in items.column("image").flatten()]
    ids, titles, *others = plain.values()
    return zip(ids, titles, attributes, *others, *photos, slices, strict=True)


def _joined(column: pa.ListArray, parts: list[str], width: int) -> list[str | None]:
    """Each list as one text; None for an empty one. parts: the entries of all lists; width: parts of an entry."""
    at, found = 0, []
    for length in column.value_lengths().to_pylist():
        end = at + width * (length or 0)
        found.append(_BETWEEN.join(parts[at:end]) if end > at else None)
        at = end
    return found


def _as_batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    """Rows of the database as the fields ITEM_FIELDS."""
    given = list(zip(*rows, strict=True)) if rows else [()] * 11
    _, title, attributes, *plain, photo, photo_path, slices = map(list, given)
    named = zip(("title", *PLAIN), (title, *plain), strict=True)
    columns: dict[str, pa.Array] = {name: pa.array(values, QUESTION_SCHEMA.field(name).type) for name, values in named}
    offsets, parts = _split(attributes)
    kind = QUESTION_SCHEMA.field("attributes").type
    even = np.arange(0, len(parts), 2)
    entries = pa.StructArray.from_arrays([parts.take(pa.array(even)), parts.take(pa.array(even + 1))], fields=list(kind.value_type))
    columns["attributes"] = pa.ListArray.from_arrays(pa.array(offsets // 2), entries, type=kind)
    offsets, parts = _split(slices)
    columns["slices"] = pa.ListArray.from_arrays(pa.array(offsets), parts, type=QUESTION_SCHEMA.field("slices").type)
    data, path = pa.array(photo, pa.binary()), pa.array(photo_path, pa.string())
    nothing = pc.and_(data.is_null(), path.is_null())
    columns["image"] = pa.StructArray.from_arrays([data, path], fields=list(QUESTION_SCHEMA.field("image").type), mask=nothing)
    schema = pa.schema([QUESTION_SCHEMA.field(name) for name in ITEM_FIELDS])
    return pa.record_batch([columns[name] for name in ITEM_FIELDS], schema)


def _split(texts: list[str | None]) -> tuple[np.ndarray, pa.Array]:
    """Offsets and parts of joined texts."""
    column = pc.split_pattern(pa.array(texts, pa.string()), _BETWEEN)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), column.flatten()
