"""Times in the cells of tables: texts, dates, numbers of several units."""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime
from typing import Any

from lore.data.rejected_rows import BadCell, shown_value

_DATE_IN_DIGITS = re.compile(r"(19[7-9]\d|20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(\d{4}|\d{6})?")
_NUMBER = re.compile(r"[-+]?\d{1,40}(\.\d{0,40})?([eE][-+]?\d{1,3})?")


def seconds_of(text: str) -> float:
    """Seconds since 1970 of a date or time; UTC, unless it says otherwise. Raises ValueError for another text."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("a date such as 2018-06-01, or a date with a time such as 2018-06-01T12:00") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def cell_seconds(cell: Any) -> float:
    """Seconds since 1970 of a number (in seconds or, as its size tells, finer units), of a date or of its text. A number such as
    20180101 or 20180101120000 is refused: as seconds it is a day of 1970, which nobody means."""
    try:
        text = cell.isoformat() if isinstance(cell, date) else cell.strip()[:80] if isinstance(cell, str) else cell
        if isinstance(text, str) and not _NUMBER.fullmatch(text):
            return seconds_of(text)
        number = math.nan if isinstance(text, bool) else float(text)
        if number.is_integer() and abs(number) < 1e15 and _DATE_IN_DIGITS.fullmatch(str(int(number))):
            expected = "seconds since 1970, or a date with its separators, such as 2018-01-01"
            raise BadCell("time", "field_type", f"{shown_value(cell)}, a date in digits alone", expected)
        if abs(number) < 1e11:
            return number
        if abs(number) < 1e20:
            return number / next((unit for unit in (1e9, 1e6) if abs(number) > unit * 1e8), 1e3)
    except (ValueError, TypeError, OverflowError):
        pass
    raise BadCell("time", "field_type", shown_value(cell), "seconds since 1970, or a date such as 2018-06-01T12:00")
