"""Delimited text with a header line: csv and tsv. Quoted cells may contain line breaks.

An unclosed quote would swallow every row up to the next quote in the file. The reader keeps the lines of a record until the
record is known to be valid. For an invalid record, the first line is rejected and the others are read again.
"""

import csv
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from lore.data.rejected_rows import Rejection, short
from lore.data.tables.text_tables import Record, need_columns, open_text
from lore.support.errors import LoreError

MAX_CELL_CHARACTERS = 32 * 2**20
MAX_LINE_CHARACTERS = 2 * MAX_CELL_CHARACTERS
MAX_RECORD_LINES = 100_000
MIN_ROW_SHARE = 0.9
SPELLED = {"\\t": "\t", "tab": "\t"}
"""Other spellings of a delimiter, for the shell."""


def check_delimiter(given: str) -> str:
    """The delimiter as one character. Raises LoreError for other values."""
    delimiter = SPELLED.get(given, given)
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise LoreError(f"--delimiter is {given!r}; expected one character such as ';' or '|', or \\t for a tab.")
    return delimiter


def csv_records(
    path: Path, required: Iterable[str], *, encoding: str = "utf-8", delimiter: str = ","
) -> Iterator[Record | Rejection]:
    """Rows of a delimited file. Rows with an unclosed quote or with another number of columns than the header are rejections."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARACTERS))
    with open_text(path, encoding) as file:
        lines = _Lines(file)
        rows = csv.reader(lines, delimiter=delimiter)
        header = _header(path, rows, required, delimiter)
        row, width = 0, len(header)
        while True:
            first = lines.start()
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                cells = error
            if not isinstance(cells, csv.Error) and not lines.cut and not any(cells):
                continue  # an empty line or a line of empty cells
            row += 1
            last = first + len(lines.taken) - 1
            if lines.cut or (last > first and _is_runaway(lines.taken, cells, width, delimiter)):
                found = f"a quote that opens in line {first} and swallows the lines up to {last}"
                shown = {"line": short(lines.taken[0])}
                yield Rejection(str(path), row, "row", "unclosed_quote", found, "a closing quote at the cell's end", shown)
                lines.read_again()
            elif isinstance(cells, csv.Error) or len(lines.taken[-1]) >= MAX_LINE_CHARACTERS:
                found = f"a line or a cell of over {MAX_CELL_CHARACTERS:,} characters at line {first}"
                yield Rejection(str(path), row, "row", "text_too_long", found, "a shorter line")
            elif len(cells) == width:
                yield row, dict(zip(header, cells, strict=True))
            else:
                found = f"{len(cells)} columns in lines {first} to {last}"
                expected = f"{width} columns; put a cell with the delimiter, a quote or a line break in quotes"
                yield Rejection(str(path), row, "row", "field_type", found, expected, {"cells": short(cells)})


def _header(path: Path, rows: Iterator[list[str]], required: Iterable[str], delimiter: str) -> list[str]:
    try:
        header = [name.strip().removeprefix("\ufeff") for name in next(rows, [])]
    except csv.Error as error:
        raise LoreError(f"{path}: the header line cannot be read ({error}); expected column names.") from error
    doubled = {name for name, times in Counter(header).items() if times > 1 and name}
    if not header or doubled:
        raise LoreError(
            f"{path}: {f'column {min(doubled)!r} occurs twice' if doubled else 'empty'}; expected a header "
            "line with column names."
        )
    other = next((mark for mark in ";\t|," if len(header) == 1 and mark in header[0]), None)
    hint = f" The header is split at {delimiter!r} but contains {other!r}: pass --delimiter {other!r}." if other else ""
    need_columns(path, required, header, hint)
    return header


class _Lines:
    """The lines of a file for csv.reader. Keeps the lines of the current record; all but the first can be read again.

    `cut`: the record ended inside a quote, because the file ended or the record reached its size limit.
    """

    def __init__(self, file: TextIO):
        self.taken: list[str] = []
        self.cut = False
        self._file, self._again = file, deque[str]()
        self._number, self._characters, self._new, self._repeated = 1, 0, 0, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        # A hostile file could repeat all lines in quadratic time. Past this limit, each repeated line is its own record.
        alone = self._again and self._repeated > 8 * self._new + 1_000_000
        if self.taken and (alone or len(self.taken) >= MAX_RECORD_LINES or self._characters > MAX_CELL_CHARACTERS):
            self.cut = True
            raise StopIteration
        line = self._again.popleft() if self._again else self._read()
        if not line:
            self.cut = bool(self.taken)
            raise StopIteration
        self.taken.append(line)
        self._characters += len(line)
        return line

    def _read(self) -> str:
        self._new += 1
        line = rest = self._file.readline(MAX_LINE_CHARACTERS)
        while len(rest) == MAX_LINE_CHARACTERS and rest[-1] not in "\r\n":
            rest = self._file.readline(MAX_LINE_CHARACTERS)
        return line

    def start(self) -> int:
        """Starts a record and returns the number of its first line."""
        self._number += len(self.taken)
        self.taken, self._characters, self.cut = [], 0, False
        return self._number

    def read_again(self) -> None:
        """Queues all lines of the current record except the first for another read."""
        self._again.extendleft(reversed(self.taken[1:]))
        self._repeated += len(self.taken) - 1
        del self.taken[1:]


def _is_runaway(lines: list[str], cells: list[str] | csv.Error, width: int, delimiter: str) -> bool:
    """True for a record of several lines in which an unclosed quote has swallowed other rows.

    Usually the opening quote of a later cell closes the unclosed quote. Text follows that quote, which is invalid csv. Otherwise
    the swallowed lines are valid rows on their own. In a valid record of several lines, the last line only has the closing quote of
    its cell and so is not a clean row on its own.
    """
    if isinstance(cells, csv.Error) or _row(lines, delimiter) is None:
        return True
    others = [_row([line], delimiter) or [] for line in lines[1:]]
    rows = sum(len(other) == width for other in others)
    if len(cells) != width:
        return rows > 0
    clean = len(others[-1]) == width and not any('"' in cell for cell in others[-1])
    return clean and rows >= MIN_ROW_SHARE * len(others)


def _row(lines: list[str], delimiter: str) -> list[str] | None:
    """The cells of these lines if they are one well-formed record, otherwise None."""
    try:
        (cells,) = csv.reader(lines, delimiter=delimiter, strict=True)
    except (csv.Error, ValueError):
        return None
    return cells
