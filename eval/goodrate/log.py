"""A result log: the items shown for each query, with page, system and number of impressions."""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lore.data.pair import MARKETS, make_pair_id, market_of, query_key
from lore.data.rejected_rows import Rejection, short, shown_value
from lore.data.tables.any_table import table_records
from lore.data.tables.ids import id_text
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint
from lore.support.progress import track
from lore.support.text import printable

COLUMNS = ("query", "pair_id", "item_id", "page_id", "position", "system", "impressions")
MAX_REJECTED_SHARE = 0.01
"""Share of a log's rows that may be unreadable. They are rarely a random sample, so with more the GoodRate would be biased."""
ALL = "all"


@dataclass
class Shown:
    """Rows of a log. Every array has one entry per row, in file order."""

    path: Path
    pair_ids: np.ndarray
    """[N] texts."""
    queries: np.ndarray
    """[N] texts, as written in the log."""
    items: np.ndarray
    """[N] texts, empty if the log has none."""
    systems: np.ndarray
    """[N] texts; ALL if the log has no such column."""
    page_ids: np.ndarray
    """[N] texts, empty if the log has no such column."""
    positions: np.ndarray
    """[N]; nan if the log has none."""
    impressions: np.ndarray
    """[N], above 0."""
    below_top: int = 0
    """Number of rows left out because they are below the requested positions of their page."""
    rejected: list[Rejection] = field(default_factory=list)
    markets: np.ndarray | None = None
    """[N] texts, see lore.data.pair.market_of; empty if the log has no column locale or market."""

    def __post_init__(self):
        if self.markets is None:
            self.markets = np.full(len(self.queries), "", dtype=object)
        self.clusters = _codes(self.queries, self.markets)
        """[N] one integer per distinct query of a market; case and spacing are ignored."""
        pages: dict[tuple, int] = {}
        keys = zip(self.systems.tolist(), self.clusters.tolist(), self.page_ids.tolist(), strict=True)
        self.pages = np.asarray([pages.setdefault(key, len(pages)) for key in keys], dtype=np.int64)
        """[N] one integer per page: the rows of one system and query, split by page_id if there is one."""

    def __len__(self) -> int:
        return len(self.pair_ids)

    @property
    def n_queries(self) -> int:
        return len(np.unique(self.clusters))

    def at_top(self, count: int) -> np.ndarray:
        """[N] True for rows at the first `count` positions of their page. Positions are ranked, so they may start at 0 or 1."""
        if missing := int(np.isnan(self.positions).sum()):
            raise LoreError(
                f"{self.path}: {missing:,} of {len(self):,} rows have no position, so the first {count} of their page are unknown. "
                "Add the column position, or drop --top."
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
        return Shown(self.path, *(array[keep] for array in arrays), left_out, self.rejected, self.markets[keep])


def read_log(path: Path) -> Shown:
    """Reads a .parquet, .jsonl, .csv or .tsv file with one row per shown item. Unreadable rows go to `rejected`.

    Raises LoreError if they are more than MAX_REJECTED_SHARE of all rows, or if a column is missing.
    """
    rows, rejected, columns = [], [], set()
    counts = ("position", "impressions").__contains__
    records = table_records(path, ["query"], [*COLUMNS, *MARKETS], is_number=counts, is_grouped=counts)
    for record in track(records, "reading the log"):
        if isinstance(record, Rejection):
            rejected.append(record)
            continue
        columns |= record[1].keys()
        if not columns & {"pair_id", "item_id"}:
            raise LoreError(
                f"{path} has neither pair_id nor item_id, so the shown items are unknown. Found: {printable(', '.join(columns))}."
                f"{nearest_hint('item_id', columns)} Rename the column."
            )
        row = _Row(path, *record)
        if row.problem:
            rejected.append(row.problem)
        else:
            rows.append(row.values)
    if not rows and not rejected:
        raise LoreError(f"{path} has no rows, so there is no GoodRate. Name a log with one row per shown item.")
    if len(rejected) > MAX_REJECTED_SHARE * (len(rows) + len(rejected)):
        shown = "\n".join(f"  {problem}" for problem in rejected[:5])
        raise LoreError(
            f"{path}: {len(rejected):,} of {len(rows) + len(rejected):,} rows cannot be read, and the others may be better or "
            f"worse than the whole log; at most {MAX_REJECTED_SHARE:.0%} may be left out.\n{shown}\nCorrect the file."
        )
    pair_ids, queries, items, systems, pages, positions, impressions, markets = zip(*rows, strict=True)
    for name, values in (("system", systems), ("page_id", pages)):
        if without := sum(not value for value in values):
            if without < len(values):
                raise LoreError(
                    f"{path}: {without:,} of {len(values):,} rows have no {name}, but others have one, so they cannot be grouped. "
                    "Fill it in for every row, or drop the column."
                )
    systems = systems if systems[0] else [ALL] * len(systems)
    texts = [np.asarray(column, dtype=object) for column in (pair_ids, queries, items, systems, pages)]
    numbers = [np.asarray(column, dtype=np.float64) for column in (positions, impressions)]
    return Shown(path, *texts, *numbers, rejected=rejected, markets=np.asarray(markets, dtype=object))


def market_of_cells(cells: dict[str, Any]) -> str:
    """The market of a row with the columns locale or market, as a pair with the slice `locale:us` has it."""
    return market_of(f"{name}:{text}" for name in MARKETS if (text := text_of(cells.get(name))))


def text_of(value: Any) -> str | None:
    """A cell as text; '' if it is empty, None if it is neither a text nor a whole number."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # tables with missing cells write whole numbers as 12.0
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        return None
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        return None  # a surrogate: bytes that are not text
    return value.strip()


def number_of(value: Any) -> float | None:
    """A cell as a number; nan if it is empty, None if it is not a number."""
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
    """One checked row: its values in the order of Shown, or the first problem found."""

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
            self._bad("impressions", "out_of_range", "a number above 0; drop rows that were never shown")
        if not self.problem:
            weight = 1.0 if math.isnan(impressions) else impressions
            market, item = market_of_cells(cells), id_text(item)
            pair_id = pair_id or make_pair_id(query, item, market)
            self.values = (pair_id, query, item, system, page, position, weight, market)

    def _text(self, name: str, needed: bool = False) -> str:
        text = text_of(self._cells.get(name))
        if text is None or (needed and not text):
            self._bad(name, "field_type" if text is None else "empty", "a text in UTF-8" if text is None else "a text")
        return text or ""

    def _number(self, name: str) -> float:
        number = number_of(self._cells.get(name))
        if number is None:
            self._bad(name, "field_type", "a number")
        return math.nan if number is None else number

    def _bad(self, name: str, reason: str, expected: str) -> None:
        found = shown_value(self._cells.get(name))
        self.problem = self.problem or Rejection(*self._where, name, reason, found, expected, short(self._cells))


def _codes(texts: np.ndarray, markets: np.ndarray) -> np.ndarray:
    codes: dict[str, int] = {}
    said = list(zip(texts.tolist(), markets.tolist(), strict=True))
    code_of = {
        (text, market): codes.setdefault(query_key(text, market.split("\x1f") if market else ()), len(codes))
        for text, market in dict.fromkeys(said)
    }
    return np.asarray([code_of[one] for one in said], dtype=np.int64)
