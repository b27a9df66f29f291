"""Ranks the judges of many finished evaluations: one table per test set, one row per judge.

    lore leaderboard runs/*

Judges share a table only if they were tested on the same pairs with the same labels, rubric, weights, costs and prior. Rows are
not tested against each other here, and the best of many rows is partly luck: `lore compare` tells whether two of them
differ.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from glob import glob
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from lore.eval.compare.finished import (
    BASELINES,
    Finished,
    damage_named,
    damaged,
    estimate_of,
    found_apart,
    is_finished,
    read_run,
    why_not,
)
from lore.eval.compare.judge_predictions import tested
from lore.eval.measures.metrics import metric_names
from lore.eval.report.console import LOWER_IS_BETTER
from lore.eval.scorecard import Part, Scorecard
from lore.run.nested import runs_in
from lore.support.errors import LoreError
from lore.support.nearest import nearest_hint

SUFFIXES = (".md", ".csv", ".json")
STEM = "leaderboard"


@dataclass
class Row:
    """One judge of one run."""

    run: Finished
    judge: str
    card: Scorecard
    """card.name is the name of the row in the table. Of the measurements, only the whole test is filled in."""
    also_in: list[str] = field(default_factory=list)
    """Other runs with the same baseline and the same values."""

    def to_json(self) -> dict[str, Any]:
        entry = self.run.judges[self.judge]
        return {
            "name": self.card.name,
            "judge": self.judge,
            "run": self.run.name,
            "path": str(self.run.folder),
            "kind": self.card.kind,
            "how": self.card.how,
            "also_in": self.also_in,
            "metrics": self.card.whole.to_json()["metrics"],
            "under_prior": self.card.natural.to_json()["metrics"] if self.card.natural else None,
            "apart": {name: estimate.to_json() for name, estimate in found_apart(entry).items()},
        }


@dataclass
class Board:
    """The rows of one table, and the test set that they share."""

    test_set: dict[str, Any]
    rows: list[Row]

    @property
    def id(self) -> str:
        """16 hex digits over everything that identifies the test set."""
        return hashlib.blake2b(json.dumps(self.test_set, sort_keys=True).encode(), digest_size=8).hexdigest()

    @property
    def tiers(self) -> list[str]:
        return self.rows[0].run.tiers

    def sorted_by(self, metric: str, *, natural: bool = False) -> list[Row]:
        """Best first. Rows without the metric come last."""
        sign = 1 if metric in LOWER_IS_BETTER else -1

        def place(row: Row) -> tuple[bool, float]:
            part = row.card.natural if natural else row.card.whole
            value = part.metrics[metric].value if metric in part.metrics else float("nan")
            return isnan(value), 0.0 if isnan(value) else sign * value

        return sorted((row for row in self.rows if not natural or row.card.natural is not None), key=place)

    def __str__(self) -> str:
        test, measured = self.test_set, self.test_set["measured"]
        parts = [
            f"rubric {test['rubric']} ({test['rubric_hash']})",
            f"split {test['split']}: {test['pairs']:,} pairs of {test['queries']:,} queries",
            f"data {test['data_fingerprint'] or 'unknown'}, tested pairs {test['tested']}",
        ]
        parts += ["pairs counted by label_weight"] * measured["label_weights"]
        for name in ("prior", "gains"):
            if measured[name]:
                parts.append(f"{name} " + " ".join(f"{tier} {share:g}" for tier, share in measured[name].items()))
        costs = {name: measured[name] for name in ("border_cost", "optimism_cost") if measured[name] != 1.0}
        return "; ".join(parts + [f"{name} {value:g}" for name, value in costs.items()])


def leaderboard(paths: Sequence[str | Path]) -> tuple[list[Board], dict[str, str]]:
    """Finished evaluations in these folders as one board per test set, most rows first, and the skipped paths with the reason, such
    as a damaged file. Raises LoreError for a missing path, or if no evaluation can be ranked."""
    boards: dict[str, Board] = {}
    passed_over: dict[str, str] = {}
    for folder in _candidates(paths, passed_over):
        try:
            if not is_finished(folder):
                passed_over[str(folder)] = why_not(folder)
                continue
            found, rows = _read(folder)
        except LoreError as error:  # the other runs are ranked all the same
            passed_over[str(folder)] = " ".join(str(error).split())
            continue
        found = boards.setdefault(found.id, found)
        for row in rows:
            _add(found.rows, row)
    if not boards:
        what = "; ".join(f"{path} ({why})" for path, why in list(passed_over.items())[:10]) or "no path was given"
        raise LoreError(f"There is no finished evaluation to rank: {what}. Run a recipe of stage evaluate, or name other folders.")
    for found in boards.values():
        _name(found.rows)
    return sorted(boards.values(), key=lambda found: -len(found.rows)), passed_over


def _read(folder: Path) -> tuple[Board, list[Row]]:
    """An empty board of the run's test set, and the rows of its judges. Raises LoreError for a damaged run."""
    run = read_run(folder)
    with damage_named(folder):
        found = Board(_test_set(run), [])
        rows = [Row(run, judge, _card(run, judge, entry)) for judge, entry in run.judges.items()]
        found.id, str(found), [row.to_json() for row in rows]  # noqa: B018 (what cannot be written is damage too)
    return found, rows


def check_metrics(boards: list[Board], wanted: Sequence[str], by: str) -> None:
    """Raises LoreError for a column or sort key without a value for any judge."""
    known = {
        name: None
        for found in boards
        for name in metric_names(found.tiers)
        if any(not isnan(estimate.value) for row in found.rows if (estimate := row.card.whole.metrics.get(name)))
    }
    for option, name in (*(("--metric", name) for name in wanted), ("--by", by)):
        if name not in known:
            hint = nearest_hint(name, list(known))
            raise LoreError(f"{option} {name}: no judge has a value for it. Known metrics: {', '.join(known)}.{hint}")


def _candidates(paths: Sequence[str | Path], passed_over: dict[str, str]) -> Iterator[Path]:
    """Every run folder among the paths or inside them, each once."""
    seen = set()
    for path in _expanded(paths):
        if path.is_file():
            if path.stem != STEM or path.suffix not in SUFFIXES:  # earlier output of this command is skipped silently
                passed_over[str(path)] = why_not(path)
            continue
        for folder in sorted(runs_in(path)) or [path]:
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder


def _expanded(paths: Sequence[str | Path]) -> Iterator[Path]:
    for path in map(Path, paths):
        found = [path] if path.exists() else [Path(name) for name in sorted(glob(str(path)))]
        if not found:
            raise LoreError(f"{path} does not exist. Name run folders of finished evaluations, such as runs/*.")
        yield from found


def _test_set(run: Finished) -> dict[str, Any]:
    """Properties that two runs must share to be in one table."""
    data = run.data
    if any(not isinstance(data.get(key), int) for key in ("pairs", "queries")):
        raise damaged(run.folder, "metrics.json does not say how many pairs and queries were tested")
    return {
        "rubric": run.rubric["name"],
        "rubric_hash": run.rubric["hash"],
        "data_fingerprint": data.get("fingerprint"),
        "tested": tested(run),
        "split": data.get("split"),
        "pairs": data["pairs"],
        "queries": data["queries"],
        "measured": asdict(run.measured),
    }


def _card(run: Finished, judge: str, entry: dict[str, Any]) -> Scorecard:
    if not isinstance(entry.get("metrics"), dict):
        raise damaged(run.folder, f"metrics.json has no metrics of {judge!r}")
    under = entry.get("under_prior")
    return Scorecard(
        name=judge,
        kind=str(entry.get("kind", "")),
        how=str(entry.get("how", "")),
        whole=_part(entry),
        natural=_part(under) if under else None,
        slices={},
        confusion=np.asarray(entry.get("confusion") or []),
        reliability=None,
        reliability_calibrated=None,
        temperature=entry.get("temperature"),
    )


def _part(value: dict[str, Any]) -> Part:
    metrics = {name: estimate_of(estimate) for name, estimate in value["metrics"].items()}
    return Part(value.get("pairs", 0), value.get("queries", 0), metrics)


def _add(rows: list[Row], row: Row) -> None:
    """Adds a row, but merges a baseline that has the same values in several runs: every run trains it on the same pairs."""
    for other in rows:
        if row.card.kind in BASELINES and other.judge == row.judge and _values(other) == _values(row):
            other.also_in.append(row.run.name)
            return
    rows.append(row)


def _values(row: Row) -> tuple:
    """Kind and values. Intervals are left out, because they change with the seed and the number of resamples."""
    card = row.card
    parts = [part for part in (card.whole, card.natural) if part is not None]
    known = [sorted((name, e.value) for name, e in part.metrics.items() if not isnan(e.value)) for part in parts]
    return card.kind, known


def _name(rows: list[Row]) -> None:
    """Sets row names: the judge's name if it is unique, else with its run, else with its folder."""
    for more_of in (lambda row: row.run.name, lambda row: row.run.folder):
        times = Counter(row.card.name for row in rows)
        twice = [row for row in rows if times[row.card.name] > 1]
        for row in twice:
            row.card.name = f"{row.judge} ({more_of(row)})"
