"""One judge's predictions in a finished evaluation: its rows of predictions.parquet, one per test pair."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lore.eval.compare.finished import Finished, damage_named, damaged, read_columns
from lore.eval.measures.metrics import NO_VERDICT, count, total
from lore.judge.verdict import Verdict, from_row

COLUMNS = ("pair_id", "query", "label", "slices", "tier", "failure", "rationale")


@dataclass
class JudgePredictions:
    """One judge's verdicts from predictions.parquet. One entry per pair, in file order."""

    pair_ids: list[str]
    queries: list[str]
    labels: list[str]
    slices: list[list[str]]
    gold: np.ndarray
    """[N] tier indices."""
    predicted: np.ndarray
    """[N] tier indices or NO_VERDICT."""
    probabilities: np.ndarray | None
    """[N, K], uniform for a pair without a verdict; None if the judge gives no probabilities."""
    rationales: list[str]
    failures: list[str | None]

    def __len__(self) -> int:
        return len(self.pair_ids)

    def taken(self, order: list[int]) -> "JudgePredictions":
        """The pairs at these positions, in this order."""
        arrays = {
            name: None if values is None else values[order] if isinstance(values, np.ndarray) else [values[i] for i in order]
            for name, values in vars(self).items()
        }
        return JudgePredictions(**arrays)


def read_judge_predictions(run: Finished, judge: str) -> JudgePredictions:
    """Reads one judge's predictions. Raises LoreError if they are missing or do not match metrics.json."""
    with damage_named(run.folder or run.predictions):
        return _read(run, judge, run.folder or run.predictions)


def _read(run: Finished, judge: str, where: Path) -> JudgePredictions:
    table = read_columns(run, [*COLUMNS, *(f"p_{tier}" for tier in run.tiers)], judge)
    if absent := [name for name in COLUMNS if name not in table.column_names]:
        raise damaged(where, f"its predictions have no column {', '.join(absent)}")
    ids = table["pair_id"].to_pylist()
    if not ids:
        raise damaged(where, f"its predictions have no rows of judge {judge!r}, which metrics.json names")
    if len(set(ids)) < len(ids):
        raise damaged(where, f"{len(ids) - len(set(ids))} of the {len(ids)} pairs of judge {judge!r} appear twice")
    index = {tier: at for at, tier in enumerate(run.tiers)}
    labels, verdicts = table["label"].to_pylist(), [from_row(row, run.tiers) for row in table.to_pylist()]
    tiers = [verdict.tier for verdict in verdicts]
    if strange := sorted(str(tier) for tier in {*labels, *tiers} - index.keys() if tier is not None or tier in labels):
        raise damaged(where, f"its predictions name tiers that rubric {run.rubric['name']} does not have: {', '.join(strange[:5])}")
    predicted = np.asarray([NO_VERDICT if tier is None else index[tier] for tier in tiers], dtype=np.int64)
    predictions = JudgePredictions(
        pair_ids=ids,
        queries=table["query"].to_pylist(),
        labels=labels,
        slices=[names or [] for names in table["slices"].to_pylist()],
        gold=np.asarray([index[label] for label in labels], dtype=np.int64),
        predicted=predicted,
        probabilities=_probabilities(verdicts, len(run.tiers), predicted),
        rationales=[verdict.rationale for verdict in verdicts],
        failures=[verdict.failure for verdict in verdicts],
    )
    _check_counts(run, judge, predictions)
    return predictions


def tested(run: Finished) -> str:
    """16 hex digits over the test pairs and their labels. Runs with other limits or seeds test other pairs of the same data."""
    judge = next(iter(run.judges))
    table = read_columns(run, ["pair_id", "label"], judge)
    rows = sorted(zip(table["pair_id"].to_pylist(), table["label"].to_pylist(), strict=True), key=str)
    return hashlib.blake2b(json.dumps(rows).encode(), digest_size=8).hexdigest()


def _probabilities(verdicts: list[Verdict], tiers: int, predicted: np.ndarray) -> np.ndarray | None:
    found = np.array([verdict.probabilities or [np.nan] * tiers for verdict in verdicts], dtype=np.float64)
    known = ~np.isnan(found).any(axis=1)
    if not known.any() or not known[predicted != NO_VERDICT].all():
        return None
    return np.where(known[:, None], found, 1 / tiers)


def _check_counts(run: Finished, judge: str, predictions: JudgePredictions) -> None:
    """Detects copied or edited files by the confusion matrix. Weighted matrices cannot be checked: the file has no weights."""
    entry = run.judges[judge]
    if entry.get("pairs") not in (None, len(predictions)):
        found = f"metrics.json counts {entry['pairs']} pairs of {judge!r}, its predictions hold {len(predictions)}"
        raise damaged(run.folder, found)
    written = entry.get("confusion")
    if written is None or run.measured.label_weights:
        return
    counted = total(count(predictions.gold, predictions.predicted, len(run.tiers))).confusion
    if np.shape(written) != counted.shape or not np.allclose(written, counted, atol=0.01):
        raise damaged(run.folder, f"metrics.json and predictions.parquet disagree about the verdicts of {judge!r}")


