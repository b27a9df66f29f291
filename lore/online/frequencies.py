"""How often each query is searched for: the table that the router reads to tell head, torso and tail apart.

    found = Frequencies.open("frequencies.arrow")
    found.of("Red  Mug")                  # 120.0, as for `red mug`; 0.0 for a query that is not in the table
    found.of("bol", ["locale:fr"])        # where the log names markets, each market has queries of its own

`lore plan` writes the table. It is an Arrow file with 64 bits of each query key (lore.data.pair.query_key, as in the labels), in
ascending order, and the number of searches: 12 bytes a query and no query text. It is memory-mapped, so that the processes of a
service share it and a lookup reads a few pages. Two queries have the same 64 bits with probability n^2 / 2^65: 0.00003 for 30
million queries.
"""

import json
import sqlite3
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lore.data.pair import query_key
from lore.label.inputs.frequency import counted_blocks, hash_of
from lore.support.atomic_files import written_whole
from lore.support.errors import LoreError
from lore.support.untrusted_json import parse_object

BLOCK_QUERIES = 2**20
SCHEMA = pa.schema([pa.field("query", pa.uint64(), nullable=False), pa.field("searches", pa.float32(), nullable=False)])
MARK = b"lore.frequencies"
VERSION = 1


class Frequencies:
    """Searches by query. Reading is safe from several threads and after a fork."""

    def __init__(self, path: Path, source: pa.MemoryMappedFile, blocks: list[pa.RecordBatch], about: dict[str, Any]):
        self.path, self._source = path, source
        self._queries = [block.column(0).to_numpy() for block in blocks]
        self._searches = [block.column(1).to_numpy() for block in blocks]
        self._firsts = [int(queries[0]) for queries in self._queries]
        self.about = about
        """searches, queries and days of the log, and what it was counted from."""

    @classmethod
    def open(cls, path: str | Path) -> "Frequencies":
        """Raises LoreError for a file that is missing, damaged or no table of frequencies."""
        path = Path(path).expanduser()
        try:
            source = pa.memory_map(str(path))
            with pa.ipc.open_file(source) as reader:
                about = _about(reader.schema)
                blocks = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        except (OSError, pa.ArrowException, ValueError) as error:
            raise LoreError(
                f"{path} is no table of query frequencies ({str(error)[:200]}), so no query's traffic is known.\nName the "
                "frequencies.arrow that `lore plan` writes."
            ) from error
        ends = [edge for block in blocks for edge in (block.column(0)[0].as_py(), block.column(0)[-1].as_py())]
        if sum(map(len, blocks)) != about["queries"] or ends != sorted(ends):
            raise LoreError(f"{path} is damaged: its queries are not those that were written. Run `lore plan` again.")
        return cls(path, source, blocks, about)

    def __len__(self) -> int:
        return self.about["queries"]

    def of(self, query: str, slices: Iterable[str] = ()) -> float:
        """Searches of a query, whatever its case and spacing, in the period of the log; 0 if the log does not have it.

        slices: of the pair; those that name its market (locale:us) count where the log names markets. A query that the log has
        without a market has these searches in every other market.
        """
        key = query_key(query, slices)
        found = self._of(key)
        if found is None and "\x1f" in key:
            found = self._of(key.partition("\x1f")[0])
        return found or 0.0

    def _of(self, key: str) -> float | None:
        hashed = hash_of(key)
        block = bisect_right(self._firsts, hashed) - 1
        if block < 0:
            return None
        queries = self._queries[block]
        place = int(queries.searchsorted(np.uint64(hashed)))
        return float(self._searches[block][place]) if place < len(queries) and queries[place] == hashed else None

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(hashes, searches) of all queries, in ascending order of the hashes."""
        yield from zip(self._queries, self._searches, strict=True)


def write_frequencies(path: Path, database: sqlite3.Connection, *, days: float | None, source: str) -> None:
    """database: of lore.label.inputs.search_log.count_log. days: length of the log, if known. source: the name of the log."""
    queries, searches = database.execute("select count(*), total(searches) from frequency").fetchone()
    about = {"version": VERSION, "queries": queries, "searches": searches, "days": days, "from": source}
    with written_whole(path) as file, pa.ipc.new_file(file, SCHEMA.with_metadata({MARK: json.dumps(about)})) as writer:
        for hashes, counts in counted_blocks(database, BLOCK_QUERIES):
            writer.write_batch(pa.record_batch([hashes, counts.astype(np.float32)], SCHEMA))


def is_frequencies(path: Path) -> bool:
    """Whether a file is a table of frequencies, for lore.support.outputs."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        return MARK in (reader.schema.metadata or {})


def _about(schema: pa.Schema) -> dict[str, Any]:
    about = parse_object((schema.metadata or {}).get(MARK, b""))
    if about.get("version") != VERSION or not schema.equals(SCHEMA):
        raise ValueError(f"version {about.get('version')}, and version {VERSION} is read")
    return about
