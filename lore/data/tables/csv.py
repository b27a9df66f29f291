"""Delimited text with a header line: csv and tsv. Quoted cells may contain line breaks.

The header tells the delimiter, also in files of European Excel: semicolons, tabs, a first line `sep=;`, decimal commas.

An unclosed quote would swallow every row up to the next quote in the file. The reader keeps the lines of a record until the
record is known to be valid. For an invalid record, the first line is rejected and the others are read again.

`csv_text` writes tables that people open in a spreadsheet program. Such a program runs a cell that begins with = as a formula and
rewrites texts that look like numbers or dates. An apostrophe in front of them prevents both. The empty column ESCAPED, last in the
header, says that there are such apostrophes, and `csv_records` removes them only from files that have it: a title such as
`'90s jeans` in somebody else's file keeps its own.
"""

import csv
import io
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from lore.data.rejected_rows import Rejection, short
from lore.data.tables.text_tables import Record, need_columns, once_each, open_text
from lore.support.errors import LoreError
from lore.support.text import encodable

MAX_CELL_CHARACTERS = 32 * 2**20
MAX_LINE_CHARACTERS = 2 * MAX_CELL_CHARACTERS
MAX_RECORD_LINES = 100_000
MAX_HEADER_LINES = 100
MIN_ROW_SHARE = 0.9
SPELLED = {"\\t": "\t", "tab": "\t"}
"""Other spellings of a delimiter, for the shell."""
KNOWN_DELIMITERS = (",", ";", "\t", "|")
ESCAPED = "lore_escaped"
"""Header of the empty column that marks a file with escaped cells."""

_SEP_LINE = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)
_SPACES = " \u00a0\u2009\u202f"
_NUMBER = re.compile(rf"([^\w.,]{{0,4}})(\d[\d.,'\u2019{_SPACES}]*)([^\w.,]{{0,4}}|[eE][-+]?\d+%?)")
_DECIMAL = {
    mark: re.compile(rf"(?:\d+|[1-9]\d{{0,2}}([{group}'\u2019{_SPACES}])\d{{3}}(?:\1\d{{3}})*){re.escape(mark)}\d+")
    for mark, group in ((",", "."), (".", ","))
}
_THOUSANDS = re.compile(rf"[1-9]\d{{0,2}}([.,'\u2019{_SPACES}])\d{{3}}(?:\1\d{{3}})*")
_ONE_THOUSAND = re.compile(r"[1-9]\d{0,2}[.,]\d{3}")
"""`1.234` and `1,234`: in some files 1234, in others 1.234."""
_NO_DIGIT = re.compile(r"\D")
MAX_NUMBER_CHARACTERS = 60


def check_delimiter(given: str) -> str:
    """The delimiter as one character. Raises LoreError for other values."""
    delimiter = SPELLED.get(given, given)
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise LoreError(f"--delimiter is {given!r}; expected one character such as ';' or '|', or \\t for a tab.")
    return delimiter


def csv_records(
    path: Path,
    required: Iterable[str],
    columns: Collection[str] | None = None,
    *,
    encoding: str | None = None,
    delimiter: str = ",",
    fixed: bool = False,
    settable: bool = False,
    is_number: Callable[[str], bool] = lambda name: False,
    is_grouped: Callable[[str], bool] = lambda name: False,
    may_be_short: bool = False,
) -> Iterator[Record | Rejection]:
    """Rows of a delimited file. Rows with an unclosed quote or with another number of columns than the header are rejections.

    columns: further columns that the caller reads; None: it may read all. A name that is not read may occur twice.
    encoding: None detects it, see open_text. delimiter: used unless the header is split better by another one; fixed: always used.
    settable: the user can pass --encoding and --delimiter, so errors may advise them.
    is_number: whether a column holds numbers. Their decimal commas become points in files with other delimiters.
    is_grouped: whether such a column may hold numbers of thousands with marks between, as prices do and labels do not.
    may_be_short: a row may end before its last empty cells, as Excel writes it. A row of a file with the column ESCAPED always may.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL_CHARACTERS))
    required = list(required)
    with open_text(path, encoding, settable=settable, spreadsheet=True) as file:
        delimiter, skipped = _dialect(file, required, delimiter, fixed)
        lines = _Lines(file, 1 + skipped)
        rows = csv.reader(lines, delimiter=delimiter)
        header, escaped = _header(path, rows, required, columns, delimiter, settable)
        numbers = {name: is_grouped(name) for name in header if is_number(name)} if delimiter != "," else {}
        again = partial(csv_records, path, required, columns, encoding=encoding, delimiter=delimiter, fixed=True)
        with_points = _WithPoints(again, numbers, delimiter)
        row, width, least = 0, len(header), 1 if may_be_short or escaped is not None else len(header)
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
            elif least <= len(cells) <= width:
                if escaped is not None:
                    cells = [unescaped(cell) for cell in cells]
                record = dict(zip(header, cells + [""] * (width - len(cells)), strict=True))
                for name, grouped in numbers.items():
                    record[name] = with_points(record[name], grouped)
                if escaped is not None:
                    del record[ESCAPED]
                yield row, record
            else:
                found = f"{len(cells)} columns in lines {first} to {last}"
                expected = f"{width} columns; put a cell with the delimiter, a quote or a line break in quotes"
                yield Rejection(str(path), row, "row", "field_type", found, expected, {"cells": short(cells)})


def _dialect(file: TextIO, required: list[str], delimiter: str, fixed: bool) -> tuple[str, int]:
    """The delimiter, and the number of lines before the header. Leaves the file at the header."""
    start = file.tell()
    first = file.readline(MAX_LINE_CHARACTERS)
    skipped, said = 0, _SEP_LINE.fullmatch(first.lstrip("\ufeff"))
    if said:
        skipped, start = 1, file.tell()
        first = file.readline(MAX_LINE_CHARACTERS)
        if not fixed and said[1] not in '"\r\n\0':
            file.seek(start)
            return said[1], skipped
    if not fixed:
        lines = [first]
        while '"' in first and sum(line.count('"') for line in lines) % 2 and len(lines) < MAX_HEADER_LINES and lines[-1]:
            lines.append(file.readline(MAX_LINE_CHARACTERS))
        header_of = {mark: _names(lines, mark) for mark in dict.fromkeys([delimiter, *KNOWN_DELIMITERS])}
        # All required columns first, then the expected delimiter, then the one that gives most columns.

        def fit(mark: str) -> tuple[bool, bool, int]:
            names = header_of[mark]
            return set(required) <= set(names), mark == delimiter and len(names) > 1, len(names)

        delimiter = max(header_of, key=fit)
    file.seek(start)
    return delimiter, skipped


def _names(lines: list[str], delimiter: str) -> list[str]:
    """The column names of the first record, without line breaks and surrounding spaces. None of them if it cannot be read."""
    try:
        return [_name(cell) for cell in next(csv.reader(lines, delimiter=delimiter), [])]
    except csv.Error:
        return []


def _name(cell: str) -> str:
    return " ".join(part for line in cell.lstrip("\ufeff").splitlines() if (part := line.strip()))


def _header(
    path: Path,
    rows: Iterator[list[str]],
    required: list[str],
    columns: Collection[str] | None,
    delimiter: str,
    settable: bool,
) -> tuple[list[str], int | None]:
    """The column names, and the position of the column ESCAPED if there is one."""
    try:
        header = [_name(cell) for cell in next(rows, [])]
    except csv.Error as error:
        raise LoreError(f"{path}: the header line cannot be read ({error}); expected column names.") from error
    if not any(header):
        found = "the header line has no names" if header else "empty"
        raise LoreError(f"{path}: {found}; expected a header line with column names.")
    once_each(path, header, None if columns is None else {*required, *columns})
    other = next((mark for mark in ";\t|," if len(header) == 1 and mark in header[0]), None)
    advice = f" The header is split at {delimiter!r} but contains {other!r}: pass --delimiter {other!r}."
    hint = advice if other and settable else ""
    need_columns(path, required, header, hint)
    return header, header.index(ESCAPED) if ESCAPED in header else None


class _WithPoints:
    """Writes the numbers of a file as Python does: a decimal point, and no marks between thousands.

    `1.234` and `1,234` are ambiguous in a grouped column. The other numbers of the file tell: 2,33 has a decimal comma, 12.99 has
    a decimal point. If they tell nothing, or both occur, it is a decimal mark; only the comma of a file without semicolons is not.
    """

    def __init__(self, again: Callable[[], Iterator[Record | Rejection]], columns: dict[str, bool], delimiter: str):
        """again: reads the file once more, its numbers as they are. columns: the names of those with numbers -> grouped."""
        self._again, self._columns, self._delimiter = again, columns, delimiter
        self._known: str | None = None

    def __call__(self, cell: str, grouped: bool) -> str:
        before, number, after = _parts(cell)
        if not number or number.isdecimal():
            return cell
        if grouped and _ONE_THOUSAND.fullmatch(number):
            decimal = number[-4] == (self._decimal_mark() or (number[-4] if self._delimiter == ";" else "."))
        elif any(mark.fullmatch(number) for mark in _DECIMAL.values()):
            decimal = True
        elif grouped and _THOUSANDS.fullmatch(number):
            decimal = False
        else:
            return cell
        if not decimal:
            return f"{before}{_NO_DIGIT.sub('', number)}{after}"
        place = max(number.rfind(","), number.rfind("."))
        return f"{before}{_NO_DIGIT.sub('', number[:place])}.{number[place + 1 :]}{after}"

    def _decimal_mark(self) -> str:
        """The decimal mark of the file; empty if its numbers do not tell."""
        if self._known is None:
            marks: set[str] = set()
            for record in self._again():
                for name, grouped in self._columns.items() if not isinstance(record, Rejection) else ():
                    number = _parts(record[1][name])[1]
                    if not number.isdecimal() and not (grouped and _ONE_THOUSAND.fullmatch(number)):
                        marks.update(mark for mark, decimal in _DECIMAL.items() if decimal.fullmatch(number))
                if len(marks) > 1:
                    break
            self._known = marks.pop() if len(marks) == 1 else ""
        return self._known


def _parts(cell: str) -> tuple[str, str, str]:
    """What stands before a number, the number with its marks, and what stands behind. The number is empty for other cells."""
    found = _NUMBER.fullmatch(cell) if len(cell) <= MAX_NUMBER_CHARACTERS else None
    return (found[1], found[2].rstrip(), found[3]) if found else ("", "", "")


# What a program that splits the line at another delimiter takes for the beginning of a cell is escaped too.
_FORMULA = re.compile(r"(^|[;\t\r\n])(?=[^\S;\t\r\n]{0,20}['=+\-@\uff1d\uff0b\uff0d\uff20\t\r])")
_RUN = re.compile(_FORMULA.pattern.replace("['=", "[="))
_SIGNED_NUMBER = re.compile(r"[-+]?\d{1,40}(?:\.\d{1,40})?")
_APOSTROPHE = re.compile(r"(^|[;\t\r\n])'")
_SHORT_NUMBER = re.compile(r"0|[1-9]\d{0,14}")
_WORDS = re.compile(r"[^\W\d_]+")
_NUMBER_MARKS = re.compile(r"[\w\s.,:/\-+%()'\u2019€$£¥\u20bd\u20b9]*")
_NUMBER_WITH_LETTERS = re.compile(
    r"[-+(\s]*\d[\d.,]*e[-+]?\d+[)%\s]*"  # 12e45
    r"|\d{1,2}(?::\d{1,2}){0,2}(?:[.,]\d+)?\s+[ap]\.?m?\.?"  # 2 pm
    r"|\d{1,4}[-/]\d{1,2}[-/]\d{1,4}[t\s][\d:.,]+\s?(?:z|[-+][\d:]+|[ap]m)?"  # 2024-01-31T12:00Z
)
_MONTHS = tuple(
    "jan feb mar apr may jun jul aug sep oct nov dec mär mrz mai okt dez fév fev avr juin juil aoû aou déc ene abr ago dic gen mag "
    "giu lug set ott out mei maa maj kwi cze lip sie wrz paź lis gru sty lut kvě čer srp zář říj".split()
)
_TRUTHS = frozenset(
    "true false wahr falsch vrai faux verdadero falso vero verdadeiro waar onwaar prawda fałsz pravda nepravda sant sand falskt "
    "falsk tosi epätosi doğru yanliş yanlış истина ложь igaz hamis 真 假".split()
)


def escaped(value: Any) -> Any:
    """A cell for a spreadsheet: a text that the program would run or rewrite gets an apostrophe. Numbers stay numbers."""
    if not isinstance(value, str):
        return value
    text = _FORMULA.sub(r"\1'", encodable(value))
    return f"'{text}" if text[:1] != "'" and is_rewritten(text) else text


def without_formulas(text: str) -> str:
    """The text with an apostrophe wherever a spreadsheet program would begin to run it. For tables that another program reads,
    which does not remove apostrophes: everything else stays as it is, also `'90s`, numbers and dates."""
    text = encodable(text)
    return text if _SIGNED_NUMBER.fullmatch(text) else _RUN.sub(r"\1'", text)


def unescaped(cell: str) -> str:
    """The text of a cell of a file that has the column ESCAPED."""
    return _APOSTROPHE.sub(r"\1", cell) if "'" in cell else cell


def is_rewritten(text: str) -> bool:
    """Whether a spreadsheet program may take a text for a number, a date, a time or a truth value, and so change it.

    `12` stays 12. `007`, `1e5`, `1-2`, `MAR1`, `12:30`, `TRUE` and numbers of 16 digits do not stay.
    """
    text = text.strip()
    if len(text) > 40 or not text or _SHORT_NUMBER.fullmatch(text):
        return len(text) > 40 and text.isdecimal()
    folded = text.casefold()
    if folded in _TRUTHS:
        return True
    if not any(character.isdecimal() for character in text) or not _NUMBER_MARKS.fullmatch(text):
        return False
    words = _WORDS.findall(folded)
    return not words or bool(_NUMBER_WITH_LETTERS.fullmatch(folded)) or (len(words) == 1 and words[0].startswith(_MONTHS))


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as csv text for people, safe in a spreadsheet program; `csv_records` reads the same cells back.

    Pass numbers as numbers: they are written as they are. The text begins with a byte order mark if it is not ASCII, because Excel
    reads other text as Windows-1252.
    """
    rows = [list(row) for row in rows]
    cells = [[escaped(cell) for cell in row] for row in rows]
    if cells != rows:
        header, cells = [*header, ESCAPED], [[*row, ""] for row in cells]
    text = "".join(csv_line(row) for row in [header, *cells])
    return text if text.isascii() else f"\ufeff{text}"


def csv_lines(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """The lines of `csv_text` for rows that do not fit into memory: always with the byte order mark and the column ESCAPED."""
    yield f"\ufeff{csv_line([*header, ESCAPED])}"
    for row in rows:
        yield csv_line([*map(escaped, row), ""])


def csv_line(row: Sequence[Any]) -> str:
    """One line of csv, with the cells as they are."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(row)  # quotes cells with either of the two; a lone \r ends a line too
    return f"{out.getvalue()[:-2]}\n"


class _Lines:
    """The lines of a file for csv.reader. Keeps the lines of the current record; all but the first can be read again.

    `cut`: the record ended inside a quote, because the file ended or the record reached its size limit.
    """

    def __init__(self, file: TextIO, number: int = 1):
        """number: of the first line."""
        self.taken: list[str] = []
        self.cut = False
        self._file, self._again = file, deque[str]()
        self._number, self._characters, self._new, self._repeated = number, 0, 0, 0

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
