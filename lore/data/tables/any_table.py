"""Rows of a table file; the suffix decides the format, in capitals or not."""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from lore.data.rejected_rows import Rejection
from lore.data.tables.csv import csv_records
from lore.data.tables.text_tables import ARRAY_TO_LINES, SAVE_AS_CSV, jsonl_records, parquet_records
from lore.support.errors import LoreError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
JSONL = (".jsonl", ".ndjson")
SUFFIXES = (".parquet", *JSONL, *DELIMITERS)
WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers")
UNPACK = {".gz": "gunzip", ".zst": "unzstd", ".bz2": "bunzip2", ".xz": "unxz", ".zip": "unzip"}


def suffix_of(path: Path) -> str:
    """The suffix of a file in small letters."""
    return path.suffix.lower()


def other_format(path: Path, known: Sequence[str] = SUFFIXES, what: str = "") -> LoreError:
    """The error for a file whose suffix is none of `known`: what it is, and how to make a table of it."""
    suffix, names = suffix_of(path), f"{', '.join(known[:-1])} or {known[-1]}"
    if suffix in WORKBOOKS:
        return LoreError(
            f"{what}{path}: a file ending in {path.suffix}; expected {names}. LORE does not read workbooks of spreadsheet "
            f"programs. {SAVE_AS_CSV}, and name that file."
        )
    if suffix in UNPACK:
        return LoreError(
            f"{what}{path} is compressed, and compressed files are not read. Unpack it first: {UNPACK[suffix]} {path.name}"
        )
    if suffix == ".json":
        return LoreError(
            f"{what}{path}: a file ending in .json; expected {names}. With one JSON object per line, rename it to .jsonl. "
            f"Rewrite an array with: {ARRAY_TO_LINES.format(name=path.name)}"
        )
    return LoreError(f"{what}{path}: a file ending in {path.suffix or 'nothing'}; expected {names}.")


def table_records(
    path: Path,
    required: Sequence[str] = (),
    columns: Collection[str] | None = None,
    *,
    what: str = "",
    encoding: str | None = None,
    delimiter: str | None = None,
    settable: bool = False,
    is_number: Callable[[str], bool] = lambda name: False,
    is_grouped: Callable[[str], bool] = lambda name: False,
    may_be_short: bool = False,
    batch_rows: int = 1024,
) -> Iterator[tuple[int, dict[str, Any]] | Rejection]:
    """Row numbers and cells. Raises LoreError if the file is missing, has an unknown suffix or lacks a required column.

    columns: further columns to read from a Parquet file; None: all. what: prefix of error messages, such as the recipe key.
    encoding: of text files; None detects it. delimiter: overrides the suffix and the header. settable: the user can pass both.
    is_number, is_grouped, may_be_short: of delimited text, see csv_records. batch_rows: rows per Parquet batch; choose fewer for
    large rows.
    """
    if not path.is_file():
        raise LoreError(f"{what}File {path} does not exist. Name a .parquet, .jsonl, .csv or .tsv file.")
    suffix = suffix_of(path)
    if suffix == ".parquet":
        return parquet_records(path, required, columns, batch_rows=batch_rows)
    if suffix in JSONL:
        return jsonl_records(path, required, encoding=encoding, settable=settable)
    if not delimiter and suffix not in DELIMITERS:
        raise other_format(path, what=what)
    return csv_records(
        path,
        required,
        columns,
        encoding=encoding,
        delimiter=delimiter or DELIMITERS[suffix],
        fixed=delimiter is not None,
        settable=settable,
        is_number=is_number,
        is_grouped=is_grouped,
        may_be_short=may_be_short,
    )
