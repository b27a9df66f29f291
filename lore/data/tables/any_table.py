"""Rows of a table in whatever form it is stored, by its suffix."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lore.data.rejected_rows import Rejection
from lore.data.tables.csv import csv_records
from lore.data.tables.text_tables import jsonl_records, parquet_records
from lore.support.errors import LoreError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSONL = (".jsonl", ".ndjson")
SUFFIXES = (".parquet", *JSONL, *DELIMITERS)


def table_records(
    path: Path,
    required: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    *,
    what: str = "",
    encoding: str = "utf-8",
    delimiter: str | None = None,
    batch_rows: int = 1024,
) -> Iterator[tuple[int, dict[str, Any]] | Rejection]:
    """Row numbers and cells. Raises LoreError for a file that is missing or of another kind, or lacks a required column.

    columns: those read of a Parquet file beside the required ones, none: all. what: begins the message, such as the recipe's key.
    encoding: of text. delimiter: of a text file whose suffix says nothing or something else. batch_rows: of a Parquet file, fewer
    where rows are large.
    """
    if not path.is_file():
        raise LoreError(f"{what}There is no file {path}: it does not exist. Name a .parquet, .jsonl, .csv or .tsv file.")
    if path.suffix == ".parquet":
        return parquet_records(path, required, columns, batch_rows=batch_rows)
    if path.suffix in JSONL:
        return jsonl_records(path, required, encoding=encoding)
    if delimiter or path.suffix in DELIMITERS:
        return csv_records(path, required, encoding=encoding, delimiter=delimiter or DELIMITERS[path.suffix])
    known = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
    raise LoreError(f"{what}{path}: a file ending in {path.suffix or 'nothing'}; expected {known}.")
