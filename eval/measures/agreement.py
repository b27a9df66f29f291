"""Agreement between judge and raters, and among raters: Cohen's kappa, Krippendorff's alpha, the noise ceiling.

All measures come from tables that add up over queries, so the bootstrap resamples them like the metrics.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lore.eval.measures.bootstrap import Estimate, interval, summed_draws, table_estimate
from lore.eval.measures.metrics import Counts, count, failures_farthest, quadratic_kappa, under_prior
from lore.eval.measures.results import Agreement, Ceiling

MOST_RATERS = 50
FEWEST_SHARED = 20
"""Kappas are computed for at most 50 raters, or pairs of raters, those with the most pairs. Each needs at least 20 pairs,
because a kappa over fewer is noise. If many raters label a few pairs each, no kappa is defined: use alpha instead."""


@dataclass(frozen=True)
class Ratings:
    """Single raters' labels of the test pairs; every array has one entry per label."""

    pair: np.ndarray
    """Position of the pair in the test."""
    rater: np.ndarray
    """Position in `raters`."""
    tier: np.ndarray
    raters: list[str]
    unrated: int = 0
    """Number of test pairs without any rating."""


def cohen_kappa(confusion: np.ndarray) -> np.ndarray:
    """Unweighted kappa from [..., K, K + 1] counts. A format failure agrees with no label."""
    tiers = confusion.shape[-2]
    weight = confusion.sum(axis=(-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = np.trace(confusion[..., :tiers], axis1=-2, axis2=-1) / weight
        chance = (confusion.sum(axis=-1) * confusion.sum(axis=-2)[..., :tiers]).sum(axis=-1) / weight**2
        return (observed - chance) / (1 - chance)


def coincidences(votes: np.ndarray) -> np.ndarray:
    """[N, K, K] coincidence matrices from votes [N, K] per tier; all zero for a pair with fewer than two raters."""
    raters = votes.sum(axis=1)
    both = votes[:, :, None] * votes[:, None, :] - votes[:, :, None] * np.eye(votes.shape[1])
    return both / np.maximum(raters - 1, 1)[:, None, None]


def ordinal_alpha(coincidence: np.ndarray) -> np.ndarray:
    """Krippendorff's alpha with the ordinal difference (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability") from
    coincidence matrices [..., K, K]. nan if all labels are the same tier, or no pair has two ratings."""
    used = coincidence.sum(axis=-1)
    whole = used.sum(axis=-1)
    # The distance of two tiers is the number of labels between them, plus half of the labels in each of the two.
    place = np.cumsum(used, axis=-1) - used / 2
    distance = (place[..., :, None] - place[..., None, :]) ** 2
    by_chance = used[..., :, None] * used[..., None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - (whole - 1) * (coincidence * distance).sum(axis=(-2, -1)) / (by_chance * distance).sum(axis=(-2, -1))


def judge_agreement(
    gold: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    tiers: int,
    *,
    ratings: Ratings | None = None,
    weights: np.ndarray | None = None,
    prior: list[float] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Agreement of verdicts [N] with labels [N] and, if ratings are given, with single raters. For quadratic kappa and alpha a
    format failure counts as the tier farthest from the label. groups, weights [N]; prior [K]."""
    queries = np.unique(groups, return_inverse=True)[1].reshape(-1)
    per_query = count(gold, predicted, tiers, weights=weights, groups=queries)

    def estimated(measure: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        def value_of(confusion: np.ndarray) -> np.ndarray:
            return measure(confusion if prior is None else under_prior(Counts(confusion), prior).confusion)

        return table_estimate(per_query.confusion, value_of, samples=samples, seed=seed)

    def alpha(confusion: np.ndarray) -> np.ndarray:
        filled = failures_farthest(confusion)
        return ordinal_alpha(filled + np.swapaxes(filled, -2, -1))

    with_raters = None
    if ratings is not None:
        cells = []
        for rater, rated in Counter(ratings.rater.tolist()).most_common(MOST_RATERS):
            if rated >= FEWEST_SHARED:
                own = ratings.rater == rater
                cells.append((ratings.pair[own], ratings.tier[own], predicted[ratings.pair[own]]))
        with_raters = _mean_kappa(cells, groups, tiers, weights, samples, seed)
    return Agreement(estimated(cohen_kappa), estimated(quadratic_kappa), estimated(alpha), with_raters)


def ceiling(
    ratings: Ratings,
    groups: np.ndarray,
    relevant: list[bool],
    *,
    weights: np.ndarray | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Ceiling:
    """Agreement among raters over the pairs with two or more ratings. acc_2 and acc_k compare one rater with the median of the
    pair's other raters; between two tiers the median is the worse one, as for labels. Every pair counts once, for any number of
    raters. groups, weights [N] of the test pairs."""
    tiers, pairs = len(relevant), len(groups)
    weights = np.ones(pairs) if weights is None else weights
    votes = np.zeros((pairs, tiers))
    np.add.at(votes, (ratings.pair, ratings.tier), 1)
    rated = np.flatnonzero(votes.sum(axis=1) >= 2)
    if not len(rated):
        nothing = Estimate(float("nan"))
        return Ceiling(0, len(ratings.raters), nothing, nothing, nothing, nothing)
    votes, weight = votes[rated], weights[rated]
    queries = np.unique(groups[rated], return_inverse=True)[1].reshape(-1)
    raters = votes.sum(axis=1)
    side = np.asarray(relevant, dtype=bool)
    same_tier, same_side = np.zeros(len(rated)), np.zeros(len(rated))
    for tier in range(tiers):
        others = votes.copy()
        others[:, tier] -= 1
        median = (np.cumsum(others, axis=1) >= (raters[:, None] - 1) / 2).argmax(axis=1)
        same_tier += votes[:, tier] / raters * (median == tier)
        same_side += votes[:, tier] / raters * (side[median] == side[tier])

    def by_query(values: np.ndarray) -> np.ndarray:
        table = np.zeros((int(queries.max()) + 1, *values.shape[1:]))
        np.add.at(table, queries, values)
        return table

    def estimated(values: np.ndarray, value_of: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        return table_estimate(by_query(values), value_of, samples=samples, seed=seed)

    def accuracy(hits: np.ndarray) -> Estimate:
        return estimated(np.stack([weight * hits, weight], axis=1), lambda sums: sums[..., 0] / sums[..., 1])

    shared = _most_shared(ratings)
    return Ceiling(
        pairs=len(rated),
        raters=len(ratings.raters),
        alpha=estimated(weight[:, None, None] * coincidences(votes), ordinal_alpha),
        kappa=_mean_kappa(shared, groups, tiers, weights, samples, seed),
        acc_2=accuracy(same_side),
        acc_k=accuracy(same_tier),
    )


def _most_shared(ratings: Ratings) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(pairs, first tiers, second tiers) of each pair of raters with at least FEWEST_SHARED shared pairs, most shared first."""
    order = np.lexsort((ratings.rater, ratings.pair))
    found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for rows in np.split(order, np.flatnonzero(np.diff(ratings.pair[order])) + 1):
        for one, other in combinations(rows.tolist(), 2):
            both = (int(ratings.rater[one]), int(ratings.rater[other]))
            found.setdefault(both, []).append((int(ratings.pair[one]), int(ratings.tier[one]), int(ratings.tier[other])))
    most = sorted((rows for rows in found.values() if len(rows) >= FEWEST_SHARED), key=len, reverse=True)[:MOST_RATERS]
    return [tuple(np.asarray(column) for column in zip(*rows, strict=True)) for rows in most]


def _mean_kappa(
    cells: list[tuple], groups: np.ndarray, tiers: int, weights: np.ndarray | None, samples: int, seed: int
) -> Estimate:
    """Mean quadratic kappa over cells of (pairs, first tiers, second tiers), weighted by their number of pairs. Undefined kappas
    are left out. All cells are resampled together, over the queries that occur in any of them."""
    if not cells:
        return Estimate(float("nan"))
    everywhere = np.unique(np.concatenate([pairs for pairs, _, _ in cells]))
    queries = np.full(len(groups), -1)
    queries[everywhere] = np.unique(groups[everywhere], return_inverse=True)[1].reshape(-1)
    size = int(queries.max()) + 1
    values, drawn, sizes = [], [], np.asarray([len(pairs) for pairs, _, _ in cells], dtype=np.float64)
    for pairs, first, second in cells:
        given = None if weights is None else weights[pairs]
        own = count(first, second, tiers, weights=given, groups=queries[pairs]).confusion
        table = np.zeros((size, *own.shape[1:]))
        table[: len(own)] = own
        values.append(float(quadratic_kappa(table.sum(axis=0))))
        if samples and size > 1:
            drawn.append(quadratic_kappa(summed_draws(table, samples, seed)))

    def mean(kappas: np.ndarray) -> np.ndarray:
        kept = np.where(np.isnan(kappas), 0.0, sizes.reshape(-1, *[1] * (kappas.ndim - 1)))
        with np.errstate(divide="ignore", invalid="ignore"):
            return (kept * np.nan_to_num(kappas)).sum(axis=0) / kept.sum(axis=0)

    return interval("kappa", float(mean(np.asarray(values))), mean(np.stack(drawn)) if drawn else None, size)
