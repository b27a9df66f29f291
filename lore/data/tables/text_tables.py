"""Tables from other people: text, jsonl and Parquet, streamed row by row. A row that cannot be read becomes a
Rejection; the rest goes on. For csv and tsv see lore.data.tables.csv.

Bytes that do not decode are read as lone surrogates, so that one bad cell costs its own row and not the file;
lore.data.row_validation rejects them.
"""

import codecs
import io
import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lore.data.rejected_rows import Rejection, short
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint

MAX_LINE_CHARACTERS = 64 * 2**20
KEY_ROWS = 1000
ENCODINGS = ("utf-8", "latin-1", "cp1252", "utf-16", "gb18030", "shift_jis")
NO_FILE_HAS = ("idna", "punycode", "undefined")
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is the first half of this one
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
COMPRESSED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh9": "bzip2", b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
Record = tuple[int, dict[str, Any]]
"""Row number from 1, header not counted, and the row by column name."""


def need_columns(path: Path, required: Iterable[str], found: list[str], hint: str = "") -> None:
    """Raises LoreError that names each missing column with the nearest one that is there."""
    missing = [name for name in required if name not in found]
    if missing:
        parts = [f"column {name!r} is missing.{nearest_hint(name, found, cutoff=0.4)}" for name in missing]
        raise LoreError(f"{path}: {' '.join(parts)} Found: {', '.join(found[:40])}.{hint}")


def jsonl_records(path: Path, required: Iterable[str] = (), *, encoding: str = "utf-8") -> Iterator[Record | Rejection]:
    """One JSON object a line. Objects may leave keys out; `required` ones must occur among the first KEY_ROWS."""
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
    """Raises LoreError where two columns have one name."""
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise LoreError(f"{path}: column {doubled[0]!r} occurs twice, so it is not known which one is meant. Rename one.")


def _to_list(column: Any) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_cell(scalar) for scalar in column]


def _cell(scalar: Any) -> Any:
    """A cell's value; in place of one that holds bytes which are no UTF-8 anywhere, these bytes as text with surrogates."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error.object.decode("utf-8", "surrogateescape")


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


def check_encoding(encoding: str) -> str:
    """The codec's own name. Raises LoreError for what is no encoding of text files."""
    try:
        name = codecs.lookup(encoding).name
        if name not in NO_FILE_HAS:
            "".encode(name)  # LookupError for base64, hex and other codecs of bytes
            return name
    except (LookupError, ValueError):  # ValueError: a name with a NUL character
        pass
    raise LoreError(
        f"There is no encoding {encoding!r} of text files.{nearest_hint(encoding, ENCODINGS)} Common ones: {', '.join(ENCODINGS)}."
    )


@contextmanager
def open_text(path: Path, encoding: str, newline: str = "") -> Iterator[io.TextIOBase]:
    """The file as text from behind its byte order mark; undecodable bytes come as lone surrogates, where the encoding
    goes byte by byte.
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
                raise LoreError(f"{path} is a {kind} file, which is not read: unpack it first.")
        file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
        with io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline=newline) as text:
            try:
                yield text
            except UnicodeError as error:  # of utf-16 and utf-32, where what follows a bad unit cannot be read either
                raise LoreError(f"{path} is no {encoding} text ({error}). Pass its own --encoding.") from error


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
        with tempfile.TemporaryDirectory(prefix="lore-join-", ignore_cleanup_errors=True) as folder:
            self._database = sqlite3.connect(Path(folder) / "index.sqlite")
            self._database.execute("pragma journal_mode = off")
            self._database.execute("create table entries (key blob, value text)")
        # The file has no name any more: the system frees its room when the process ends, however it ends.
        try:
            self._fill(rows)
        except sqlite3.Error as error:
            self._database.close()
            raise LoreError(
                f"Joining the tables failed in {tempfile.gettempdir()}: {error}. Where it is full, point TMPDIR to a "
                "folder with as much room as the tables take."
            ) from error

    def _fill(self, rows: Iterable[tuple[str, Any]]) -> None:
        self._database.execute("pragma synchronous = off")
        # ASCII JSON carries lone surrogates, which SQLite's text would refuse.
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
