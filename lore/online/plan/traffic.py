"""The traffic of a search log: how many queries are searched for how often, and how many items each of them shows.

    traffic = read_traffic(InputSection(path="log.parquet"), work=Path("plan/work"), table=Path("plan/frequencies.arrow"), days=30)

A log is what `lore label` reads: rows of query and item_id, with search ids, impressions or the number of searches where it has
them; User Behavior Insights; or a table of queries and their number of searches, without items. Everything is counted on disk
(lore.label.inputs.frequency), so memory does not grow with the log.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lore.data.importers.table import column_map
from lore.data.pair import MARKETS
from lore.data.rejected_rows import Rejection
from lore.label.config import InputSection
from lore.label.inputs.frequency import Rule, counts_between
from lore.label.inputs.open_input import input_fingerprint
from lore.label.inputs.questions import Raw
from lore.label.inputs.search_log import OTHER_NAMES, REQUIRED, TARGETS, count_log, count_rows
from lore.label.inputs.tables import Table
from lore.label.inputs.ubi import COLUMNS, UbiLog
from lore.online.frequencies import Frequencies, write_frequencies
from lore.support.errors import LoreError

STEPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
EDGES = np.asarray([0.0, *(float(f"{step}e{power}") for power in range(-3, 16) for step in STEPS)])
"""Numbers of searches at which a band may begin: round ones, so that a recipe with them is readable."""


@dataclass(frozen=True)
class Traffic:
    """Queries by their number of searches in the log. B bins, from rare to frequent; none is empty."""

    least: np.ndarray
    """[B] searches from which on a query is in the bin; values of EDGES."""
    queries: np.ndarray
    """[B] number of queries."""
    searches: np.ndarray
    """[B] searches of these queries."""
    items: np.ndarray | None
    """[B] distinct (query, item) pairs of the log; None for a log without items."""
    days: float
    """Length of the log."""
    counted: str
    """What a search is in this log."""

    @property
    def mean(self) -> np.ndarray:
        """[B] searches of a query, on average."""
        return self.searches / self.queries

    @property
    def searches_per_day(self) -> float:
        return float(self.searches.sum()) / self.days


def read_traffic(section: InputSection, *, work: Path, table: Path, days: float) -> tuple[Traffic, Frequencies]:
    """Counts a log, and writes its table of frequencies. work: folder for files that make the next start faster. days: length of
    the log. Raises LoreError for a log without searches."""
    work.mkdir(parents=True, exist_ok=True)
    searches, items, counted, name = (_ubi if section.ubi is not None else _log)(section, work)
    with closing(searches):
        write_frequencies(table, searches, days=days, source=Path(name).name)
        found = Frequencies.open(table)
        if not len(found) or not found.about["searches"] > 0:
            raise LoreError(f"{name} has no searches, so there is nothing to plan. Name a log with the column query (--map).")
        if items is None:
            return _binned(found, None, days, counted), found
        with closing(items):
            return _binned(found, items, days, counted), found


Counted = tuple[sqlite3.Connection, sqlite3.Connection | None, str, str]
"""Searches; items; what a search is; the name of the log."""


def _log(section: InputSection, work: Path) -> Counted:
    if section.path is None:
        raise LoreError("No log was named, so there is no traffic to plan for. Name it: lore plan log.parquet.")
    log = Table(section.path, "input.path", section.encoding, section.delimiter, section.hub_config, section.hub_split)
    names = log.columns()
    if section.map:
        columns = column_map(section.map, REQUIRED[:1], TARGETS, "--map of a log")
    else:
        known = {target: target if target in names else OTHER_NAMES.get(target, target) for target in TARGETS}
        columns = {target: name for target, name in known.items() if name in names or target == "query"}
    fingerprint = input_fingerprint([log], section, work)
    has_items = columns.get("item_id") in names

    def rows(*targets: str) -> Iterable[Raw | Rejection]:
        wanted = [columns[target] for target in ("query", "slices", *MARKETS, *targets) if target in columns]
        return log.read([columns["query"]], wanted, [columns[target] for target in targets if target != "item_id"])

    count = next((target for target in ("query_frequency", "impressions") if target in columns), None)
    rule: Rule = "frequencies" if has_items else "rows"  # without items, two spellings of a query are two rows of one query
    if count == "query_frequency" or (count and not has_items):
        counted = f"the column {columns[count]}"
        found = count_rows(rows(count), columns, rule, work / "log.sqlite", fingerprint, columns[count])
    else:
        counted = "the impressions of a query's most shown item" if count else "a search id" if "search_id" in columns else "a row"
        found = count_log(log, columns, work / "log.sqlite", fingerprint)
    items = None
    if has_items:
        items = count_rows(rows("item_id"), columns, "items", work / "items.sqlite", fingerprint)
    return found, items, counted, section.path


def _ubi(section: InputSection, work: Path) -> Counted:
    queries = Table(section.ubi.queries, "input.ubi.queries", section.encoding)
    events = None if section.ubi.events is None else Table(section.ubi.events, "input.ubi.events", section.encoding)
    fingerprint = input_fingerprint([queries, *([events] if events else [])], section, work)
    log = UbiLog(queries, events, work / "log.sqlite", fingerprint)
    items = count_rows(log.read(), COLUMNS, "items", work / "items.sqlite", fingerprint)
    return log.database, items, "a query_id", section.ubi.queries


def _binned(found: Frequencies, items: sqlite3.Connection | None, days: float, counted: str) -> Traffic:
    totals = np.zeros((3, len(EDGES)))
    for hashes, searches in found.blocks():
        bins = np.searchsorted(EDGES, searches, side="right") - 1
        totals[0] += np.bincount(bins, minlength=len(EDGES))
        totals[1] += np.bincount(bins, searches, len(EDGES))
        if items is not None:
            queries, counts = counts_between(items, hashes[0], hashes[-1])
            totals[2] += np.bincount(bins[np.searchsorted(hashes, queries)], counts, len(EDGES))
    there = np.flatnonzero((totals[0] > 0) & (totals[1] > 0))
    least, queries, searches = EDGES[there], totals[0, there], totals[1, there]
    return Traffic(least, queries, searches, None if items is None else totals[2, there], days, counted)
