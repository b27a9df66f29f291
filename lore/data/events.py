"""Events on disk: who took which item when. One Parquet file, streamed; lore.recommend reads histories from it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lore.data.tables.parquet_files import open_parquet
from lore.support.atomic_files import written_whole

Event = tuple[str, str, float, str | None, str | None, str | None]
"""In the order of EVENT_SCHEMA: user, item, seconds since 1970 (or the place in an order), session, kind, split."""
EVENT_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("time", pa.float64()),
        ("session_id", pa.string()),
        ("kind", pa.string()),
        ("split", pa.string()),
    ]
)
SPLITS = ("train", "valid", "test")
CLOCK = "lore.clock"
"""Metadata of an events file: `seconds`, or `order` where the log has no times and `time` counts a user's events or the rows."""
BATCH_ROWS = 2**16


def write_events(path: Path, events: Iterable[Event], clock: str = "seconds", source: str = "") -> None:
    """Streams events to a file, which appears when all are written."""
    schema = EVENT_SCHEMA.with_metadata({CLOCK: clock, "lore.source": source})
    waiting = iter(events)
    with written_whole(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while rows := list(islice(waiting, BATCH_ROWS)):
            columns = zip(zip(*rows, strict=True), schema.types, strict=True)
            writer.write_batch(pa.record_batch([pa.array(column, kind) for column, kind in columns], schema))


def is_events_file(path: Path) -> bool:
    """Whether write_events wrote a file."""
    with open_parquet(path) as parquet:
        return parquet.schema_arrow.names == EVENT_SCHEMA.names and CLOCK.encode() in (parquet.schema_arrow.metadata or {})
