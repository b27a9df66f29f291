"""95 % intervals by the percentile bootstrap over queries, with wider percentiles for few queries.

Verdicts on pairs of one query are correlated, so the bootstrap draws whole queries with replacement, never single pairs. The
metrics of a resample come from its summed per-query counts. With a prior, the tiers of each resample are reweighted to the
prior's shares, like those of the test. Plain percentile intervals are too short for few queries. The percentiles are chosen
so that the interval of a mean is as long as Student's (the expanded percentile interval of Hesterberg 2015, "What Teachers
Should Know about the Bootstrap"). tests/eval/measures/test_coverage.py measures the remaining error of the coverage.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import isnan, sqrt

import numpy as np
from scipy.special import ndtr, stdtrit

from lore.eval.measures.metrics import (
    Counts,
    arrays_of,
    as_probabilities,
    confidence_of,
    count,
    measure,
    tier_scale,
    total,
    under_prior,
)
from lore.eval.measures.ranking import auc_of

LEVEL = 0.95
BLOCK = 2_000_000  # numbers per block of draws: about 16 MB for any number of queries
KEPT_BLOCKS = 64


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its 95 % interval. nan where undefined; low and high are also nan with only one query."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    def __str__(self) -> str:
        if isnan(self.value):
            return "–"
        return two_digits(self.value) if isnan(self.low) else f"{two_digits(self.value)} {self.interval}"

    @property
    def interval(self) -> str:
        return "" if isnan(self.low) else f"[{two_digits(self.low)}, {two_digits(self.high)}]"

    def to_json(self) -> dict[str, float | None]:
        values = {"value": self.value, "low": self.low, "high": self.high}
        return {key: None if isnan(number) else round(float(number), 6) for key, number in values.items()}


def two_digits(number: float) -> str:
    """Two decimals; 0.00 never has a minus sign."""
    return "–" if isnan(number) else f"{round(float(number), 2) + 0.0:.2f}"


def query_groups(queries: list[str]) -> np.ndarray:
    """[N] integers from 0, one per distinct query."""
    return np.unique(np.asarray(queries, dtype=object).astype(str), return_inverse=True)[1].reshape(-1)


def estimate(
    gold: np.ndarray, predicted: np.ndarray, groups: np.ndarray, tier_ids: list[str], relevant: list[bool], **options
) -> dict[str, Estimate]:
    """Every metric of `metric_names` with its interval; options as in `values_and_draws`. samples=0 returns values without
    intervals. The same seed and groups draw the same queries, so two judges on the same pairs share their resamples."""
    value, drawn = values_and_draws(gold, predicted, groups, tier_ids, relevant, **options)
    queries = len(np.unique(groups))
    return {name: interval(name, number, drawn.get(name), queries) for name, number in value.items()}


def values_and_draws(
    gold: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    tier_ids: list[str],
    relevant: list[bool],
    *,
    confidence: np.ndarray | None = None,
    calibrated: np.ndarray | None = None,
    probabilities: np.ndarray | None = None,
    gains: np.ndarray | None = None,
    refused: np.ndarray | None = None,
    costs: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    prior: list[float] | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Every metric, and its values [samples] over resamples of the queries (empty if samples=0 or there is one query). For two
    judges on the same pairs with the same seed, draw i contains the same queries: subtract the draws for a paired interval.

    probabilities [N, K] give Brier and AUC, and the confidence unless it is passed. For the other arrays see `count` and
    `measure`. prior [K]: shares of the tiers, applied to the test and to every resample.
    """
    gold, predicted = np.asarray(gold), np.asarray(predicted)
    groups = np.unique(groups, return_inverse=True)[1].reshape(-1)
    if confidence is None and probabilities is not None:
        confidence = confidence_of(probabilities, predicted)
    per_query = count(
        gold,
        predicted,
        len(tier_ids),
        confidence=confidence,
        calibrated=calibrated,
        probabilities=probabilities,
        gains=gains,
        refused=refused,
        weights=weights,
        groups=groups,
        by_tier=prior is not None,
    )
    side = np.asarray(relevant, dtype=bool)
    auc = None
    if probabilities is not None:
        auc = auc_of(side[gold], as_probabilities(probabilities, predicted, len(tier_ids)) @ side)

    def measured(counts: Counts, times: Iterator[np.ndarray]) -> dict[str, np.ndarray]:
        values = measure(counts if prior is None else under_prior(counts, prior), tier_ids, relevant, costs)
        shape = values["cost"].shape
        values["auc"] = np.full(shape, np.nan)
        if auc is not None:
            drawn = pair_weights(times, groups, weights, gold, prior)
            values["auc"] = np.concatenate([auc(part) for part in drawn]).reshape(shape)
        return values

    queries = len(per_query.confusion)
    value = {name: float(number) for name, number in measured(total(per_query), iter([np.ones((1, queries))])).items()}
    if samples == 0 or queries < 2:
        return value, {}
    return value, measured(resample(per_query, samples, seed), times_drawn(queries, samples, seed))


def mean_estimate(
    values: np.ndarray, groups: np.ndarray, *, weights: np.ndarray | None = None, samples: int = 1000, seed: int = 0
) -> Estimate:
    """Weighted mean of values [N] with its interval over queries; nan entries are left out. For a paired difference of two
    conditions pass the differences. groups [N]: an integer per query."""
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)
    if not known.any():
        return Estimate(float("nan"))
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    values, weights = values[known], weights[known]
    groups = np.unique(np.asarray(groups)[known], return_inverse=True)[1].reshape(-1)
    queries = int(groups.max()) + 1
    table = np.stack([np.bincount(groups, weights * values, queries), np.bincount(groups, weights, queries)], axis=1)
    return table_estimate(table, lambda sums: sums[..., 0] / sums[..., 1], samples=samples, seed=seed)


def table_estimate(
    table: np.ndarray, value_of: Callable[[np.ndarray], np.ndarray], *, samples: int = 1000, seed: int = 0
) -> Estimate:
    """value_of(sum over the queries) of a table [Q, ...], with its interval. value_of accepts [...] and [S, ...]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(value_of(table.sum(axis=0)))
        if samples == 0 or len(table) < 2:
            return Estimate(value)
        return interval("", value, value_of(summed_draws(table, samples, seed)), len(table))


def times_drawn(queries: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each query is drawn, float [rows, queries] in blocks that together have `samples` rows. Each row is `queries`
    draws with replacement."""
    if samples * queries <= BLOCK:
        yield _kept(queries, samples, seed).astype(np.float64)
        return
    yield from (times.astype(np.float64) for times in _drawn(queries, samples, seed))


@lru_cache(maxsize=KEPT_BLOCKS)
def _kept(queries: int, samples: int, seed: int) -> np.ndarray:
    """Draws that fit into one block, cached: further judges, and slices with the same number of queries, use the same draws."""
    times = next(_drawn(queries, samples, seed))
    return times.astype(np.min_scalar_type(int(times.max())))


def _drawn(queries: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    at_once = max(1, BLOCK // queries)
    for start in range(0, samples, at_once):
        rows = min(at_once, samples - start)
        picks = rng.integers(0, queries, size=(rows, queries)) + np.arange(rows)[:, None] * queries
        yield np.bincount(picks.ravel(), minlength=rows * queries).reshape(rows, queries)


def pair_weights(
    times: Iterator[np.ndarray],
    groups: np.ndarray,
    weights: np.ndarray | None,
    gold: np.ndarray,
    prior: list[float] | None = None,
) -> Iterator[np.ndarray]:
    """Weight of each pair in each draw, [rows, N] in blocks: its own weight times the number of times its query is drawn. With
    a prior, the weights are scaled so that the tiers of the draw have the prior's shares."""
    at_once = max(1, BLOCK // max(len(groups), 1))
    tier = None if prior is None else np.eye(len(prior))[gold]
    for block in times:
        for start in range(0, len(block), at_once):
            drawn = np.take(block[start : start + at_once], groups, axis=1)
            if weights is not None:
                drawn *= weights
            if prior is not None:
                scale = tier_scale(drawn @ tier, prior)
                drawn *= np.take(scale, gold, axis=1)
            yield drawn


def summed_draws(table: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Sums [samples, ...] of `samples` draws of Q queries with replacement from a table [Q, ...]."""
    flat = table.reshape(len(table), -1)
    used = np.flatnonzero(flat.any(axis=0))
    filled = np.ascontiguousarray(flat[:, used])
    sums = np.zeros((samples, flat.shape[1]))
    sums[:, used] = np.concatenate([times @ filled for times in times_drawn(len(table), samples, seed)])
    return sums.reshape(samples, *table.shape[1:])


def resample(per_query: Counts, samples: int, seed: int) -> Counts:
    """Summed counts [S, ...] of `samples` draws of Q queries with replacement from counts [Q, ...]."""
    parts = arrays_of(per_query)
    queries = len(per_query.confusion)
    sums = summed_draws(np.concatenate([part.reshape(queries, -1) for part in parts.values()], axis=1), samples, seed)
    ends = np.cumsum([part[0].size for part in parts.values()])[:-1]
    split = zip(parts, np.split(sums, ends, axis=1), strict=True)
    return Counts(**{name: flat.reshape(samples, *parts[name].shape[1:]) for name, flat in split})


def interval(name: str, value: float, draws: np.ndarray | None, queries: int | None = None) -> Estimate:
    """A metric's value with the percentile interval of its draws; without draws, the value alone. queries: number of resampled
    queries, which sets the percentiles; none uses the plain ones."""
    if draws is None:
        return Estimate(value)
    defined = draws[~np.isnan(draws)]
    if isnan(value) or not defined.size:
        return Estimate(value)
    if name in ("ece", "ece_calibrated"):
        # Noise adds to a binned distance, so resamples lie above the value they were drawn from: shift them back to it.
        defined = np.clip(defined - (defined.mean() - value), 0.0, 1.0)
    tail = 100 * lower_level(queries)
    low, high = np.percentile(defined, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))


def lower_level(queries: int | None) -> float:
    """Share of the draws below a 95 % interval: 0.025, less for few queries (Hesterberg 2015)."""
    tail = (1 - LEVEL) / 2
    if queries is None or queries < 2:
        return tail
    return float(ndtr(sqrt(queries / (queries - 1)) * stdtrit(queries - 1, tail)))
