"""A result log: which items were shown for which query, on which page, by which system, how often."""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lore.data.pair import make_pair_id
from lore.data.rejected_rows import Rejection, short, shown_value
from lore.data.tables.any_table import table_records
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint
from lore.support.progress import track
from lore.support.text import normalise

COLUMNS = ("query", "pair_id", "item_id", "page_id", "position", "system", "impressions")
MAX_REJECTED_SHARE = 0.01
"""Of a log's rows. Rows that cannot be read are seldom a random part of a log: beyond this its GoodRate would be another's."""
ALL = "all"


@dataclass
class Shown:
    """Rows of a log; every array has one entry per row, in the file's order."""

    path: Path
    pair_ids: np.ndarray
    """[N] texts."""
    queries: np.ndarray
    """[N] texts, as they stand in the log."""
    items: np.ndarray
    """[N] texts, empty where the log names none."""
    systems: np.ndarray
    """[N] texts; ALL where the log has no column for them."""
    page_ids: np.ndarray
    """[N] texts, empty where the log has no column for them."""
    positions: np.ndarray
    """[N]; nan where the log has none."""
    impressions: np.ndarray
    """[N], above 0."""
    below_top: int = 0
    """Rows left out because they stand lower on their page than was asked for."""
    rejected: list[Rejection] = field(default_factory=list)

    def __post_init__(self):
        self.clusters = _codes(self.queries)
        """[N] one integer per distinct query; case and spacing do not count."""
        pages: dict[tuple, int] = {}
        keys = zip(self.systems.tolist(), self.clusters.tolist(), self.page_ids.tolist(), strict=True)
        self.pages = np.asarray([pages.setdefault(key, len(pages)) for key in keys], dtype=np.int64)
        """[N] one integer per page: what a system showed for a query, split by page_id where there is one."""

    def __len__(self) -> int:
        return len(self.pair_ids)

    @property
    def n_queries(self) -> int:
        return len(np.unique(self.clusters))

    @property
    def system_names(self) -> list[str]:
        return sorted(set(self.systems))

    def at_top(self, count: int) -> np.ndarray:
        """[N] True for rows at the first `count` positions of their page. Positions are ranked, so they may start at 0 or 1."""
        if missing := int(np.isnan(self.positions).sum()):
            raise LoreError(
                f"{self.path}: {missing:,} of {len(self):,} rows have no position, so it is not known which are the first {count} "
                "of their page. Add the column position, or leave out --top."
            )
        distinct = sorted(set(zip(self.pages.tolist(), self.positions.tolist(), strict=True)))
        before, ranks = Counter(), {}
        for page, position in distinct:
            before[page] += 1
            ranks[page, position] = before[page]
        keep = [ranks[key] <= count for key in zip(self.pages.tolist(), self.positions.tolist(), strict=True)]
        return np.asarray(keep, dtype=bool)

    def only(self, keep: np.ndarray) -> "Shown":
        arrays = (self.pair_ids, self.queries, self.items, self.systems, self.page_ids, self.positions, self.impressions)
        left_out = self.below_top + int((~keep).sum())
        return Shown(self.path, *(array[keep] for array in arrays), left_out, self.rejected)


def read_log(path: Path) -> Shown:
    """A .parquet, .jsonl, .csv or .tsv file with one row per shown item. Rows that cannot be read are kept in `rejected`.

    Raises LoreError where they are more than MAX_REJECTED_SHARE of all, or where a column is missing.
    """
    rows, rejected, columns = [], [], set()
    for record in track(table_records(path, ["query"], list(COLUMNS)), "reading the log"):
        if isinstance(record, Rejection):
            rejected.append(record)
            continue
        columns |= record[1].keys()
        if not columns & {"pair_id", "item_id"}:
            raise LoreError(
                f"{path} has neither pair_id nor item_id, so it is not known what was shown. Found: {', '.join(columns)}."
                f"{nearest_hint('item_id', columns)} Rename the column."
            )
        row = _Row(path, *record)
        if row.problem:
            rejected.append(row.problem)
        else:
            rows.append(row.values)
    if not rows and not rejected:
        raise LoreError(f"{path} has no rows: there is no GoodRate of nothing. Name a log with one row per shown item.")
    if len(rejected) > MAX_REJECTED_SHARE * (len(rows) + len(rejected)):
        shown = "\n".join(f"  {problem}" for problem in rejected[:5])
        raise LoreError(
            f"{path}: {len(rejected):,} of {len(rows) + len(rejected):,} rows cannot be read, and what is left may be better or "
            f"worse than the whole; at most {MAX_REJECTED_SHARE:.0%} may be left out.\n{shown}\nCorrect the file."
        )
    pair_ids, queries, items, systems, pages, positions, impressions = zip(*rows, strict=True)
    for name, values in (("system", systems), ("page_id", pages)):
        if without := sum(not value for value in values):
            if without < len(values):
                raise LoreError(
                    f"{path}: {without:,} of {len(values):,} rows have no {name} and the others have one, so it is not known where "
                    "they belong. Fill it in, or leave the column out."
                )
    systems = systems if systems[0] else [ALL] * len(systems)
    texts = [np.asarray(column, dtype=object) for column in (pair_ids, queries, items, systems, pages)]
    numbers = [np.asarray(column, dtype=np.float64) for column in (positions, impressions)]
    return Shown(path, *texts, *numbers, rejected=rejected)


def text_of(value: Any) -> str | None:
    """A cell as text, '' where it is empty; None where it is no text, or no whole number."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # tables with a gap somewhere write whole numbers as 12.0
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        return None
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        return None  # a surrogate: bytes that are no text
    return value.strip()


def number_of(value: Any) -> float | None:
    """A cell as a number, nan where it is empty; None where it is none."""
    if value is None or value == "":
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isinf(number) or (isinstance(value, str) and math.isnan(number)) else number


class _Row:
    """One row, checked: its values in the order of Shown, or the first problem found."""

    def __init__(self, path: Path, row: int, cells: dict[str, Any]):
        self._where, self._cells = (str(path), row), cells
        self.problem: Rejection | None = None
        query = self._text("query", needed=True)
        pair_id, item = self._text("pair_id"), self._text("item_id")
        if not self.problem and not pair_id and not item:
            self._bad("pair_id", "empty", "a pair_id, or an item_id to make it from")
        system, page = self._text("system"), self._text("page_id")
        position, impressions = self._number("position"), self._number("impressions")
        if not self.problem and position < 0:
            self._bad("position", "out_of_range", "a number of at least 0")
        if not self.problem and impressions <= 0:
            self._bad("impressions", "out_of_range", "a number above 0; a row that was never shown is no row of a log")
        if not self.problem:
            weight = 1.0 if math.isnan(impressions) else impressions
            self.values = (pair_id or make_pair_id(query, item), query, item, system, page, position, weight)

    def _text(self, name: str, needed: bool = False) -> str:
        text = text_of(self._cells.get(name))
        if text is None or (needed and not text):
            self._bad(name, "field_type" if text is None else "empty", "a text")
        return text or ""

    def _number(self, name: str) -> float:
        number = number_of(self._cells.get(name))
        if number is None:
            self._bad(name, "field_type", "a number")
        return math.nan if number is None else number

    def _bad(self, name: str, reason: str, expected: str) -> None:
        found = shown_value(self._cells.get(name))
        self.problem = self.problem or Rejection(*self._where, name, reason, found, expected, short(self._cells))


def _codes(texts: np.ndarray) -> np.ndarray:
    codes: dict[str, int] = {}
    by_text = {text: codes.setdefault(normalise(text), len(codes)) for text in dict.fromkeys(texts)}
    return np.asarray([by_text[text] for text in texts], dtype=np.int64)
