"""Relevance metrics of verdicts against human labels, for any number of ordered tiers.

Every metric but AUC is computed from summed counts (a confusion matrix, calibration bins, squared errors, gains of
queries), so the bootstrap measures a thousand resamples in one array operation. Metrics that scikit-learn also has equal
scikit-learn's values; a test compares them.

An answer without a valid verdict is a *format failure* (predicted index NO_VERDICT). It is never dropped. It counts as:
- Acc@2, Acc@K: wrong.
- F1 of a tier, micro-F1: a false negative of the gold tier, a false positive of no tier.
- QWK: the tier farthest from the label (the worse of two equally far tiers).
- cost: the highest cost of any verdict on that label.
- ECE: a wrong answer with confidence 1 / number of tiers.
- Brier, AUC, nDCG: a uniform distribution over the tiers.
- failure_rate: the share of format failures.
- refused_rate: not refused, because it contradicts no computed rule.
"""

from dataclasses import dataclass, fields

import numpy as np

from lore.eval.measures.ranking import ndcg_by_query
from lore.judge.confusion import NO_VERDICT, confusion_matrix, macro_f1, tier_f1
from lore.rubric.cost_matrix import cost_matrix
from lore.support.errors import LoreError

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Counts:
    """Summed pair weights. The leading axes are free: none for a total, [Q] for one entry per query, [S] for resamples.
    Counts by tier have one more axis [K], the label's tier, in every array except the confusion matrix, which already has
    it."""

    confusion: np.ndarray
    """[..., K, K + 1]: gold tier by predicted tier; the last column holds format failures."""
    gaps: np.ndarray | None = None
    """[..., CALIBRATION_BINS]: weight times (confidence - correctness); None if the judge gives no probabilities."""
    gaps_calibrated: np.ndarray | None = None
    """The same for the confidence after temperature scaling."""
    squared: np.ndarray | None = None
    """[...]: weight times squared error of the probabilities, summed over the tiers."""
    gain: np.ndarray | None = None
    """[..., 2]: weight of the query, and weight times its nDCG; None without gains."""
    refused: np.ndarray | None = None
    """[..., 2]: weight of the verdicts, and of those that are refused; None without computed rules."""


def count(
    gold: np.ndarray,
    predicted: np.ndarray,
    tiers: int,
    *,
    confidence: np.ndarray | None = None,
    calibrated: np.ndarray | None = None,
    probabilities: np.ndarray | None = None,
    gains: np.ndarray | None = None,
    refused: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    by_tier: bool = False,
) -> Counts:
    """Counts of N verdicts: one total or, with `groups` (integers from 0, one per query), one entry per group.

    gold [N] tier indices; predicted [N] tier indices or NO_VERDICT; confidence, calibrated [N] probability of the
    predicted tier, see `confidence_of`; probabilities [N, K]; gains [K] per tier, for nDCG over a group's items;
    refused [N] whether the verdict is against a computed rule of the pair.
    """
    gold, predicted = np.asarray(gold, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if gold.shape != predicted.shape:
        raise ValueError(f"{gold.size} labels and {predicted.size} verdicts: every label needs one verdict")
    if gold.size and not (
        0 <= gold.min() and gold.max() < tiers and NO_VERDICT <= predicted.min() and predicted.max() < tiers
    ):
        raise ValueError(f"tier indices must lie in 0..{tiers - 1} ({NO_VERDICT} for no verdict)")
    weights = np.ones(gold.size) if weights is None else np.asarray(weights, dtype=np.float64)
    groups = np.zeros(gold.size, dtype=np.int64) if groups is None else np.asarray(groups, dtype=np.int64)
    n_groups = int(groups.max()) + 1 if gold.size else 1
    shape = (n_groups, tiers) if by_tier else (n_groups,)
    owner = groups * tiers + gold if by_tier else groups

    def summed(cell: np.ndarray, values: np.ndarray, *last: int) -> np.ndarray:
        return np.bincount(cell, values, int(np.prod(shape + last))).reshape(shape + last)

    def gaps(confidences: np.ndarray | None) -> np.ndarray | None:
        if confidences is None:
            return None
        cell = owner * CALIBRATION_BINS + bin_of(confidences)
        return summed(cell, weights * (confidences - (gold == predicted)), CALIBRATION_BINS)

    confusion = confusion_matrix(gold, predicted, tiers, weights, groups)
    squared = gain = None
    if probabilities is not None:
        squared = summed(owner, weights * squared_error(probabilities, gold, predicted))
    if gains is not None and gold.size:
        gains = np.asarray(gains, dtype=np.float64)
        given = as_probabilities(probabilities, predicted, tiers)
        value = ndcg_by_query(gains[gold], given @ gains, groups)
        share = np.where(np.isnan(value), 0.0, 1 / np.maximum(np.bincount(groups), 1))[groups] * weights
        gain = np.stack([summed(owner, share), summed(owner, share * np.nan_to_num(value)[groups])], axis=-1)
    against = None if refused is None else np.stack([summed(owner, weights), summed(owner, weights * refused)], axis=-1)
    return Counts(confusion, gaps(confidence), gaps(calibrated), squared, gain, against)


def total(counts: Counts) -> Counts:
    """Sums over the leading axis."""
    return Counts(**{name: values.sum(axis=0) for name, values in arrays_of(counts).items()})


def arrays_of(counts: Counts) -> dict[str, np.ndarray]:
    """The arrays that are not None, by name."""
    return {field.name: values for field in fields(counts) if (values := getattr(counts, field.name)) is not None}


def under_prior(counts: Counts, prior: list[float]) -> Counts:
    """Turns counts by tier [..., K, ...] into plain counts in which the tiers have the shares `prior`. The share of a tier
    without a pair goes to the others. nan if no tier with a share has a pair."""
    scale = tier_scale(counts.confusion.sum(axis=-1), prior)
    scaled = {"confusion": counts.confusion * scale[..., None]}
    for name, values in arrays_of(counts).items():
        if name == "squared":
            scaled[name] = (values * scale).sum(axis=-1)
        elif name != "confusion":
            scaled[name] = np.einsum("...kc,...k->...c", values, scale)
    return Counts(**scaled)


def tier_scale(mass: np.ndarray, prior: list[float]) -> np.ndarray:
    """[..., K] factors that scale the tiers' weights [..., K] to the prior's shares of the same total."""
    wanted = np.where(mass > 0, np.asarray(prior, dtype=np.float64), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = wanted / wanted.sum(axis=-1, keepdims=True) * mass.sum(axis=-1, keepdims=True)
        # A tier without a pair gets the factor 0, unless no tier can be scaled: then all factors are nan.
        return np.where((mass > 0) | np.isnan(wanted), wanted / mass, 0.0)


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """Equal-width bin of each confidence; 1.0 belongs to the last."""
    return np.clip((np.asarray(confidence) * CALIBRATION_BINS).astype(np.int64), 0, CALIBRATION_BINS - 1)


def confidence_of(probabilities: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """[N] probability of the predicted tier, from probabilities [N, K]; 1 / K for a format failure."""
    probabilities, predicted = np.asarray(probabilities, dtype=np.float64), np.asarray(predicted, dtype=np.int64)
    chosen = np.take_along_axis(probabilities, np.maximum(predicted, 0)[:, None], axis=1)[:, 0]
    return np.where(predicted == NO_VERDICT, 1.0 / probabilities.shape[1], chosen)


def as_probabilities(probabilities: np.ndarray | None, predicted: np.ndarray, tiers: int) -> np.ndarray:
    """[N, K] probabilities. If None, all mass is on the predicted tier. A format failure is uniform."""
    known = np.eye(tiers)[predicted] if probabilities is None else np.asarray(probabilities, dtype=np.float64)
    return np.where((predicted == NO_VERDICT)[:, None], 1.0 / tiers, known)


def squared_error(probabilities: np.ndarray, gold: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """[N] squared distance between probabilities [N, K] and the label, summed over the tiers (Brier 1950), from 0 to 2."""
    tiers = np.asarray(probabilities).shape[1]
    return ((as_probabilities(probabilities, predicted, tiers) - np.eye(tiers)[gold]) ** 2).sum(axis=1)


def metric_names(tier_ids: list[str]) -> list[str]:
    """Every metric, in the order of the tables."""
    first = ["acc_2", "acc_k", "macro_f1", "micro_f1", *(f"f1_{tier}" for tier in tier_ids), "qwk", "cost", "auc", "ndcg"]
    return [*first, "brier", "ece", "ece_calibrated", "failure_rate", "refused_rate"]


def measure(
    counts: Counts, tier_ids: list[str], relevant: list[bool], costs: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Every metric but AUC, shaped like the leading axes of the counts; nan where a metric is undefined.

    costs [K, K + 1]: default `lore.rubric.cost_matrix.cost_matrix`. Macro-F1 is the mean over the tiers that occur among labels
    or verdicts (scikit-learn's default); a tier that occurs in neither has no F1. QWK is undefined if all labels and verdicts
    are the same tier, ECE and Brier without probabilities, nDCG without gains.
    """
    confusion = counts.confusion
    costs = cost_matrix(relevant) if costs is None else costs
    tiers = len(tier_ids)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = confusion.sum(axis=(-2, -1))
        answered = confusion[..., :tiers]
        mask = np.asarray(relevant, dtype=bool)
        same_side = mask[:, None] == mask[None, :]
        hits = np.diagonal(answered, axis1=-2, axis2=-1)

        values = {"acc_2": (answered * same_side).sum(axis=(-2, -1)) / weight, "acc_k": hits.sum(axis=-1) / weight}
        f1 = tier_f1(confusion)
        values["macro_f1"] = macro_f1(confusion)
        values["micro_f1"] = 2 * hits.sum(axis=-1) / (weight + answered.sum(axis=(-2, -1)))
        values |= {f"f1_{tier}": f1[..., index] for index, tier in enumerate(tier_ids)}
        values["qwk"] = quadratic_kappa(confusion)
        values["cost"] = (confusion * costs).sum(axis=(-2, -1)) / weight
        undefined = np.full(weight.shape, np.nan)
        values["ndcg"] = undefined if counts.gain is None else counts.gain[..., 1] / counts.gain[..., 0]
        values["brier"] = undefined if counts.squared is None else counts.squared / weight
        values["ece"] = undefined if counts.gaps is None else expected_calibration_error(counts.gaps, weight)
        if counts.gaps_calibrated is not None:
            values["ece_calibrated"] = expected_calibration_error(counts.gaps_calibrated, weight)
        values["failure_rate"] = confusion[..., tiers].sum(axis=-1) / weight
        if counts.refused is not None:
            values["refused_rate"] = counts.refused[..., 1] / counts.refused[..., 0]
    return values


def quadratic_kappa(confusion: np.ndarray) -> np.ndarray:
    """Quadratically weighted Cohen's kappa from [..., K, K + 1] counts. A failure counts as the tier farthest from the
    label."""
    filled = failures_farthest(confusion)
    index = np.arange(confusion.shape[-2])
    cost = (index[:, None] - index[None, :]) ** 2
    weight = filled.sum(axis=(-2, -1))
    by_chance = filled.sum(axis=-1)[..., :, None] * filled.sum(axis=-2)[..., None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1.0 - weight * (filled * cost).sum(axis=(-2, -1)) / (by_chance * cost).sum(axis=(-2, -1))


def failures_farthest(confusion: np.ndarray) -> np.ndarray:
    """[..., K, K] from [..., K, K + 1]: a failure counts as the tier farthest from the label, the worse one of two."""
    tiers = confusion.shape[-2]
    index = np.arange(tiers)
    farthest = np.where(index >= tiers - 1 - index, 0, tiers - 1)
    filled = confusion[..., :tiers].copy()
    filled[..., index, farthest] += confusion[..., tiers]
    return filled


def expected_calibration_error(gaps: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mean distance between confidence and accuracy over the bins, weighted by their share (Guo et al. 2017, equation
    3)."""
    return np.abs(gaps).sum(axis=-1) / weight


def prior_weights(gold: np.ndarray, prior: list[float], weights: np.ndarray | None = None) -> np.ndarray:
    """Pair weights [N] under which the tiers have the shares `prior`. The share of a tier without a pair goes to the
    others. Raises LoreError if no tier with a share has a pair."""
    weights = np.ones(len(gold)) if weights is None else np.asarray(weights, dtype=np.float64)
    mass = np.bincount(gold, weights, len(prior))
    if not np.asarray(prior)[mass > 0].sum():
        raise LoreError(
            f"metrics.prior {list(prior)} (worst tier first) has shares only for tiers without a test pair (pairs per tier: "
            f"{[int(count) for count in np.bincount(gold, minlength=len(prior))]}), so all pairs would get weight 0.\n"
            "Give a share to a tier that occurs, or drop metrics.prior."
        )
    return weights * tier_scale(mass, prior)[gold]
