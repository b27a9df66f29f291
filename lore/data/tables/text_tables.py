"""Untrusted tables: text files, jsonl and Parquet, streamed row by row. An unreadable row becomes a Rejection and reading
continues. For csv and tsv see lore.data.tables.csv.

Undecodable bytes are read as lone surrogates, and a Parquet cell that Python cannot represent as an Unreadable. Either way
lore.data.row_validation rejects only the row instead of the whole file.
"""

import codecs
import io
import json
import re
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from lore.data.rejected_rows import Rejection, short
from lore.data.tables.parquet_files import open_parquet
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint
from lore.support.processes import is_main_process
from lore.support.terminal import print_note
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
OLD_WORKBOOK = b"\xd0\xcf\x11\xe0"
SAVE_AS_CSV = "In Excel or LibreOffice choose File > Save As > CSV UTF-8"
ARRAY_TO_LINES = (
    "python -c \"import json; [print(json.dumps(row)) for row in json.load(open('{name}', encoding='utf-8'))]\" > rows.jsonl"
)
HEAD_BYTES = 2**16
_HIGH, _ALONE = re.compile(rb"[\x80-\xff]"), re.compile(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])")
_NOT_WESTERN = re.compile(rb"[\x81-\x83\x8d\x8f\x90\x9d]")  # undefined in Windows-1252, or rare there and common in Shift JIS
Record = tuple[int, dict[str, Any]]
"""Row number, from 1 without the header, and the cells by column name."""


class MissingColumns(LoreError):
    """A table lacks columns that are needed."""


def need_columns(path: Path, required: Iterable[str], found: list[str], hint: str = "") -> None:
    """Raises MissingColumns with each missing column and the most similar existing one."""
    held = set(found)
    missing = [name for name in required if name not in held]
    if missing:
        parts = [f"column {name!r} is missing.{nearest_hint(name, found, cutoff=0.4)}" for name in missing]
        raise MissingColumns(f"{path}: {' '.join(parts)} Found: {printable(', '.join(found[:40]))}.{hint}")


def jsonl_records(
    path: Path,
    required: Iterable[str] = (),
    *,
    encoding: str | None = None,
    settable: bool = False,
) -> Iterator[Record | Rejection]:
    """Rows of a file with one JSON object per line. A row may omit `required` keys, but each must occur in the first KEY_ROWS.

    A row that gives a key twice is rejected: Python would keep the last value only. encoding, settable: see open_text.
    """
    with open_text(path, encoding, newline=None, settable=settable) as file:
        row, unseen, names = 0, set(required), {}
        doubled: list[str] = []
        parse = json.JSONDecoder(object_pairs_hook=_noting(doubled)).decode  # json.loads would build a decoder for every line
        first_bad = ""
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
            doubled.clear()
            try:
                record = parse(line)
            except (ValueError, RecursionError) as error:
                record = f"{type(error).__name__}: {error}"
            if not isinstance(record, dict):
                if not names and (first_bad or _is_list_of_objects(record)):
                    raise _no_json_lines(path, first_bad or line)  # two lines at the start, and neither is an object
                first_bad = first_bad or line
                found = short(record) if isinstance(record, str) else type(record).__name__
                shown = {"line": short(line)}
                yield Rejection(str(path), row, "row", "field_type", found, "one JSON object per line", shown)
                continue
            names |= dict.fromkeys(record)
            if unseen:
                unseen -= record.keys()
                if row >= KEY_ROWS:
                    need_columns(path, unseen, list(names))
            if doubled:
                found, expected = f"key {doubled[0][:80]!r} twice", "each key once"
                yield Rejection(str(path), row, doubled[0][:80], "doubled_key", found, expected, {"line": short(line)})
                continue
            yield row, record
        if unseen and not names:
            raise _no_json_lines(path, first_bad)
        need_columns(path, unseen, list(names))


def _noting(doubled: list[str]) -> Any:
    """Builds the dict of a JSON object and notes the keys that it gives twice."""

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            doubled.extend(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        return found

    return build


def _is_list_of_objects(record: Any) -> bool:
    return isinstance(record, list) and bool(record) and isinstance(record[0], dict)


def _no_json_lines(path: Path, first: str) -> LoreError:
    if not first:
        return LoreError(f"{path} has no rows. Expected one JSON object per line.")
    start = first.lstrip("\ufeff \t")[:1]
    what = {"[": "is one JSON array", "{": "holds JSON over several lines"}.get(start, f"starts with {first.strip()[:60]!r}")
    command = f"Rewrite it with: {ARRAY_TO_LINES.format(name=path.name)}"
    how = command if start == "[" else "Write each row as one line, as json.dumps does."
    return LoreError(f"{path} {what}, and a .jsonl file holds one JSON object per line.\n{how}")


def parquet_records(
    path: Path, required: Iterable[str], columns: Collection[str] | None = None, *, batch_rows: int = 1024, hint: str = ""
) -> Iterator[Record]:
    """Rows of a Parquet file. `columns`: optional columns to read besides the required ones; None: all. hint: what to change, for
    the errors of a damaged file or a missing column.
    """
    with open_parquet(path, hint) as parquet:
        names = parquet.schema_arrow.names
        need_columns(path, required, names, f"{hint and ' '}{hint}")
        once_each(path, names, None if columns is None else {*required, *columns})
        known = set(names)
        wanted = names if columns is None else [name for name in dict.fromkeys([*required, *columns]) if name in known]
        row = 0
        for group in range(parquet.num_row_groups):
            for batch in parquet.iter_batches(batch_rows, row_groups=[group], columns=wanted):
                values = [column_cells(batch.column(name)) for name in wanted]
                if not values:  # none of the columns is there: rows without cells
                    values = [[None] * batch.num_rows]
                for cells in zip(*values, strict=True):
                    row += 1
                    yield row, dict(zip(wanted, cells, strict=False))


def once_each(path: Path, names: list[str], read: Collection[str] | None = None) -> None:
    """Raises LoreError if two columns have the same name. read: the names that matter; None: all but empty ones."""
    if len(set(names)) == len(names):
        return
    times = Counter(names)
    for name in names:
        if times[name] > 1 and name and (read is None or name in read):
            places = [str(at) for at, other in enumerate(names, 1) if other == name]
            raise LoreError(
                f"{path}: column {name!r} occurs {'twice' if len(places) == 2 else f'{len(places)} times'}, as column "
                f"{' and '.join([', '.join(places[:-1][:9]), places[-1]])}, so it is unclear which one to read. Rename one of them."
            )


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A cell whose value Python cannot represent, such as a date after the year 9999. No field accepts it."""

    why: str

    def __str__(self) -> str:
        return self.why


def column_cells(column: Any) -> list[Any]:
    """The cells of an Arrow column as Python values; see the module for those that Python cannot represent."""
    if str(column.type) == "time64[ns]":
        column = column.cast("string")  # Python's time would lose the nanoseconds
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, OSError, KeyError, NotImplementedError):  # UnicodeDecodeError and ArrowInvalid among them
        return [_cell(scalar) for scalar in column]


def _cell(scalar: Any) -> Any:
    """The value of a cell. A cell with invalid UTF-8 becomes text with surrogates for the invalid bytes."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error.object.decode("utf-8", "surrogateescape")
    except (ValueError, OverflowError, OSError, KeyError, NotImplementedError) as error:
        return Unreadable(f"a {scalar.type} that cannot be represented ({' '.join(str(error).split())[:100]})")


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
def open_text(
    path: Path, encoding: str | None, newline: str | None = "", *, settable: bool = False, spreadsheet: bool = False
) -> Iterator[io.TextIOBase]:
    """The file as text, without its byte order mark. Undecodable bytes become lone surrogates; in utf-16 and utf-32 they raise
    LoreError.

    encoding: None detects UTF-8, UTF-16 and UTF-32, with or without a byte order mark, and Windows-1252 in a csv file of European
    Excel (spreadsheet). settable: errors may advise --encoding; otherwise they ask for UTF-8.
    """
    name = check_encoding(encoding) if encoding else None
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
        needed = next((needed for mark, needed in BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
        if needed and name and not name.startswith(needed):
            advice = f"Pass --encoding {needed}, or no encoding." if settable else "Save it as UTF-8 text."
            raise LoreError(f"{path} starts with a {needed.upper()} byte order mark but is read as {encoding}. {advice}")
        for mark, kind in COMPRESSED.items():
            if head.startswith(mark):
                if kind == "zip" and b"xl/" in head:
                    raise LoreError(f"{path} is an Excel workbook, whatever its name says. {SAVE_AS_CSV}.")
                raise LoreError(f"{path} is a {kind} file, and compressed files are not supported: unpack it first.")
        if head.startswith(OLD_WORKBOOK):
            raise LoreError(f"{path} is an Excel workbook, whatever its name says. {SAVE_AS_CSV}.")
        encoding = encoding or needed or _wide_encoding(head)
        encoding = encoding or ("cp1252" if spreadsheet and _is_western(path, file, head) else "utf-8")
        file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
        with io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline=newline) as text:
            try:
                yield text
            except UnicodeError as error:  # utf-16 and utf-32: text after an invalid unit cannot be decoded either
                advice = "Pass the right --encoding." if settable else "Save it as UTF-8 text."
                raise LoreError(f"{path} is not {encoding} text ({error}). {advice}") from error


def _wide_encoding(head: bytes) -> str | None:
    """UTF-16 without a byte order mark: in the first characters every second byte is NUL, and no other one."""
    start = head[:64]
    for name, zeros, others in (("utf-16-le", start[1::2], start[0::2]), ("utf-16-be", start[0::2], start[1::2])):
        if len(start) >= 4 and zeros.count(0) >= 0.8 * len(zeros) and not others.count(0):
            return name
    return None


def _is_western(path: Path, file: BinaryIO, head: bytes) -> bool:
    """Whether a file whose first line is split by semicolons, as European Excel writes it, is Windows-1252 and not UTF-8.

    Its letters with accents stand alone between ASCII letters; those of Cyrillic, Chinese or Japanese encodings stand together.
    """
    first = head.split(b"\n", 1)[0]
    if not first.lower().lstrip(b'"').startswith(b"sep=") and first.count(b";") <= first.count(b","):
        return False
    if is_utf8(path):
        return False
    high = alone = 0
    file.seek(0)
    while chunk := file.read(2**20):
        if _NOT_WESTERN.search(chunk):
            return False
        high += len(_HIGH.findall(chunk))
        alone += len(_ALONE.findall(chunk))
    if alone < 0.8 * high:
        return False
    say_aside(
        f"note: {path} is not UTF-8 but looks like a csv file of Excel, so it is read as cp1252 (Western European). If accented "
        "letters come out wrong, save it as UTF-8, or name its encoding, such as cp1250 (data import: --encoding; recipe: "
        "data.encoding)."
    )
    return True


@cache
def say_aside(message: str) -> None:
    """Prints a line on stderr, once per process: standard output may be JSON, and an import opens its files twice."""
    if is_main_process():
        print_note(message)


def is_wide(path: Path) -> bool:
    """True for a file with a byte order mark, or in UTF-16 without one."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    return any(head.startswith(mark) for mark in BYTE_ORDER_MARKS) or _wide_encoding(head) is not None


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
