"""Untrusted tables: text files, jsonl and Parquet, streamed row by row. An unreadable row becomes a Rejection and reading
continues. For csv and tsv see lore.data.tables.csv.

Undecodable bytes are read as lone surrogates. lore.data.row_validation then rejects only the row instead of the whole file.
"""

import codecs
import io
import json
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lore.data.rejected_rows import Rejection, short
from lore.data.tables.parquet_files import open_parquet
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint
from lore.support.text import printable

MAX_LINE_CHARACTERS = 64 * 2**20
KEY_ROWS = 1000
ENCODINGS = ("utf-8", "latin-1", "cp1252", "utf-16", "gb18030", "shift_jis")
NO_FILE_HAS = ("idna", "punycode", "undefined")
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16: its byte order mark is the first half of this one
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
COMPRESSED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh9": "bzip2", b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
Record = tuple[int, dict[str, Any]]
"""Row number, from 1 without the header, and the cells by column name."""


def need_columns(path: Path, required: Iterable[str], found: list[str], hint: str = "") -> None:
    """Raises LoreError with each missing column and the most similar existing one."""
    held = set(found)
    missing = [name for name in required if name not in held]
    if missing:
        parts = [f"column {name!r} is missing.{nearest_hint(name, found, cutoff=0.4)}" for name in missing]
        raise LoreError(f"{path}: {' '.join(parts)} Found: {printable(', '.join(found[:40]))}.{hint}")


def jsonl_records(path: Path, required: Iterable[str] = (), *, encoding: str = "utf-8") -> Iterator[Record | Rejection]:
    """Rows of a file with one JSON object per line. A row may omit `required` keys, but each must occur in the first KEY_ROWS."""
    with open_text(path, encoding, newline="\n") as file:
        row, unseen, names = 0, set(required), {}
        while line := file.readline(MAX_LINE_CHARACTERS):
            row += 1
            if len(line) == MAX_LINE_CHARACTERS and not line.endswith("\n"):
                while (rest := file.readline(MAX_LINE_CHARACTERS)) and not rest.endswith("\n"):
                    continue
                found = f"a line of over {MAX_LINE_CHARACTERS:,} characters"
                yield Rejection(str(path), row, "row", "text_too_long", found, "a shorter line")
                continue
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                record = f"{type(error).__name__}: {error}"
            if not isinstance(record, dict):
                found = short(record) if isinstance(record, str) else type(record).__name__
                shown = {"line": short(line)}
                yield Rejection(str(path), row, "row", "field_type", found, "one JSON object per line", shown)
                continue
            if unseen:
                unseen -= record.keys()
                names |= dict.fromkeys(record)
                if row >= KEY_ROWS:
                    need_columns(path, unseen, list(names))
            yield row, record
        need_columns(path, unseen, list(names))


def parquet_records(
    path: Path, required: Iterable[str], columns: list[str] | None = None, *, keep=None, batch_rows: int = 1024, hint: str = ""
) -> Iterator[Record]:
    """Rows of a Parquet file. `columns`: optional columns to read besides the required ones; None: all. `keep`: function from a
    batch to an Arrow mask of the rows to yield. hint: what to change, for the errors of a damaged file or a missing column.
    """
    with open_parquet(path, hint) as parquet:
        names = parquet.schema_arrow.names
        need_columns(path, required, names, f"{hint and ' '}{hint}")
        once_each(path, names)
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


def once_each(path: Path, names: list[str]) -> None:
    """Raises LoreError if two columns have the same name."""
    doubled = sorted(name for name, times in Counter(names).items() if times > 1)
    if doubled:
        raise LoreError(f"{path}: column {doubled[0]!r} occurs twice, so it is unclear which one to read. Rename one of them.")


def _to_list(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_cell(scalar) for scalar in column]


def _cell(scalar: Any) -> Any:
    """The value of a cell. A cell with invalid UTF-8 becomes text with surrogates for the invalid bytes."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error.object.decode("utf-8", "surrogateescape")


def check_encoding(encoding: str) -> str:
    """The canonical name of a text encoding. Raises LoreError if there is no such encoding."""
    try:
        name = codecs.lookup(encoding).name
        if name not in NO_FILE_HAS:
            "".encode(name)  # LookupError for base64, hex and other codecs of bytes
            return name
    except (LookupError, ValueError):  # ValueError: a name with a NUL character
        pass
    raise LoreError(
        f"There is no text encoding {encoding!r}.{nearest_hint(encoding, ENCODINGS)} Common encodings: {', '.join(ENCODINGS)}."
    )


@contextmanager
def open_text(path: Path, encoding: str, newline: str = "") -> Iterator[io.TextIOBase]:
    """The file as text, without its byte order mark. Undecodable bytes become lone surrogates; in utf-16 and utf-32 they raise
    LoreError.
    """
    name = check_encoding(encoding)
    with open(path, "rb") as file:
        head = file.read(4)
        for mark, needed in BYTE_ORDER_MARKS.items():
            if head.startswith(mark):
                if not name.startswith(needed):
                    shown = needed.upper()
                    raise LoreError(
                        f"{path} starts with a {shown} byte order mark but is read as {encoding}. Pass --encoding {needed}."
                    )
                break
        for mark, kind in COMPRESSED.items():
            if head.startswith(mark):
                raise LoreError(f"{path} is a {kind} file, and compressed files are not supported: unpack it first.")
        file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
        with io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline=newline) as text:
            try:
                yield text
            except UnicodeError as error:  # utf-16 and utf-32: text after an invalid unit cannot be decoded either
                raise LoreError(f"{path} is not {encoding} text ({error}). Pass the right --encoding.") from error


def is_utf8(path: Path) -> bool:
    """True if the whole file is valid UTF-8."""
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
    """Rows by key in a temporary SQLite file (in $TMPDIR), to join tables that do not fit into memory. A key may have several
    rows.
    """

    def __init__(self, rows: Iterable[tuple[str, Any]]):
        with tempfile.TemporaryDirectory(prefix="lore-join-", ignore_cleanup_errors=True) as folder:
            self._database = sqlite3.connect(Path(folder) / "index.sqlite")
            self._database.execute("pragma journal_mode = off")
            self._database.execute("create table entries (key blob, value text)")
        # The file is already unlinked, so the system frees its disk space when the process ends for any reason.
        try:
            self._fill(rows)
        except sqlite3.Error as error:
            self._database.close()
            raise LoreError(
                f"Joining the tables failed in {tempfile.gettempdir()}: {error}. If the disk is full, set TMPDIR to a "
                "folder with as much free space as the tables need."
            ) from error

    def _fill(self, rows: Iterable[tuple[str, Any]]) -> None:
        self._database.execute("pragma synchronous = off")
        # ASCII JSON can represent lone surrogates, which SQLite text cannot.
        entries = ((_blob(key), json.dumps(value)) for key, value in rows)
        self._database.executemany("insert into entries values (?, ?)", entries)
        self._database.execute("create index by_key on entries (key)")

    def __enter__(self) -> "DiskIndex":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._database.close()

    def get(self, key: str) -> list[Any]:
        found = self._database.execute("select value from entries where key = ? order by rowid", (_blob(key),))
        return [json.loads(value) for (value,) in found]


def _blob(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")
