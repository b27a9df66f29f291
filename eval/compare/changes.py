"""The pairs on which two judges disagree, with the direction of each change. The largest changes come first."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from lore.eval.compare.compare import Comparison
from lore.eval.compare.finished import Finished
from lore.eval.measures.metrics import NO_VERDICT
from lore.eval.testset import read_chosen
from lore.support.errors import LoreError

KINDS = (
    "right -> wrong",
    "wrong -> right",
    "wrong -> wrong",
    "relevant -> irrelevant",
    "irrelevant -> relevant",
    "verdict -> failure",
    "failure -> verdict",
)
FAILURE = "none"


def changed_pairs(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per pair whose verdict differs, sorted by the change in ordinal cost, then by the compared judge's confidence. A
    format failure counts as wrong."""
    first, second = comparison.baseline, comparison.compared
    tiers, gold = first.run.tiers, first.predictions.gold
    relevant = np.asarray(first.run.rubric["relevant"], dtype=bool)
    rows = []
    for at in np.flatnonzero(first.predictions.predicted != second.predictions.predicted).tolist():
        before, after = int(first.predictions.predicted[at]), int(second.predictions.predicted[at])
        kinds = [f"{_judged(before == gold[at])} -> {_judged(after == gold[at])}"]
        if before == NO_VERDICT or after == NO_VERDICT:
            kinds.append("failure -> verdict" if before == NO_VERDICT else "verdict -> failure")
        elif relevant[before] != relevant[after]:
            kinds.append("relevant -> irrelevant" if relevant[before] else "irrelevant -> relevant")
        rows.append(
            {
                "baseline": first.name,
                "compared": second.name,
                "pair_id": first.predictions.pair_ids[at],
                "query": first.predictions.queries[at],
                "title": None,
                "label": first.predictions.labels[at],
                "baseline_verdict": _verdict(before, tiers),
                "compared_verdict": _verdict(after, tiers),
                "changes": kinds,
                "cost_change": round(float(comparison.costs[gold[at], after] - comparison.costs[gold[at], before]), 6),
                "baseline_confidence": _confidence(first.predictions.probabilities, at, before),
                "compared_confidence": _confidence(second.predictions.probabilities, at, after),
                "slices": first.predictions.slices[at],
                "baseline_rationale": first.predictions.rationales[at],
                "compared_rationale": second.predictions.rationales[at],
            }
        )
    return sorted(rows, key=lambda row: (-abs(row["cost_change"]), -(row["compared_confidence"] or 0.0), row["pair_id"]))


def _judged(right: bool) -> str:
    return "right" if right else "wrong"


def _verdict(index: int, tiers: list[str]) -> str:
    return FAILURE if index == NO_VERDICT else tiers[index]


def _confidence(probabilities: np.ndarray | None, at: int, index: int) -> float | None:
    return None if probabilities is None or index == NO_VERDICT else round(float(probabilities[at, index]), 4)


def counted(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Pairs per kind of change. A pair has one kind of right or wrong, and a second kind if it crosses the relevance border."""
    counts = Counter(kind for row in rows for kind in row["changes"])
    return {kind: counts[kind] for kind in KINDS}


def add_titles(rows: list[dict[str, Any]], run: Finished) -> str | None:
    """Fills in the titles from the test pairs. Returns a message if they cannot be read, else None."""
    wanted = {row["pair_id"] for row in rows}
    path = run.data_files()
    if not wanted:
        return None
    if path is None:
        return f"titles are not shown: the test pairs {run.data.get('path') or ''} do not exist"
    try:
        titles = _titles(path, run.data.get("split") or "test", wanted)
    except (LoreError, OSError) as error:
        return f"titles are not shown: {error}"
    for row in rows:
        row["title"] = titles.get(row["pair_id"])
    return None


def _titles(path: Path, split: str, wanted: set[str]) -> dict[str, str]:
    return {pair.pair_id: pair.title for pair in read_chosen(path, split, wanted, ["pair_id", "query", "title"])}


def examples(rows: list[dict[str, Any]], limit: int) -> dict[str, list[dict[str, Any]]]:
    """The first `limit` rows on which the compared judge is worse, and on which it is better. At most one row per query, so one
    query's items do not fill the list."""
    found: dict[str, list[dict[str, Any]]] = {"worse": [], "better": []}
    seen: dict[str, set[str]] = {"worse": set(), "better": set()}
    for row in rows:
        way = "worse" if row["cost_change"] > 0 else "better"
        if row["cost_change"] and row["query"] not in seen[way] and len(found[way]) < limit:
            seen[way].add(row["query"])
            found[way].append(row)
    return found
