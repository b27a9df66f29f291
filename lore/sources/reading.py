"""Tables from other people: csv, tsv, jsonl and Parquet, streamed row by row. A row that cannot be read becomes a
Rejection; the rest goes on.

Bytes that do not decode are read as lone surrogates, so that one bad cell costs its own row and not the file;
lore.checks rejects them.
"""

import codecs
import csv
import difflib
import io
import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lore.errors import LoreError
from lore.rejected import Rejection, short

MAX_CELL_CHARACTERS = 32 * 2**20
MAX_LINE_BYTES = 64 * 2**20
KEY_ROWS = 1000
Record = tuple[int, dict[str, Any]]
"""Row number from 1, header not counted, and the row by column name."""


def nearest(name: str, names: Iterable[str]) -> str:
    """` Nearest: x.` or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f" Nearest: {close[0]}." if close else ""


def need_columns(path: Path, required: Iterable[str], found: list[str]) -> None:
    """Raises LoreError that names each missing column with the nearest one that is there."""
    missing = [name for name in required if name not in found]
    if missing:
        parts = [f"column {name!r} is missing.{nearest(name, found)}" for name in missing]
        raise LoreError(f"{path}: {' '.join(parts)} Found: {', '.join(found[:40])}.")


def csv_records(
    path: Path, required: Iterable[str], *, encoding: str = "utf-8", delimiter: str = ","
) -> Iterator[Record | Rejection]:
    """Rows of a delimited file with a header line. Quoted cells may hold line breaks; a row of another width is a
    rejection.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARACTERS))
    with open_text(path, encoding) as file:
        reader = csv.reader(file, delimiter=delimiter)
        header = [name.strip() for name in next(reader, [])]
        doubled = {name for name in header if header.count(name) > 1 and name}
        if not header or doubled:
            raise LoreError(
                f"{path}: {f'column {min(doubled)!r} occurs twice' if doubled else 'empty'}; expected a header "
                "line with column names."
            )
        need_columns(path, required, header)
        row, width, rows = 0, len(header), iter(reader)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                row += 1
                expected = f"cells of at most {MAX_CELL_CHARACTERS:,}; an unclosed quote makes one cell of many lines"
                yield Rejection(str(path), row, "row", "text_too_long", f"{error} at line {line}", expected)
                continue
            if not any(cells):
                continue  # an empty line, also one of empty cells
            row += 1
            if len(cells) == width:
                yield row, dict(zip(header, cells, strict=True))
                continue
            found = f"{len(cells)} columns in lines {line} to {reader.line_num}"
            expected = f"{width} columns; a cell with the delimiter, a quote or a line break stands in quotes"
            yield Rejection(str(path), row, "row", "field_type", found, expected, {"cells": short(cells)})


def jsonl_records(path: Path, required: Iterable[str] = (), *, encoding: str = "utf-8") -> Iterator[Record | Rejection]:
    """One JSON object a line. Objects may leave keys out; `required` ones must occur among the first KEY_ROWS."""
    with _open_binary(path, encoding) as file:
        row, unseen, names = 0, set(required), {}
        while line := file.readline(MAX_LINE_BYTES):
            row += 1
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    continue
                found = f"a line of over {MAX_LINE_BYTES:,} bytes"
                yield Rejection(str(path), row, "row", "text_too_long", found, "a shorter line")
                continue
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode(encoding, "surrogateescape"))
            except (ValueError, RecursionError) as error:
                record = f"{type(error).__name__}: {error}"
            if not isinstance(record, dict):
                found = short(record) if isinstance(record, str) else type(record).__name__
                shown = {"line": short(line[:1000].decode("utf-8", "replace"))}
                yield Rejection(str(path), row, "row", "field_type", found, "one JSON object a line", shown)
                continue
            if unseen:
                unseen -= record.keys()
                names |= dict.fromkeys(record)
                if row >= KEY_ROWS:
                    need_columns(path, unseen, list(names))
            yield row, record
        need_columns(path, unseen, list(names))


def parquet_records(
    path: Path, required: Iterable[str], columns: list[str] | None = None, *, keep=None, batch_rows: int = 1024
) -> Iterator[Record]:
    """Rows of a Parquet file. `columns`: these only, where they exist. `keep`: batch -> Arrow mask of the rows to
    yield.
    """
    with open_parquet(path) as parquet:
        names = parquet.schema_arrow.names
        need_columns(path, required, names)
        wanted = names if columns is None else [name for name in dict.fromkeys([*required, *columns]) if name in names]
        row = 0
        for group in range(parquet.num_row_groups):
            for batch in parquet.iter_batches(batch_rows, row_groups=[group], columns=wanted):
                mask = keep(batch).to_pylist() if keep else None
                values = [_to_list(batch.column(name)) for name in wanted]
                for index, cells in enumerate(zip(*values, strict=True)):
                    row += 1
                    if mask is None or mask[index]:
                        yield row, dict(zip(wanted, cells, strict=True))


def _to_list(column: Any) -> list[Any]:
    import pyarrow as pa

    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            return column.to_pylist()
        except UnicodeDecodeError:
            raw = column.cast(pa.large_binary()).to_pylist()
            return [None if cell is None else cell.decode("utf-8", "surrogateescape") for cell in raw]
    return column.to_pylist()


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """An open ParquetFile; damage found on opening or while reading is a LoreError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise LoreError(
            f"{path} is no readable Parquet file: {error}. It may be damaged, half downloaded, or a Git LFS pointer."
        ) from error


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[io.TextIOBase]:
    """The file as text from behind its byte order mark; undecodable bytes come as lone surrogates."""
    with (
        _open_binary(path, encoding) as file,
        io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline="") as text,
    ):
        yield text


@contextmanager
def _open_binary(path: Path, encoding: str) -> Iterator[io.BufferedReader]:
    try:
        name = codecs.lookup(encoding).name
    except LookupError as error:
        raise LoreError(
            f"There is no encoding {encoding!r}. Common ones: utf-8, latin-1, cp1252, utf-16, gb18030, shift_jis."
        ) from error
    with open(path, "rb") as file:
        head = file.read(4)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not name.startswith("utf-16"):
            raise LoreError(f"{path} starts with a UTF-16 byte order mark but is read as {encoding}. Pass --encoding utf-16.")
        if head.startswith(codecs.BOM_UTF8) and not name.startswith("utf-8"):
            raise LoreError(f"{path} starts with a UTF-8 byte order mark but is read as {encoding}. Pass --encoding utf-8.")
        file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
        yield file


def is_utf8(path: Path) -> bool:
    """True where the whole file is valid UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open(path, "rb") as file:
        try:
            while chunk := file.read(2**20):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


class DiskIndex:
    """Rows by key in a temporary SQLite file ($TMPDIR): joins tables that do not fit into memory. One key may have
    many rows.
    """

    def __init__(self, rows: Iterable[tuple[str, Any]]):
        self._folder = tempfile.TemporaryDirectory(prefix="lore-join-")
        self._database = sqlite3.connect(Path(self._folder.name) / "index.sqlite")
        try:
            self._fill(rows)
        except sqlite3.Error as error:
            self.__exit__(None, None, None)
            raise LoreError(
                f"Joining the tables failed in {tempfile.gettempdir()}: {error}. Where it is full, point TMPDIR to a "
                "folder with as much room as the tables take."
            ) from error

    def _fill(self, rows: Iterable[tuple[str, Any]]) -> None:
        self._database.execute("pragma journal_mode = off")
        self._database.execute("pragma synchronous = off")
        self._database.execute("create table entries (key blob, value text)")
        # ASCII JSON carries lone surrogates, which SQLite's text would refuse.
        entries = ((_blob(key), json.dumps(value)) for key, value in rows)
        self._database.executemany("insert into entries values (?, ?)", entries)
        self._database.execute("create index by_key on entries (key)")

    def __enter__(self) -> "DiskIndex":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._database.close()
        self._folder.cleanup()

    def get(self, key: str) -> list[Any]:
        found = self._database.execute("select value from entries where key = ? order by rowid", (_blob(key),))
        return [json.loads(value) for (value,) in found]


def _blob(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")
