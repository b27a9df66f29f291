"""Ids that join tables. Programs that read whole numbers as floats write 100001.0 or 1.00001e+05 for the id 100001; a join by text
would then match nothing.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from lore.data.tables.csv import unescaped
from lore.support.errors import LoreError
from lore.support.processes import say

# A float never has a leading zero, so 0012 and 0012.0 stay texts; 12E4 may be the number of a model, so it stays one too.
_FLOAT = re.compile(r"-?(?:0|[1-9]\d*)(?:\.0+|(?:\.\d+)?[eE]\+\d{1,3}|\.\d+[eE]\d{1,3})")
_GENERATED = re.compile(r"p?[0-9a-f]{16}")
_BY_A_SPREADSHEET = re.compile(
    r"-?\d(?:[.,]\d+)?[eE]\+?\d+|\d{15}0+|#+|#[A-Z/0]+[?!]?|TRUE|FALSE|WAHR|FALSCH|VRAI|FAUX"
    r"|\d{1,2}[./-]\s?(?:\d{1,2}|[^\W\d_]{3,4}\.?)(?:[./\s-]\s?\d{2,4})?|[^\W\d_]{3,4}\.?[- /]\d{2}"
    r"|\d{4}-\d{2}-\d{2}.{0,9}"
)
MATCHED_SHARE = 0.5
"""A join that matches a smaller share of its rows prints a warning."""


def id_text(value: Any) -> str:
    """An id as text; empty for a missing one. A whole number is written without decimal point and exponent, whatever its type."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    text = str(value).strip()
    if _FLOAT.fullmatch(text):
        number = Decimal(text)
        if number == number.to_integral_value():
            return format(number.to_integral_value(), "f")
    return text


def known_as(known: Iterable[str]) -> Callable[[Any], str]:
    """A function that spells an id as in `known`, if it is there as it stands or as a whole number; other ids become texts.

    A generated pair id is known with and without its letter p, so files of earlier versions join files of this one. An id is known
    with the apostrophe that a csv file for people puts in front of it, too: the user may have deleted the column that says so.
    """
    exactly = set(known)
    by_text = {id_text(one): one for one in exactly}
    for one in exactly:
        if _GENERATED.fullmatch(one):
            by_text.setdefault(one[1:] if len(one) == 17 else f"p{one}", one)

    def spelled(value: Any) -> str:
        text = str(value)
        if text in exactly:
            return text
        found = by_text.get(id_text(value))
        return found or by_text.get(id_text(unescaped(text)), text)

    return spelled


def spreadsheet_hint(ids: Iterable[Any]) -> str:
    """A sentence, with a space before it, if an id looks as if a spreadsheet program has rewritten it; otherwise empty."""
    found = next((text for one in ids if _BY_A_SPREADSHEET.fullmatch(text := str(one)[:80].strip())), None)
    if found is None:
        return ""
    return (
        f" {found!r} looks like an id that a spreadsheet program such as Excel has rewritten: it keeps 15 digits of a number, "
        "drops leading zeros, and makes dates of ids such as 1-2 or MAR1. The original is not in this file any more: copy the "
        "column of ids from the file that was opened. To edit a file again, import it (Data > From Text/CSV) with this column "
        "as Text."
    )


@dataclass
class JoinCount:
    """Counts the rows of one table that another one has. table: name of the other table; key: the column with the id."""

    table: str
    key: str
    rows: int = field(default=0, init=False)
    matched: int = field(default=0, init=False)
    in_table: str | None = field(default=None, init=False)
    """An id of the table, for the error."""
    missing: str | None = field(default=None, init=False)

    def has(self, key: str) -> str:
        """Notes an id of the table, and returns it."""
        if key and self.in_table is None:
            self.in_table = key
        return key

    def looked_up(self, key: str, found: bool) -> None:
        """Counts one row that looks for its id in the table."""
        self.rows += 1
        self.matched += found
        if not found and self.missing is None:
            self.missing = key

    def check(self) -> None:
        """Raises LoreError if no row found its id; prints a warning if few did, or if the table is empty."""
        if not self.rows or self.matched >= MATCHED_SHARE * self.rows:
            return
        if self.in_table is None:
            say(f"warning: {self.table} has no rows, so all {self.rows:,} rows stay without its values")
            return
        about = f"such as {self.missing!r}; {self.table} has ids such as {self.in_table!r}"
        if not self.matched:
            raise LoreError(
                f"No {self.key} of {self.rows:,} rows is in {self.table} ({about}), so every pair would lose what it says.\n"
                f"Write the ids in the same way in both tables. To import without these values, keep only its header."
                f"{spreadsheet_hint([self.missing, self.in_table])}"
            )
        missed = self.rows - self.matched
        say(f"warning: the {self.key} of {missed:,} of {self.rows:,} rows is not in {self.table} ({about})")
