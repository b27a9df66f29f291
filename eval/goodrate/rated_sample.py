"""A random sample of a result log for people to rate: drawing it, reading it back, matching it to the log."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lore.data.pair import MARKETS, make_pair_id
from lore.data.rejected_rows import Rejection, short, shown_value
from lore.data.tables.any_table import table_records
from lore.data.tables.csv import csv_text
from lore.data.tables.ids import id_text, known_as, spreadsheet_hint
from lore.eval.goodrate.log import Shown, market_of_cells, number_of, text_of
from lore.rubric.rubric import Rubric
from lore.support.atomic_files import written_whole
from lore.support.errors import LoreError
from lore.support.outputs import Output, checked_outputs, never

SHOWN = 5
FIELDS = ("pair_id", "query", "item_id", "system", "page_id", "label", "probability")


@dataclass
class Rated:
    """Labels of a log's rows; every array has one entry per row."""

    good: np.ndarray
    """1 or 0 from the label, nan without one."""
    drawn: np.ndarray
    """True if the row belongs to the sample, labeled or not."""
    chances: np.ndarray | None
    """Probability with which the row was drawn, nan for rows not drawn. None if the sample has no probabilities: all are equal."""
    labeled: int
    """Number of entries of the sample with a label; `unlabeled` counts those without."""
    unlabeled: int

    def pages(self, pages: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, str | None]:
        """good [P], chances [P] or None, and the reason if no page has a label, else None. pages [N]: the page of each row, from 0.

        A page counts as rated if all its rows are. A sample of single rows covers whole pages only by chance, and mostly short
        ones, so those pages do not represent the others.
        """
        sizes = np.bincount(pages)
        drawn = np.bincount(pages, self.drawn)
        if partly := int(((drawn > 0) & (drawn < sizes)).sum()):
            why = (
                f"of {int((drawn > 0).sum()):,} pages in the sample {partly:,} are there in part, so they were not drawn whole. "
                "Draw whole queries (lore goodrate sample --queries), or whole pages and name them in the sample with page_id and "
                "system."
            )
            return np.full(len(sizes), np.nan), None, why
        good = np.bincount(pages, np.where(self.drawn, self.good, 0.0))  # nan if any row of the page has no label
        good = np.where(np.isnan(good) | (drawn == 0), np.nan, good == sizes)
        if self.chances is None:
            return good, None, None
        low, high = np.full(len(sizes), np.inf), np.zeros(len(sizes))
        np.minimum.at(low, pages[self.drawn], self.chances[self.drawn])
        np.maximum.at(high, pages[self.drawn], self.chances[self.drawn])
        if (high > low * (1 + 1e-6))[drawn > 0].any():
            why = "rows of one page have different probabilities, so pages were not drawn as a whole. Draw whole queries or pages."
            return np.full(len(sizes), np.nan), None, why
        return good, np.where(drawn > 0, low, np.nan), None

    def only(self, keep: np.ndarray) -> "Rated":
        chances = None if self.chances is None else self.chances[keep]
        return Rated(self.good[keep], self.drawn[keep], chances, self.labeled, self.unlabeled)


def read_rated(path: Path, rubric: Rubric, log: Shown) -> Rated:
    """The sample's labels for the rows of the log. Columns: pair_id (or query and item_id) and label. Optional: probability, the
    probability in (0, 1] with which the entry was drawn, if it varies; system and page_id, if an entry is one row of the log and
    not a pair in all places where it is shown. An entry without a label was drawn but not rated.

    Raises LoreError that lists entries that are malformed, contradict each other or are not in the log.
    """
    labels: dict[tuple, float] = {}
    chances: dict[tuple, float] = {}
    wrong: list[str] = []
    names: tuple[str, ...] | None = None
    spelled = known_as(log.pair_ids)
    numbers = ("label", "probability").__contains__
    for record in table_records(path, ["label"], [*FIELDS, *MARKETS], is_number=numbers, may_be_short=True):
        if isinstance(record, Rejection):
            wrong.append(str(record))
            continue
        row, cells = record
        if names is None:
            names = tuple(name for name in ("system", "page_id") if text_of(cells.get(name)))
        problem, entry, good, chance = _entry(cells, names, rubric)
        entry = (spelled(entry[0]), *entry[1:])
        if problem is None and entry in labels and not _same((labels[entry], chances[entry]), (good, chance)):
            problem = ("label", cells.get("label"), f"the label and probability of the same pair above, {entry[0]}")
        if problem is None:
            labels[entry], chances[entry] = good, chance
        else:
            name, found, expected = problem
            wrong.append(str(Rejection(path.name, row, name, "value", short(shown_value(found)), expected)))
    without = sum(math.isnan(chance) for chance in chances.values())
    if 0 < without < len(chances):
        wrong.append(f"{path.name}: {without:,} of {len(chances):,} entries have no probability, and the others have one")
    keys = list(zip(log.pair_ids, *({"system": log.systems, "page_id": log.page_ids}[name] for name in names or ()), strict=True))
    in_log = set(keys)
    if not wrong and (foreign := [entry[0] for entry in labels if entry not in in_log]):
        more = ", …" if len(foreign) > SHOWN else ""
        wrong.append(f"{len(foreign):,} entries are not in the log: {', '.join(foreign[:SHOWN])}{more}.{spreadsheet_hint(foreign)}")
    if wrong:
        more = f"\n  and {len(wrong) - SHOWN:,} more" if len(wrong) > SHOWN else ""
        raise LoreError(
            f"{path} is not a sample of {log.path}, and a part of a sample gives biased estimates:\n"
            + "\n".join(f"  {line}" for line in wrong[:SHOWN])
            + f"{more}\nList every entry that was drawn from this log, once, with a label or an empty one."
        )
    good = np.asarray([labels.get(key, math.nan) for key in keys], dtype=np.float64)
    drawn = np.asarray([key in labels for key in keys], dtype=bool)
    chance = None if without or not chances else np.asarray([chances.get(key, math.nan) for key in keys], dtype=np.float64)
    unlabeled = sum(math.isnan(label) for label in labels.values())
    return Rated(good, drawn, chance, len(labels) - unlabeled, unlabeled)


def nothing_rated(log: Shown) -> Rated:
    return Rated(np.full(len(log), np.nan), np.zeros(len(log), dtype=bool), None, 0, 0)


def _entry(cells: dict, names: tuple[str, ...], rubric: Rubric) -> tuple[tuple | None, tuple, float, float]:
    """The problem (field, found, expected) or None; the entry's key; 1, 0 or nan; its probability or nan."""
    pair_id, query, item = (text_of(cells.get(name)) for name in ("pair_id", "query", "item_id"))
    pair_id = pair_id or (make_pair_id(query, id_text(item), market_of_cells(cells)) if query and item else "")
    more = tuple(text_of(cells.get(name)) for name in names)
    chance, label = number_of(cells.get("probability")), text_of(cells.get("label"))
    good, problem = math.nan, None
    if not pair_id:
        problem = ("pair_id", cells.get("pair_id"), "a pair_id, or query and item_id to derive it from")
    elif not all(more):
        name = names[more.index(next(value for value in more if not value))]
        problem = (name, cells.get(name), "a text, as in the first row")
    elif chance is None or chance <= 0 or chance > 1:
        problem = ("probability", cells.get("probability"), "a number above 0 and at most 1, or none in all rows")
    elif label is None:
        problem = ("label", cells.get("label"), "a tier, or empty")
    elif label:
        try:
            good = float(rubric.relevant_mask[rubric.index(rubric.tier_of(label))])
        except LoreError as error:
            problem = ("label", label, str(error))
    return problem, (pair_id, *more), good, math.nan if chance is None else chance


def _same(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in zip(one, other, strict=True))


def draw(
    log: Shown, count: int, unit: Literal["pair", "query"], seed: int = 0, strata: tuple[np.ndarray, Sequence[int]] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """drawn [N] and chances [N] for the rows of a log: draws `count` pairs or queries with probabilities proportional to their
    impressions, at most 1.

    Systematic sampling in random order (Madow 1949, Annals of Mathematical Statistics 20): the number drawn is exact and every
    probability is known. Rows with a large weight in the GoodRate are the most likely to be rated. strata: (stratum [N] of each
    row, number to draw from each), in place of `count`.
    """
    units = log.clusters if unit == "query" else np.unique(log.pair_ids.astype(str), return_inverse=True)[1].reshape(-1)
    mass = np.bincount(units, log.impressions)
    stratum, counts = np.zeros(len(mass), dtype=np.int64), [count]
    if strata is not None:
        stratum[units], counts = strata
    rng = np.random.default_rng(seed)
    chance, picked = np.zeros(len(mass)), np.zeros(len(mass), dtype=bool)
    for number, wanted in enumerate(counts):
        inside = np.flatnonzero(stratum == number)
        if wanted > len(inside) or (wanted == len(inside) > 0 and (strata is None or wanted == len(mass))):
            what = "queries" if unit == "query" else "pairs"
            part = "" if strata is None else f" in stratum {number + 1} of {len(counts)}"
            raise LoreError(
                f"{log.path} has {len(inside):,} {what}{part}, so {wanted:,} of them are not a random sample. "
                "Ask for fewer. If you rate all of them, there is nothing to estimate."
            )
        if not wanted:
            continue
        chance[inside] = capped_shares(mass[inside], wanted)
        order = inside[rng.permutation(len(inside))]
        steps = np.floor(np.concatenate([[0.0], np.cumsum(chance[order])]) + rng.random())
        picked[order] = np.diff(steps) > 0
    return picked[units], chance[units]


def capped_shares(mass: np.ndarray, count: int) -> np.ndarray:
    """Probabilities [U] proportional to mass, at most 1, that sum to `count`, at most U."""
    if count >= len(mass):
        return np.ones(len(mass))
    sure = np.zeros(len(mass), dtype=bool)
    while True:
        chance = np.where(sure, 1.0, mass * (count - sure.sum()) / mass[~sure].sum())
        over = ~sure & (chance >= 1)
        if not over.any():
            return chance
        sure |= over


def write_draw(
    log: Shown,
    out: Path,
    count: int,
    unit: Literal["pair", "query"],
    seed: int = 0,
    *,
    strata: tuple[np.ndarray, Sequence[int]] | None = None,
    force: bool = False,
) -> int:
    """Writes the drawn pairs, each once, as a csv file with an empty label. Returns their number. Raises LoreError if the file
    exists, unless `force` is set: it may contain labels."""
    (target,) = checked_outputs([Output(out, never)], [log.path], force=force)
    drawn, chances = draw(log, count, unit, seed, strata)
    rows = {log.pair_ids[i]: (log.queries[i], log.items[i], _nine_digits(chances[i]), "") for i in np.flatnonzero(drawn)}
    text = csv_text(["pair_id", "query", "item_id", "probability", "label"], [(pair_id, *rest) for pair_id, rest in rows.items()])
    with written_whole(target) as file:
        file.write(text.encode("utf-8"))
    return len(rows)


def _nine_digits(chance: float) -> float | int:
    number = float(f"{chance:.9g}")
    return int(number) if number.is_integer() else number
