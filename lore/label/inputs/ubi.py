"""User Behavior Insights (UBI, specification 1.0 to 1.3) as a search log.

`ubi_queries` holds one document per search: query_id, user_query, query_response_hit_ids. `ubi_events` holds one per action:
action_name, query_id, event_attributes.object.object_id. The pairs are the items that were shown for a query or acted on.
query_frequency is the number of distinct query_ids with the text of the query.

Documents are read as OpenSearch and Elasticsearch export them: plain, inside `_source` (scroll, elasticdump), as a whole search
response on one line, or flattened to columns such as event_attributes.object.object_id. Searches without a text, such as browsed
categories, and events without a search or an item, such as page views, are no pairs. They are counted and left out.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lore.data.rejected_rows import Rejection, shown_value
from lore.data.row_validation import RowChecker
from lore.data.tables.ids import id_text
from lore.label.inputs.database import open_database
from lore.label.inputs.frequency import count_searches, hash_of, query_hashes
from lore.label.inputs.questions import Raw, questions_of, raw_of_records
from lore.label.inputs.tables import BATCH_ROWS, Table
from lore.support.atomic_files import scratch_folder
from lore.support.errors import LoreError
from lore.support.processes import say
from lore.support.progress import track
from lore.support.text import encodable, printable
from lore.support.untrusted_json import parse_json

QUERY, SEARCH, HITS, OBJECT = "user_query", "query_id", "query_response_hit_ids", "event_attributes.object.object_id"
COLUMNS = {"query": "query", "item_id": "item_id"}
MAX_HITS = 10_000
"""Items of one search; OpenSearch returns no more by default."""
Record = tuple[int, dict[str, Any]]


class UbiLog:
    """The pairs of two UBI tables. queries: ubi_queries; events: ubi_events, or None."""

    def __init__(self, queries: Table, events: Table | None, path: Path, fingerprint: str):
        """path: of the database with the searches. fingerprint: of both tables."""
        self.queries, self.events = queries, events
        self.left_out: Counter[str] = Counter()
        self.database = open_database(path, fingerprint, lambda database: self._fill(database, path))

    def read(self) -> Iterator[Raw | Rejection]:
        """Blocks of rows with query and item_id, and what cannot be read. Equal pairs of one block are there once."""
        self.left_out.clear()
        for file, records in _grouped(self.queries):
            yield from self._shown(file, records)
        if self.events is not None:
            for file, records in _grouped(self.events):
                yield from self._acted_on(file, records)
        if self.left_out:
            say("left out of the log: " + ", ".join(f"{count:,} {what}" for what, count in self.left_out.items()))

    def _fill(self, database: sqlite3.Connection, path: Path) -> None:
        """Writes the number of searches of each query and, for the events, the text of each search."""
        checker = RowChecker(None, required=("query",))
        database.execute("create table searches (id text primary key, query text) without rowid")

        def rows() -> Iterator[tuple[np.ndarray, np.ndarray, None]]:
            for file, records in track(_grouped(self.queries), "counting searches, blocks"):
                documents = _documents(records)
                named = [(row, at_path(document, SEARCH), {"query": at_path(document, QUERY)}) for row, document in documents]
                raw = raw_of_records([(row, cells) for row, _, cells in named], file, ["query"])
                questions, kept, _ = questions_of(raw, {"query": "query"}, checker)
                if not len(questions):
                    continue
                rows = [named[place] for place in kept.tolist()]
                ids = [id_text(search) for _, search, _ in rows]
                if self.events is not None:
                    known = zip(ids, questions.column("query").to_pylist(), strict=True)
                    database.executemany("insert or ignore into searches values (?, ?)", [one for one in known if _is_id(one[0])])
                # A search without an id is one of its own.
                units = [hash_of(one or f"{file}\0{row}") for one, (row, _, _) in zip(ids, rows, strict=True)]
                yield query_hashes(questions), np.asarray(units, dtype=np.uint64), None

        with scratch_folder(path) as scratch:
            count_searches(rows(), "searches", database, scratch)
        if database.execute("select 1 from frequency limit 1").fetchone() is None:
            first = next((document for _, records in _grouped(self.queries) for _, document in _documents(records)), {})
            raise LoreError(
                f"{self.queries.where}: no document of {self.queries.path} has a {QUERY}, so it is no export of the index "
                f"ubi_queries. The first one has the keys {printable(', '.join(map(str, list(first)[:20]))) or '(none)'}."
            )

    def _shown(self, file: str, records: list[Record | Rejection]) -> Iterator[Raw | Rejection]:
        """The items that searches returned."""
        yield from (one for one in records if isinstance(one, Rejection))
        found = _Pairs(file)
        for row, document in _documents(records):
            query, hits = at_path(document, QUERY), _hits(at_path(document, HITS))
            if query is None or (isinstance(query, str) and not query.strip()):
                self.left_out["searches without a text"] += 1
            elif hits is None:
                shown, expected = shown_value(at_path(document, HITS)), f"a list of at most {MAX_HITS:,} ids"
                yield Rejection(file, row, HITS, "field_type", shown, expected, {QUERY: shown_value(query)})
            else:
                for hit in hits:
                    found.add(row, query, hit)
                if len(found.rows) >= BATCH_ROWS:
                    yield found.raw()
        if found.rows:
            yield found.raw()

    def _acted_on(self, file: str, records: list[Record | Rejection]) -> Iterator[Raw | Rejection]:
        """The items of events."""
        yield from (one for one in records if isinstance(one, Rejection))
        acts: list[tuple[int, str, Any]] = []
        for row, document in _documents(records):
            search, item = id_text(at_path(document, SEARCH)), at_path(document, OBJECT)
            if not search or item is None or item == "":
                self.left_out["events without a search or an item"] += 1
            else:
                acts.append((row, search, item))
        known = self._queries([search for _, search, _ in acts])
        found = _Pairs(file)
        for row, search, item in acts:
            if search in known:
                found.add(row, known[search], item)
            else:
                expected = f"the query_id of a search with a text in {self.queries.path}"
                yield Rejection(file, row, SEARCH, "search_unknown", shown_value(search), expected, {OBJECT: shown_value(item)})
        if found.rows:
            yield found.raw()

    def _queries(self, searches: list[str]) -> dict[str, str]:
        """The text of each search that is known."""
        names = [name for name in dict.fromkeys(searches) if _is_id(name)]
        known: dict[str, str] = {}
        for start in range(0, len(names), BATCH_ROWS):  # a response on one line may hold more than SQLite takes at once
            some = names[start : start + BATCH_ROWS]
            known |= dict(self.database.execute(f"select id, query from searches where id in ({', '.join('?' * len(some))})", some))
        return known


class _Pairs:
    """Pairs of one file, each once."""

    def __init__(self, file: str):
        self.file = file
        self.rows: dict[tuple[str, str], Record] = {}

    def add(self, row: int, query: Any, item: Any) -> None:
        item = id_text(item) if isinstance(item, str | int | float) else item
        self.rows.setdefault((str(query), str(item)), (row, {"query": query, "item_id": item}))

    def raw(self) -> Raw:
        found, self.rows = list(self.rows.values()), {}
        return raw_of_records(found, self.file, list(COLUMNS))


def _grouped(table: Table) -> Iterator[tuple[str, list[Record | Rejection]]]:
    """File and rows, and what could not be read in between."""
    for raw in table.read((), None):
        if isinstance(raw, Rejection):
            yield raw.file, [raw]
        else:
            yield raw.file, list(zip(raw.numbers, raw.cells(list(range(len(raw)))), strict=True))


def _documents(records: list[Record | Rejection]) -> Iterator[Record]:
    """Row and content of each document, without what an export wraps it in."""
    for record in records:
        if not isinstance(record, Rejection):
            row, content = record
            for document in unwrapped(content):
                yield row, document


def unwrapped(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    source, hits = document.get("_source"), document.get("hits")
    if isinstance(source, dict):
        yield source
    elif isinstance(hits, dict) and isinstance(hits.get("hits"), list):
        for hit in hits["hits"]:
            if isinstance(hit, dict):
                yield hit["_source"] if isinstance(hit.get("_source"), dict) else hit
    else:
        yield document


def at_path(document: Any, path: str) -> Any:
    """The value at a path of keys with points between them; some or all of them may be one key."""
    if not isinstance(document, dict):
        return None
    if path in document:
        return document[path]
    at = path.find(".")
    while at >= 0:
        found = at_path(document.get(path[:at]), path[at + 1 :])
        if found is not None:
            return found
        at = path.find(".", at + 1)
    return None


def _hits(value: Any) -> list[Any] | None:
    """Ids of shown items, also as JSON text; None for anything else."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        try:
            value = parse_json(value, long_integer=str) if value.lstrip()[:1] == "[" else [value]
        except ValueError:
            return None
    return value if isinstance(value, list) and len(value) <= MAX_HITS else None


def _is_id(text: str) -> bool:
    """Whether SQLite can store it as a key."""
    return bool(text) and encodable(text) == text
