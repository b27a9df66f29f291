"""Confusion matrices of labels and verdicts, and their Macro-F1: for the evaluation and for periodic evaluation in training."""

from collections.abc import Sequence

import numpy as np

from lore.rubric.rubric import Rubric

NO_VERDICT = -1
"""Predicted index of a format failure."""


def confusion_matrix(
    gold: np.ndarray, predicted: np.ndarray, tiers: int, weights: np.ndarray | None = None, groups: np.ndarray | None = None
) -> np.ndarray:
    """[G, K, K + 1] summed weights: gold tier by predicted tier. The last column counts format failures.

    gold, predicted [N]: tier indices, or NO_VERDICT in predicted. weights [N]: 1 each if None. groups [N]: integers from 0, all 0
    if None.
    """
    groups = np.zeros(gold.size, dtype=np.int64) if groups is None else groups
    n_groups = int(groups.max()) + 1 if gold.size else 1
    column = np.where(predicted == NO_VERDICT, tiers, predicted)
    cell = (groups * tiers + gold) * (tiers + 1) + column
    counted = np.bincount(cell, weights, n_groups * tiers * (tiers + 1)).astype(np.float64, copy=False)
    return counted.reshape(n_groups, tiers, tiers + 1)


def confusion_of(verdicts: Sequence[tuple[str, str | None]], rubric: Rubric) -> np.ndarray:
    """[K, K + 1] counts of (label, verdict); a verdict of None is a format failure. Raises LoreError for an unknown tier."""
    gold = np.array([rubric.index(label) for label, _ in verdicts], dtype=np.int64)
    predicted = np.array([NO_VERDICT if tier is None else rubric.index(tier) for _, tier in verdicts], dtype=np.int64)
    return confusion_matrix(gold, predicted, len(rubric.tier_ids))[0]


def tier_f1(confusion: np.ndarray) -> np.ndarray:
    """[..., K] F1 of each tier from [..., K, K + 1] counts; nan for a tier that occurs in neither labels nor verdicts.

    A format failure is a false negative of the gold tier and no tier's false positive.
    """
    answered = confusion[..., :-1]
    hits = np.diagonal(answered, axis1=-2, axis2=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 2 * hits / (confusion.sum(axis=-1) + answered.sum(axis=-2))


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """[...] mean F1 over the tiers that occur in labels or verdicts (scikit-learn's default); nan if none occurs."""
    f1 = tier_f1(confusion)
    present = ~np.isnan(f1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(present, f1, 0.0).sum(axis=-1) / present.sum(axis=-1)
