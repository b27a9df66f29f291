"""Relevance metrics of verdicts against human labels, for any number of ordered tiers.

Every metric is computed from summed counts (a confusion matrix, and calibration bins), so that the bootstrap can
measure a thousand resamples in one array operation. Where scikit-learn has the metric the value is scikit-learn's; a
test holds the two equal.

A judge that gave no valid verdict is a *format failure* (predicted index NO_VERDICT). It is never dropped:
- Acc@2, Acc@K: wrong.
- F1 of a tier: a miss of the gold tier, a false alarm of none.
- QWK: as if it had answered the tier farthest from the label (between two, the worse tier).
- ECE: a wrong answer given with the confidence of a guess, 1 / number of tiers.
- failure_rate: its share, reported by itself.
"""

from dataclasses import dataclass

import numpy as np

from lore.errors import LoreError

NO_VERDICT = -1
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Counts:
    """Summed pair weights; the leading axes are free (none for a total, [Q] for one entry per query, [S] for
    resamples)."""

    confusion: np.ndarray
    """[..., K, K + 1]: gold tier by predicted tier; the last column holds the format failures."""
    bins: np.ndarray | None
    """[..., CALIBRATION_BINS, 3]: weight, weighted confidence, weighted correctness; None when the judge gives no
    probabilities."""


def count(
    gold: np.ndarray,
    predicted: np.ndarray,
    tiers: int,
    *,
    confidence: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Counts:
    """Counts of N verdicts, in one total or, with `groups` (integers from 0), one entry per group.

    gold [N] tier indices; predicted [N] tier indices or NO_VERDICT; confidence [N] probability of the verdict given,
    see `confidence_of`.
    """
    gold, predicted = np.asarray(gold, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if gold.shape != predicted.shape:
        raise ValueError(f"{gold.size} labels and {predicted.size} verdicts: one verdict is needed for every label")
    if gold.size and not (
        0 <= gold.min() and gold.max() < tiers and NO_VERDICT <= predicted.min() and predicted.max() < tiers
    ):
        raise ValueError(f"tier indices must lie in 0..{tiers - 1} ({NO_VERDICT} for no verdict)")
    weights = np.ones(gold.size) if weights is None else np.asarray(weights, dtype=np.float64)
    groups = np.zeros(gold.size, dtype=np.int64) if groups is None else np.asarray(groups, dtype=np.int64)
    n_groups = int(groups.max()) + 1 if gold.size else 1

    column = np.where(predicted == NO_VERDICT, tiers, predicted)
    cell = (groups * tiers + gold) * (tiers + 1) + column
    confusion = np.bincount(cell, weights, n_groups * tiers * (tiers + 1)).reshape(n_groups, tiers, tiers + 1)
    bins = None
    if confidence is not None:
        confidence = np.asarray(confidence, dtype=np.float64)
        slot = groups * CALIBRATION_BINS + bin_of(confidence)
        size = n_groups * CALIBRATION_BINS
        columns = (weights, weights * confidence, weights * (gold == predicted))
        bins = np.stack([np.bincount(slot, values, size) for values in columns], axis=-1).reshape(
            n_groups, CALIBRATION_BINS, 3
        )
    return Counts(confusion, bins)


def total(counts: Counts) -> Counts:
    """Sums over the leading axis."""
    return Counts(counts.confusion.sum(axis=0), None if counts.bins is None else counts.bins.sum(axis=0))


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """Equal-width bin of each confidence; 1.0 belongs to the last."""
    return np.clip((np.asarray(confidence) * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)


def confidence_of(probabilities: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """[N] probability of the verdict given, from probabilities [N, K]; a format failure has the confidence of a
    guess."""
    probabilities, predicted = np.asarray(probabilities, dtype=np.float64), np.asarray(predicted, dtype=np.int64)
    chosen = np.take_along_axis(probabilities, np.maximum(predicted, 0)[:, None], axis=1)[:, 0]
    return np.where(predicted == NO_VERDICT, 1.0 / probabilities.shape[1], chosen)


def metric_names(tier_ids: list[str]) -> list[str]:
    return ["acc_2", "acc_k", "macro_f1", *(f"f1_{tier}" for tier in tier_ids), "qwk", "ece", "failure_rate"]


def measure(counts: Counts, tier_ids: list[str], relevant: list[bool]) -> dict[str, np.ndarray]:
    """Every metric, shaped like the leading axes of the counts; nan where a metric is not defined.

    Macro-F1 is the mean over the tiers that occur among labels or verdicts (scikit-learn's default); a tier that occurs
    in neither has no F1. QWK is not defined when labels and verdicts are all one and the same tier, ECE not without
    probabilities.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        confusion = counts.confusion
        tiers = len(tier_ids)
        weight = confusion.sum(axis=(-2, -1))
        answered = confusion[..., :tiers]
        mask = np.asarray(relevant, dtype=bool)
        same_side = mask[:, None] == mask[None, :]
        hits = np.diagonal(answered, axis1=-2, axis2=-1)

        values = {"acc_2": (answered * same_side).sum(axis=(-2, -1)) / weight, "acc_k": hits.sum(axis=-1) / weight}
        f1 = 2 * hits / (confusion.sum(axis=-1) + answered.sum(axis=-2))
        present = ~np.isnan(f1)
        values["macro_f1"] = np.where(present, f1, 0.0).sum(axis=-1) / present.sum(axis=-1)
        values |= {f"f1_{tier}": f1[..., index] for index, tier in enumerate(tier_ids)}
        values["qwk"] = quadratic_kappa(confusion)
        values["ece"] = (
            np.full(weight.shape, np.nan) if counts.bins is None else expected_calibration_error(counts.bins)
        )
        values["failure_rate"] = confusion[..., tiers].sum(axis=-1) / weight
    return values


def quadratic_kappa(confusion: np.ndarray) -> np.ndarray:
    """Quadratically weighted Cohen's kappa from [..., K, K + 1] counts, failures moved to the tier farthest from the
    label."""
    tiers = confusion.shape[-2]
    index = np.arange(tiers)
    farthest = np.where(index >= tiers - 1 - index, 0, tiers - 1)
    filled = confusion[..., :tiers].copy()
    filled[..., index, farthest] += confusion[..., tiers]
    cost = (index[:, None] - index[None, :]) ** 2
    weight = filled.sum(axis=(-2, -1))
    by_chance = filled.sum(axis=-1)[..., :, None] * filled.sum(axis=-2)[..., None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1.0 - weight * (filled * cost).sum(axis=(-2, -1)) / (by_chance * cost).sum(axis=(-2, -1))


def expected_calibration_error(bins: np.ndarray) -> np.ndarray:
    """Mean distance between confidence and accuracy over the bins, weighted by their share (Guo et al. 2017, equation
    3)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs(bins[..., 1] - bins[..., 2]).sum(axis=-1) / bins[..., 0].sum(axis=-1)


def prior_weights(gold: np.ndarray, prior: list[float], weights: np.ndarray | None = None) -> np.ndarray:
    """Pair weights [N] under which the tiers have the shares `prior`; tiers without a pair lose their share to the
    others. Raises LoreError when no tier with a share has a pair."""
    weights = np.ones(len(gold)) if weights is None else np.asarray(weights, dtype=np.float64)
    mass = np.bincount(gold, weights, len(prior))
    wanted = np.where(mass > 0, np.asarray(prior, dtype=np.float64), 0.0)
    if wanted.sum() == 0:
        raise LoreError(
            f"metrics.prior {list(prior)} (worst tier first) gives shares only to tiers without a tested pair (pairs a tier: "
            f"{[int(count) for count in np.bincount(gold, minlength=len(prior))]}), so there is nothing to weight.\n"
            "Give a share to a tier that occurs, or drop metrics.prior."
        )
    scale = np.divide(wanted / wanted.sum() * mass.sum(), mass, out=np.zeros(len(prior)), where=mass > 0)
    return weights * scale[gold]
