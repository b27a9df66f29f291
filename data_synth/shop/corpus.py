"""The corpus format of a base model: texts, photos, and the character spans that carry loss."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lore.support.atomic_files import written_whole

SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("trained", pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32())]))),
    ]
)
# Delimiters of the base model's turns, so that it has seen the conversation format before fine-tuning.
START, END = "<|im_start|>", "<|im_end|>"
BATCH = 2000

Pieces = list[tuple[str, bool]]  # a text in order: (piece, whether it carries loss)


def with_spans(pieces: Pieces) -> dict:
    """One corpus row: the joined pieces, and the spans that carry loss."""
    spans, at = [], 0
    for text, trained in pieces:
        if trained:
            spans.append({"start": at, "end": at + len(text)})
        at += len(text)
    return {"text": "".join(text for text, _ in pieces), "image": None, "trained": spans}


def write_corpus(path: Path, rows: Iterator[dict]) -> None:
    """Streams rows to one Parquet file, which appears when all rows are written."""
    pending: list[dict] = []
    with written_whole(path) as file, pq.ParquetWriter(file, SCHEMA) as writer:
        for row in rows:
            pending.append(row)
            if len(pending) == BATCH:
                writer.write_table(pa.Table.from_pylist(pending, schema=SCHEMA))
                pending = []
        if pending:
            writer.write_table(pa.Table.from_pylist(pending, schema=SCHEMA))
