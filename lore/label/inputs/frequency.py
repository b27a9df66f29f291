"""How often each query was searched for, counted over a whole log on disk.

With search ids (rule searches): the number of distinct ones. With impressions, how often a row's item was shown: those of the
query's most shown item, since a page has as many impressions as its most shown item. With a column that says it on each row of a
query (frequencies): the largest value. Otherwise (rows): the number of rows, or the sum of their values. Rule items counts the
distinct items of a query. Case and spacing of a query do not matter, and equal queries of two markets are two queries
(lore.data.pair.query_key).

The rows are dealt to files by the hash of their query. Each file is then counted by itself, so memory does not grow with the log.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from lore.data.pair import query_key
from lore.label.inputs.questions import markets_of

Rule = Literal["searches", "items", "impressions", "frequencies", "rows"]
DISTINCT = ("searches", "items")
"""Rules that count units, such as search ids."""
PARTS = 64
BLOCK_ROWS = 2**20
_ROW = np.dtype([("query", "<u8"), ("unit", "<u8"), ("value", "<f8")])
_MIX = np.uint64(0x9E3779B97F4A7C15)
_TOP = np.uint64(1 << 63)


def hash_of(text: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def hashes_of(texts: pa.Array) -> np.ndarray:
    """64 bits of each text, 0 for null. Equal texts are hashed once."""
    coded = texts.dictionary_encode()
    known = np.asarray([hash_of(text) for text in coded.dictionary.to_pylist()] + [0], dtype=np.uint64)
    return known[np.asarray(coded.indices.fill_null(len(known) - 1))]


def query_hashes(questions: pa.RecordBatch) -> np.ndarray:
    """64 bits of the query_key of each row."""
    queries = questions.column("query")
    markets = markets_of(questions.column("slices"))
    if any(markets):
        named = zip(queries.to_pylist(), markets, strict=True)
        return hashes_of(pa.array([query_key(query, market.split("\x1f") if market else ()) for query, market in named]))
    coded = queries.dictionary_encode()
    known = np.asarray([hash_of(query_key(text)) for text in coded.dictionary.to_pylist()], dtype=np.uint64)
    return known[np.asarray(coded.indices)]


def count_searches(
    rows: Iterable[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]], rule: Rule, database: sqlite3.Connection, scratch: Path
) -> None:
    """Writes the table `frequency` of a database. rows: hashes of the queries; hashes of the search ids (searches) or items
    (items, impressions); and values (impressions, frequencies, rows; None counts 1) of some rows. scratch: folder for files,
    deleted by the caller."""
    database.execute("create table frequency (query integer primary key, searches real)")
    with ExitStack() as stack:
        parts = [stack.enter_context(open(scratch / f"{part}.rows", "w+b")) for part in range(PARTS)]
        for queries, units, values in rows:
            found = np.empty(len(queries), dtype=_ROW)
            found["query"] = queries
            found["unit"] = 0 if units is None else queries * _MIX ^ units
            found["value"] = 1.0 if values is None else values
            found = _summed(found, rule)
            part = (found["query"] >> np.uint64(58)).astype(np.int64)
            order = np.argsort(part, kind="stable")
            found, ends = found[order], np.cumsum(np.bincount(part, minlength=PARTS))
            for number, (start, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
                if end > start:
                    parts[number].write(found[start:end].tobytes())
        for file in parts:
            file.seek(0)
            queries, counts = _counted(np.fromfile(file, dtype=_ROW), rule)
            database.executemany("insert into frequency values (?, ?)", zip(_keys(queries), counts.tolist(), strict=True))


def frequency_of(queries: np.ndarray, database: sqlite3.Connection) -> pa.Array:
    """Number of searches for each query, by its hash; null for one that is not in the log."""
    distinct, place = np.unique(queries, return_inverse=True)
    keys = _keys(distinct)
    marks = ", ".join("?" * len(keys))
    known = dict(database.execute(f"select query, searches from frequency where query in ({marks})", keys))
    return pa.array([known.get(key) for key in keys], pa.float64()).take(pa.array(place))


def _keys(queries: np.ndarray) -> list[int]:
    """Hashes as SQLite's signed integers, in the same order."""
    return (queries ^ _TOP).view(np.int64).tolist()


def counted_blocks(database: sqlite3.Connection, rows: int = BLOCK_ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(hashes, counts) of all queries, in ascending order of the hashes, in blocks of at most `rows`."""
    found = database.execute("select query, searches from frequency order by query")
    while some := found.fetchmany(rows):
        yield _arrays(some)


def counts_between(database: sqlite3.Connection, first: np.uint64, last: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, counts) of the queries with hashes from `first` to `last`, in ascending order."""
    ends = _keys(np.asarray([first, last], dtype=np.uint64))
    return _arrays(database.execute("select query, searches from frequency where query between ? and ? order by query", ends))


def _arrays(rows: Iterable[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    found = np.fromiter(rows, np.dtype([("query", "<i8"), ("count", "<f8")]))
    return np.ascontiguousarray(found["query"]).view(np.uint64) ^ _TOP, np.ascontiguousarray(found["count"])


def _summed(rows: np.ndarray, rule: Rule) -> np.ndarray:
    """One row per unit of a query, such as a search; by the rules rows and frequencies one per query."""
    if rule in ("rows", "frequencies"):
        rows["unit"] = rows["query"]
    _, first, place = np.unique(rows["unit"], return_index=True, return_inverse=True)
    found = rows[first]
    if rule == "frequencies":
        found["value"] = -np.inf
        np.maximum.at(found["value"], place, rows["value"])
    elif rule not in DISTINCT:
        found["value"] = np.bincount(place, weights=rows["value"], minlength=len(first))
    return found


def _counted(rows: np.ndarray, rule: Rule) -> tuple[np.ndarray, np.ndarray]:
    """Queries in order, and the searches of each."""
    rows = _summed(rows, rule)
    rows = rows[np.argsort(rows["query"], kind="stable")]
    queries, starts = np.unique(rows["query"], return_index=True)
    if not len(queries):
        return queries, rows["value"]
    reduce = np.maximum if rule == "impressions" else np.add
    return queries, reduce.reduceat(rows["value"], starts)
