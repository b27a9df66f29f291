"""Reads single raters' labels of the test pairs, for rater agreement and the noise ceiling."""

from pathlib import Path

import numpy as np

from lore.data.rejected_rows import Rejection
from lore.data.tables.any_table import table_records
from lore.data.tables.ids import known_as, spreadsheet_hint
from lore.eval.measures.agreement import Ratings
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError

COLUMNS = ("pair_id", "rater", "label")
SHOWN = 5


def read_ratings(path: str | Path, rubric: Rubric, pair_ids: list[str]) -> Ratings:
    """Reads the ratings of the pairs `pair_ids` from a .parquet, .jsonl, .csv or .tsv file with columns pair_id, rater, label.

    rubric.tier_of maps each label to a tier. Raises LoreError that lists ids outside the test, labels that the rubric does not
    have, and pairs that one rater labeled twice. Test pairs without ratings are allowed and counted.
    """
    path = Path(path)
    position = {pair_id: index for index, pair_id in enumerate(pair_ids)}
    spelled, raters = known_as(position), {}
    seen, rows = set(), []
    unreadable, foreign, unknown, doubled = [], [], [], []
    for record in table_records(path, COLUMNS, (), what="metrics.ratings: ", is_number="label".__eq__):
        if isinstance(record, Rejection):
            unreadable.append(f"row {record.row} ({record.found})")
            continue
        number, row = record
        pair_id, rater = (_text(row.get(name)) for name in COLUMNS[:2])
        pair_id = spelled(pair_id)
        if not pair_id or not rater:
            unreadable.append(f"row {number} (no {'rater' if pair_id else 'pair_id'})")
            continue
        if pair_id not in position:
            foreign.append(pair_id)
            continue
        try:
            tier = rubric.tier_of(row.get("label"))
        except LoreError:
            unknown.append(f"{pair_id} ({str(row.get('label'))[:40]!r} of {rater})")
            continue
        if (pair_id, rater) in seen:
            doubled.append(f"{pair_id} (of {rater})")
        seen.add((pair_id, rater))
        rows.append((position[pair_id], raters.setdefault(rater, len(raters)), rubric.index(tier)))
    problems = {
        "rows that cannot be read": unreadable,
        "labels of pairs outside the test": foreign,
        f"labels that rubric {rubric.name} does not have": unknown,
        "pairs that one rater labeled twice": doubled,
    }
    lines = [f"  {len(found)} {what}: {_some(found)}" for what, found in problems.items() if found]
    if lines:
        raise LoreError(
            f"metrics.ratings {path} does not match the test pairs, and the agreement over only some rows would be misleading:\n"
            + "\n".join(lines)
            + f"\nWrite one row per pair and rater, with columns {', '.join(COLUMNS)}; labels are {', '.join(rubric.tier_ids)} or "
            f"their names in the rubric. Put ratings of another split into a separate file.{spreadsheet_hint(foreign)}"
        )
    pair, rater, tier = (np.asarray([row[column] for row in rows], dtype=np.int64) for column in range(3))
    return Ratings(pair, rater, tier, list(raters), len(pair_ids) - len(np.unique(pair)))


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _some(found: list[str]) -> str:
    return ", ".join(text[:80] for text in found[:SHOWN]) + (", …" if len(found) > SHOWN else "")
