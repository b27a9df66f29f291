"""A search log joined with a catalogue: one row per shown item, with query and item_id, and how often the query was searched for.

Columns of the log: query, item_id; optional: query_frequency (or frequency) with the number of searches of the query; impressions
(or count) with the number of times that the item was shown for it; search_id (or page_id), one per search; slices, locale, market.
query_frequency comes from the first of these that is there: query_frequency, impressions, search_id, the number of rows (see
lore.label.inputs.frequency). Other columns, such as the position, are ignored.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lore.data.importers.table import column_map
from lore.data.pair import MARKETS
from lore.data.rejected_rows import Rejection, short
from lore.data.row_validation import RowChecker
from lore.data.tables.ids import MATCHED_SHARE, spreadsheet_hint
from lore.label.inputs.catalogue import ITEM_FIELDS, Catalogue
from lore.label.inputs.database import open_database
from lore.label.inputs.frequency import Rule, count_searches, frequency_of, hashes_of, query_hashes
from lore.label.inputs.questions import Raw, as_text, questions_of, with_pair_ids
from lore.label.inputs.tables import Table
from lore.label.schema import QUESTION_FIELDS, QUESTION_SCHEMA
from lore.support.atomic_files import scratch_folder
from lore.support.errors import LoreError
from lore.support.processes import say
from lore.support.progress import track
from lore.support.text import printable

REQUIRED = ("query", "item_id")
TARGETS = (*REQUIRED, "query_frequency", "impressions", "search_id", "slices", *MARKETS)
COUNTS = ("query_frequency", "impressions")
OTHER_NAMES = {"query_frequency": "frequency", "impressions": "count", "search_id": "page_id"}
HOPELESS_ROWS = 100_000
"""A join that has matched none of this many rows stops."""


def log_columns(table: Table, given: dict[str, str]) -> dict[str, str]:
    """{target: column} of a log, as far as it has them. given: the user's map; {}: the columns have the names of the targets."""
    if given:
        return column_map(given, REQUIRED, TARGETS, "input.map (--map) of a log with a catalogue")
    names = table.columns()
    known = {target: target if target in names else OTHER_NAMES.get(target, target) for target in TARGETS}
    return {target: name for target, name in known.items() if name in names or target in REQUIRED}


def count_log(table: Table, columns: dict[str, str], path: Path, fingerprint: str) -> sqlite3.Connection | None:
    """The database with the searches of each query, made from the whole log. None if the log has a column that says it."""
    if "query_frequency" in columns:
        return None
    rule: Rule = "impressions" if "impressions" in columns else "searches" if "search_id" in columns else "rows"
    extra = columns.get({"impressions": "impressions", "searches": "search_id"}.get(rule, ""), "")
    targets = ("query", "slices", *MARKETS, *(["item_id"] if rule == "impressions" else []))
    wanted = [*(name for target, name in columns.items() if target in targets), *([extra] if extra else [])]
    rows = table.read([columns["query"]], wanted, [extra] if rule == "impressions" else [])
    return count_rows(rows, columns, rule, path, fingerprint, extra)


def count_rows(
    read: Iterable[Raw | Rejection], columns: dict[str, str], rule: Rule, path: Path, fingerprint: str, extra: str = ""
) -> sqlite3.Connection:
    """The database with the count of each query. read: the rows, which are only read if the database is not there. columns:
    {target: column}. extra: the column of the search ids (searches) or of the values (impressions, frequencies, rows)."""
    of_items = rule in ("impressions", "items")
    checker = RowChecker(None, open_photos=False, required=REQUIRED if of_items else REQUIRED[:1])
    targets = ("query", "slices", *MARKETS, *(["item_id"] if of_items else []))
    wanted = {target: name for target, name in columns.items() if target in targets}

    def rows() -> Iterator[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]]:
        before = 0
        for raw in track(read, "counting items, blocks" if rule == "items" else "counting searches, blocks"):
            if isinstance(raw, Rejection):
                continue  # reported when the log is joined
            questions, kept, _ = questions_of(raw, wanted, checker)
            if not len(questions):
                continue
            queries, units, values = query_hashes(questions), None, None
            if rule == "searches":
                ids = _texts(raw.columns.get(extra), len(raw)).take(pa.array(kept))
                units = hashes_of(ids)
                nameless = np.asarray(ids.is_null())
                units[nameless] = np.arange(before, before + int(nameless.sum()), dtype=np.uint64)  # each row is a search
                before += int(nameless.sum())
            elif of_items:
                units = hashes_of(questions.column("item_id"))
            if extra and rule != "searches":
                values = np.asarray([_count(cell) for cell in _cells(raw.columns.get(extra), raw, extra)])[kept]
            yield queries, units, values

    def fill(database: sqlite3.Connection) -> None:
        with scratch_folder(path) as scratch:
            count_searches(rows(), rule, database, scratch)

    return open_database(path, fingerprint, fill)


def _texts(column: pa.Array | None, rows: int) -> pa.Array:
    if column is None:
        return pa.nulls(rows, pa.string())
    text = as_text(column)
    if text is None:
        text = pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
    return text


def _cells(column: pa.Array | None, raw: Raw, name: str) -> list[Any]:
    if column is not None:
        return column.to_pylist()
    return [cells.get(name) for cells in raw.cells(list(range(len(raw))))]


def _count(cell: Any) -> float:
    """A number of impressions; 1 for a cell that holds none, since the row itself is one."""
    with suppress(TypeError, ValueError, OverflowError):
        number = float(cell)
        if np.isfinite(number) and number >= 0:
            return number
    return 1.0


@dataclass
class Join:
    """Joins rows of a log with a catalogue."""

    catalogue: Catalogue
    frequency: sqlite3.Connection | None
    """None: query_frequency is a column of the log."""
    reject: Callable[[Rejection], None]
    log: str
    """For messages."""
    rows: int = field(default=0, init=False)
    matched: int = field(default=0, init=False)
    missing: str | None = field(default=None, init=False)
    """An id that is not in the catalogue."""

    def questions(self, log: Iterable[Raw | Rejection], columns: dict[str, str], checker: RowChecker) -> Iterator[pa.RecordBatch]:
        """Rows of QUESTION_SCHEMA. columns: {target: column}. checker: requires REQUIRED. Raises LoreError if no id of the log is
        in the catalogue."""
        columns = {target: name for target, name in columns.items() if target in (*QUESTION_FIELDS, *MARKETS)}
        for raw in log:
            if isinstance(raw, Rejection):
                self.reject(raw)
                continue
            found, kept, problems = questions_of(raw, columns, checker)
            for problem in problems:
                self.reject(problem)
            if len(found):
                joined = self._joined(found, kept, raw)
                if len(joined):
                    yield joined
            if self.rows >= HOPELESS_ROWS:
                self._need_match()
        self._need_match()
        if self.rows and self.matched < MATCHED_SHARE * self.rows:
            say(
                f"warning: the items of {self.rows - self.matched:,} of {self.rows:,} rows of {self.log} are not in "
                f"{self.catalogue.path}{self._such_as()}"
            )

    def _joined(self, found: pa.RecordBatch, kept: np.ndarray, raw: Raw) -> pa.RecordBatch:
        coded = found.column("item_id").dictionary_encode()
        items, place = self.catalogue.items(coded.dictionary.to_pylist())
        at = place[np.asarray(coded.indices)]
        there = at >= 0
        self.rows += len(found)
        self.matched += int(there.sum())
        for row in np.flatnonzero(~there).tolist():
            query, item = found.column("query")[row].as_py(), found.column("item_id")[row].as_py()
            self.missing = self.missing or item
            self.reject(
                Rejection(
                    raw.file,
                    raw.numbers[int(kept[row])],
                    "item_id",
                    "item_unknown",
                    repr(item[:80]),
                    f"the id of an item of {self.catalogue.path}",
                    short({"query": query, "item_id": item}),
                )
            )
        found = found.filter(pa.array(there))
        if not len(found):
            return found
        if self.frequency is not None:
            searches = frequency_of(query_hashes(found), self.frequency)
            found = _with(found, "query_frequency", searches)
        items = items.take(pa.array(at[there]))
        for name in ITEM_FIELDS:
            column = items.column(name)
            if name == "slices":
                column = _both(found.column(name), column)
            found = _with(found, name, column)
        return with_pair_ids(found)

    def _need_match(self) -> None:
        if self.rows and not self.matched:
            raise LoreError(
                f"None of {self.rows:,} rows of {self.log} has an item_id of {self.catalogue.path}{self._such_as()}, so there is "
                "nothing to label.\nWrite the ids in the same way in both tables, or name other columns (--map item_id=COLUMN, in "
                f"a recipe input.map and input.catalogue_map).{spreadsheet_hint([self.missing, self.catalogue.an_id()])}"
            )

    def _such_as(self) -> str:
        missing, there = (self.missing or "")[:80], (self.catalogue.an_id() or "")[:80]
        return printable(f" (such as {missing!r}; the catalogue has ids such as {there!r})")


def _with(batch: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    return batch.set_column(batch.schema.get_field_index(name), QUESTION_SCHEMA.field(name), column)


def _both(first: pa.ListArray, second: pa.ListArray) -> pa.ListArray:
    """The slices of the log and of the item, each once."""
    if not len(second.flatten()):
        return first
    both = [list(dict.fromkeys([*one, *other])) for one, other in zip(first.to_pylist(), second.to_pylist(), strict=True)]
    return pa.array(both, first.type)
