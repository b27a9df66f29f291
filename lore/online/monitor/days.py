"""The days of a shadow folder, with the judge's labels of them.

    rows = read_days("shadow/", "shadow_labels/")

`labels` is a folder of `lore label`, or a folder of such folders. One with the name of a day (2026-11-30) is asked first for that
day, so a pair that two judges have labeled keeps both labels apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lore.data.pair import market_of, query_key
from lore.data.tables.parquet_files import open_parquet
from lore.label.read import opened_labels, read_labels
from lore.label.schema import FAILURES, VERDICTS
from lore.online.answer import BANDS
from lore.online.metrics import BINS
from lore.online.shadow import MORE, shadow_files
from lore.support.errors import LoreError
from lore.support.progress import track

EPOCH = date(1970, 1, 1)
COLUMNS = ("pair_id", "query", "slices", "tier", "judge_id", "band", "score")
NOT_ASKED, NO_ANSWER = -2, -1


@dataclass
class Rows:
    """Answers of the student, one per pair and day; every array is [N]."""

    tier_ids: list[str]
    day: np.ndarray
    """Days since 1970."""
    pair_ids: np.ndarray
    queries: np.ndarray
    """Texts."""
    markets: np.ndarray
    query: np.ndarray
    """One integer per query of a market."""
    band: np.ndarray
    """Place in BANDS."""
    tier: np.ndarray
    """The student's tier, from 0."""
    score: np.ndarray
    """The student's score in [0, 1]."""
    student: np.ndarray
    """judge_id of the student."""
    judged: np.ndarray
    """The judge's tier; NO_ANSWER or NOT_ASKED."""
    probabilities: np.ndarray
    """[N, K] of the judge; nan if it gave none."""
    judge: np.ndarray
    """judge_id of the judge, "" without a label."""
    repeated: int = 0
    """Rows of pairs that the day already had: of other workers that were started again."""
    label_folders: list[Path] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.day)

    @property
    def is_judged(self) -> np.ndarray:
        return self.judged >= 0

    @property
    def score_bin(self) -> np.ndarray:
        """Bins of the score as in the metrics of the service."""
        return np.minimum(BINS - 1, (self.score * BINS).astype(np.int64))


@dataclass
class Labels:
    """What a judge has said. by_day: pair_id -> (tier, probabilities, judge_id) of a folder with the name of a day."""

    tier_ids: list[str]
    by_day: dict[int, dict[str, Any]]
    others: dict[str, Any]
    folders: list[Path]

    def of(self, day: int, pair_id: str) -> Any:
        found = self.by_day.get(day, {}).get(pair_id)
        return found if found is not None else self.others.get(pair_id)


def day_of(name: str) -> int | None:
    """Days since 1970 of 2026-11-30; None for other names."""
    try:
        return (date.fromisoformat(name) - EPOCH).days if len(name) == 10 else None
    except ValueError:
        return None


def label_folders(path: Path) -> list[Path]:
    """The label folders at a path: itself, or those in it. Raises LoreError if there are none."""
    if (path / VERDICTS).is_dir():
        return [path]
    found = sorted(folder for folder in path.iterdir() if (folder / VERDICTS).is_dir()) if path.is_dir() else []
    found = [folder for folder in found if any((folder / kind).glob("*.parquet") for kind in (VERDICTS, FAILURES))]
    if not found:
        raise LoreError(
            f"{path} holds no folder of `lore label`, so there are no labels to compare with.\nLabel a day first: lore label "
            f"shadow/DAY --judge runs/grpo -o {path}/DAY"
        )
    return found


def read_label_folder(folder: Path, tier_ids: list[str]) -> dict[str, tuple[int, Any, str]]:
    """pair_id -> (tier from 0 or NO_ANSWER, probabilities or None, judge_id) of one label folder."""
    found: dict[str, tuple[int, Any, str]] = {}
    place = {tier: at for at, tier in enumerate(tier_ids)}
    names = ["pair_id", "tier", "judge_id", *(f"p_{tier}" for tier in tier_ids)]
    for kind in (FAILURES, VERDICTS):
        for batch in read_labels(folder, names, kind=kind):
            columns = [column.to_pylist() for column in batch.columns]
            for pair_id, tier, judge, *probabilities in zip(*columns, strict=True):
                scored = None if None in probabilities else probabilities
                found[pair_id] = (place.get(tier, NO_ANSWER), scored, judge or "")
    return found


def read_all_labels(path: Path) -> Labels:
    """Raises LoreError for folders with different tiers."""
    folders = label_folders(path)
    tier_ids = opened_labels(folders[0]).tier_ids
    labels = Labels(tier_ids, {}, {}, folders)
    for folder in track(folders, "reading labels"):
        if (own := opened_labels(folder).tier_ids) != tier_ids:
            raise LoreError(
                f"{folder} has the tiers {', '.join(own)}, and {folders[0]} has {', '.join(tier_ids)}: labels of two rubrics "
                "cannot be one line over time. Move one of them elsewhere."
            )
        found, day = read_label_folder(folder, tier_ids), day_of(folder.name)
        if day is None:
            labels.others |= found
        else:
            labels.by_day[day] = found
    return labels


def read_days(shadow: Path, labels: Path | None = None, *, since: int | None = None) -> Rows:
    """since: the first day. Raises LoreError for a folder without rows, and for tiers that differ."""
    known = None if labels is None else read_all_labels(labels)
    columns: list[list[Any]] = [[] for _ in range(12)]
    seen: set[tuple[int, str]] = set()
    tier_ids: list[str] | None = None if known is None else known.tier_ids
    codes: dict[str, int] = {}
    repeated = 0
    for day, tiers, row in _rows(shadow, since):
        if tier_ids is None:
            tier_ids = tiers
        if tiers != tier_ids:
            raise LoreError(
                f"{shadow}: the student has the tiers {', '.join(tiers)}, and {labels or 'another day'} has {', '.join(tier_ids)}, "
                "so they cannot be compared. Name labels of the same rubric, or begin later with --since."
            )
        pair_id, query, slices, tier, student, band, score = row
        if (day, pair_id) in seen:
            repeated += 1
            continue
        seen.add((day, pair_id))
        label = None if known is None else known.of(day, pair_id)
        judged, probabilities, judge = label or (NOT_ASKED, None, "")
        market = market_of(slices or ())
        code = codes.setdefault(query_key(query, slices or ()), len(codes))
        values = (day, pair_id, query, market, code, BANDS.index(band), tier_ids.index(tier), score, student or "", judged)
        for column, value in zip(columns, (*values, probabilities or [np.nan] * len(tier_ids), judge), strict=True):
            column.append(value)
    if not columns[0]:
        raise LoreError(
            f"{shadow} has no answers of the student{'' if since is None else ' since that day'}, so there is nothing to report.\n"
            "Name the folder of shadow.folder; the service writes it with shadow: {share: 0.01, folder: ...}."
        )
    whole, text, number = np.int64, object, np.float64
    kinds = (whole, text, text, text, whole, whole, whole, number, text, whole, number, text)
    arrays = [np.asarray(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True)]
    return Rows(tier_ids or [], *arrays, repeated, [] if known is None else known.folders)


def _rows(shadow: Path, since: int | None) -> Iterator[tuple[int, list[str], tuple]]:
    """(day, tiers of the student, values of COLUMNS) of each row."""
    for path in track(list(shadow_files(shadow)), "reading the shadow folder"):
        day = day_of(path.parent.name)
        if day is None or (since is not None and day < since):
            continue
        with open_parquet(path, "Delete it, and the pairs of one file are missing.") as parquet:
            names = parquet.schema_arrow.names
            if lacks := [name for name in (*COLUMNS, *MORE.names) if name not in names]:
                raise LoreError(
                    f"{path} has no column {lacks[0]}, so it was not written by shadow mode. Move it out of {shadow}, or name the "
                    "folder of shadow.folder."
                )
            tiers = [name[2:] for name in names if name.startswith("p_")]
            for batch in parquet.iter_batches(columns=list(COLUMNS)):
                table = pa.table(batch).select(list(COLUMNS))
                yield from ((day, tiers, row) for row in zip(*(column.to_pylist() for column in table.columns), strict=True))
