"""Rows of a table file; the suffix decides the format."""

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
    """Row numbers and cells. Raises LoreError if the file is missing, has an unknown suffix or lacks a required column.

    columns: further columns to read from a Parquet file; None: all. what: prefix of error messages, such as the recipe key.
    encoding: of text files. delimiter: overrides the delimiter of the suffix. batch_rows: rows per Parquet batch; choose fewer for
    large rows.
    """
    if not path.is_file():
        raise LoreError(f"{what}File {path} does not exist. Name a .parquet, .jsonl, .csv or .tsv file.")
    if path.suffix == ".parquet":
        return parquet_records(path, required, columns, batch_rows=batch_rows)
    if path.suffix in JSONL:
        return jsonl_records(path, required, encoding=encoding)
    if delimiter or path.suffix in DELIMITERS:
        return csv_records(path, required, encoding=encoding, delimiter=delimiter or DELIMITERS[path.suffix])
    known = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
    raise LoreError(f"{what}{path}: a file ending in {path.suffix or 'nothing'}; expected {known}.")
