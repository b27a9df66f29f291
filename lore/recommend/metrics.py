"""Rank metrics of next items, over the whole catalogue, by two rules: the history's items removed from the ranking, and not
removed.

HR@k: share of targets among the first k; NDCG@k: 1 / log2(rank + 1) within the first k; MRR: 1 / rank. With one target per history
NDCG@1 is HR@1. Nothing is sampled (Krichene and Rendle 2020). Items of equal score count as in random order: a metric is its mean
over all orders of the tied items, so a model that gives all items the same score has the metrics of a random one. A target that is
in the history is a miss where the history is removed, since it would not be shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lore.recommend.histories import Histories, Part, Recommender
from lore.support.errors import LoreError
from lore.support.progress import track

METRICS = ("HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR")
RULES = ("removed", "kept")
"""What happens to the items of the history."""
SHOWN = 10
SCORES_AT_ONCE = 2**25
"""Numbers in one block of scores: 128 MiB in float32."""


@dataclass(frozen=True)
class Measured:
    """One recommender on the targets of a part. values [2, N, M] float32: by RULES, target and METRICS. shown [V]: how often an
    item is among the first 10, history removed."""

    values: np.ndarray
    shown: np.ndarray


def gains(size: int) -> np.ndarray:
    """[M, size + 1]: each of METRICS for a target at rank 1, 2, ..., size; the last column is a miss."""
    rank = np.arange(1, size + 1)
    found = [rank <= cut for cut in (1, 5, 10)]
    found += [np.where(rank <= cut, 1 / np.log2(rank + 1), 0) for cut in (5, 10)]
    return np.concatenate([np.stack([*found, 1 / rank]).astype(np.float64), np.zeros((len(METRICS), 1))], axis=1)


def mean_gains(table: np.ndarray, above: np.ndarray, tied: np.ndarray) -> np.ndarray:
    """[N, M]: mean gain of the ranks above + 1 to above + 1 + tied. above, tied [N]: other items with a higher and with the same
    score as the target. table: see gains."""
    sums = np.concatenate([np.zeros((len(table), 1)), np.cumsum(table, axis=1)], axis=1)
    return ((sums[:, above + tied + 1] - sums[:, above]) / (tied + 1)).T


def measure(recommender: Recommender, histories: Histories, part: Part, title: str = "") -> Measured:
    """Scores the catalogue for every target of a part. title: of the progress bar. Raises LoreError for scores that are not
    numbers."""
    targets, size = histories.targets(part), len(histories.item_ids)
    table, shown = gains(size), np.zeros(size, dtype=np.int64)
    values = np.zeros((len(RULES), len(targets), len(METRICS)), dtype=np.float32)
    at_once = max(1, min(1024, SCORES_AT_ONCE // size))
    for start in track(range(0, len(targets), at_once), f"scores of {title or recommender.name}"):
        places = range(start, min(start + at_once, len(targets)))
        before = [histories.before(targets, at) for at in places]
        wanted = histories.items[targets.place[start : start + at_once]]
        scores = checked_scores(recommender, before, size)
        rows = np.arange(len(before))
        own = scores[rows, wanted][:, None]
        ranked = [(scores > own).sum(axis=1), (scores == own).sum(axis=1) - 1]
        taken = np.zeros_like(scores, dtype=bool)
        taken[np.repeat(rows, list(map(len, before))), np.concatenate(before)] = True
        missed = taken[rows, wanted]
        left = [ranked[0] - ((scores > own) & taken).sum(axis=1), ranked[1] - ((scores == own) & taken).sum(axis=1) + missed]
        left = [np.where(missed, size, left[0]), np.where(missed, 0, left[1])]
        for rule, (above, tied) in enumerate((left, ranked)):
            values[rule, start : start + at_once] = mean_gains(table, above, tied)
        scores[taken] = -np.inf
        np.add.at(shown, np.concatenate([best(row, SHOWN) for row in scores]), 1)
    return Measured(values, shown)


def checked_scores(recommender: Recommender, histories: list[np.ndarray], items: int) -> np.ndarray:
    """Scores [B, V] of a recommender in an array of the caller's own. Raises LoreError for another shape and for nan."""
    scores = np.array(recommender.scores(histories))
    if scores.shape != (len(histories), items):
        raise LoreError(
            f"{recommender.name} gives scores {scores.shape} for {len(histories):,} histories and a catalogue of {items:,} items.\n"
            "It was trained on another catalogue: name the items file of its training, or train it again."
        )
    if np.isnan(scores).any():
        raise LoreError(f"{recommender.name} gives scores that are not numbers (nan), so its items have no order. Train it again.")
    return scores


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """The k items of the highest scores [V], best first; equal ones in the order of the catalogue. Items of -inf are left out."""
    k = min(k, len(scores))
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    found = np.flatnonzero(scores >= least)
    found = found[np.argsort(-scores[found], kind="stable")][:k]
    return found[scores[found] > -np.inf]


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of counts [V]: 0 if all items are shown equally often, near 1 if one item takes all."""
    counts = np.sort(counts.astype(np.float64))
    if not counts.sum():
        return float("nan")
    rank = np.arange(1, len(counts) + 1)
    return float((2 * rank - len(counts) - 1) @ counts / (len(counts) * counts.sum()))
