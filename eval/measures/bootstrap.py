"""95 % intervals: the percentile bootstrap over queries.

Pairs of one query succeed and fail together, so whole queries are drawn with replacement, never single pairs. A
resample's metrics come from its summed per-query counts. Intervals of a test with a few dozen queries are a little too
short, as the percentile method's are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan

import numpy as np

from lore.eval.measures.metrics import Counts, count, measure, total

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its interval; nan where it is not defined (low and high also when there is only one
    query)."""

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
    """Without the sign that a tiny negative number would leave on 0.00."""
    return "–" if isnan(number) else f"{round(float(number), 2) + 0.0:.2f}"


def query_groups(queries: list[str]) -> np.ndarray:
    """[N] integers from 0, one per distinct query."""
    return np.unique(np.asarray(queries, dtype=object).astype(str), return_inverse=True)[1].reshape(-1)


def estimate(
    gold: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    tier_ids: list[str],
    relevant: list[bool],
    *,
    confidence: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Every metric of `measure` with its interval. samples=0 gives values alone. The same seed and groups draw the same
    queries, so two judges measured on the same pairs are resampled alike."""
    value, drawn = values_and_draws(
        gold, predicted, groups, tier_ids, relevant, confidence=confidence, weights=weights, samples=samples, seed=seed
    )
    return {name: interval(name, number, drawn.get(name)) for name, number in value.items()}


def values_and_draws(
    gold: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    tier_ids: list[str],
    relevant: list[bool],
    *,
    confidence: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Every metric, and its values [samples] over resamples of the queries (nothing where samples=0 or there is one query).
    For two judges on the same pairs, with the same seed, draw i holds the same queries: subtract them for a paired interval."""
    groups = np.unique(groups, return_inverse=True)[1].reshape(-1)
    per_query = count(gold, predicted, len(tier_ids), confidence=confidence, weights=weights, groups=groups)
    value = {name: float(number) for name, number in measure(total(per_query), tier_ids, relevant).items()}
    if samples == 0 or len(per_query.confusion) < 2:
        return value, {}
    return value, measure(resample(per_query, samples, seed), tier_ids, relevant)


def mean_estimate(
    values: np.ndarray, groups: np.ndarray, *, weights: np.ndarray | None = None, samples: int = 1000, seed: int = 0
) -> Estimate:
    """Weighted mean of values [N] with its interval over queries; nan entries are left out. For the paired difference of two
    conditions give the differences. groups [N]: integers that tell the queries apart."""
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)
    if not known.any():
        return Estimate(float("nan"))
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    values, weights = values[known], weights[known]
    groups = np.unique(np.asarray(groups)[known], return_inverse=True)[1].reshape(-1)
    queries = int(groups.max()) + 1
    mass, summed = np.bincount(groups, weights, queries), np.bincount(groups, weights * values, queries)
    value = float(summed.sum() / mass.sum())
    if samples == 0 or queries < 2:
        return Estimate(value)
    drawn = np.concatenate(
        [times @ np.stack([summed, mass], axis=1) for times in times_drawn(queries, samples, seed)]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return interval("mean", value, drawn[:, 0] / drawn[:, 1])


def times_drawn(queries: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each query is drawn, float [rows, queries] in blocks that together have `samples` rows: `queries` draws with
    replacement a row."""
    rng = np.random.default_rng(seed)
    at_once = max(1, 2_000_000 // queries)  # keeps a block near 16 MB whatever the number of queries
    for start in range(0, samples, at_once):
        rows = min(at_once, samples - start)
        picks = rng.integers(0, queries, size=(rows, queries)) + np.arange(rows)[:, None] * queries
        yield np.bincount(picks.ravel(), minlength=rows * queries).reshape(rows, queries).astype(np.float64)


def resample(per_query: Counts, samples: int, seed: int) -> Counts:
    """Summed counts [S, ...] of `samples` draws of Q queries with replacement from counts [Q, ...]."""
    queries = len(per_query.confusion)
    parts = [per_query.confusion] if per_query.bins is None else [per_query.confusion, per_query.bins]
    table = np.concatenate([part.reshape(queries, -1) for part in parts], axis=1)
    sums = [times @ table for times in times_drawn(queries, samples, seed)]
    flat = np.concatenate(sums)
    cells = per_query.confusion[0].size
    bins = None if per_query.bins is None else flat[:, cells:].reshape(samples, *per_query.bins.shape[1:])
    return Counts(flat[:, :cells].reshape(samples, *per_query.confusion.shape[1:]), bins)


def interval(name: str, value: float, draws: np.ndarray | None) -> Estimate:
    """A metric's value with the percentile interval of its draws; without one where there are none."""
    if draws is None:
        return Estimate(value)
    defined = draws[~np.isnan(draws)]
    if isnan(value) or not defined.size:
        return Estimate(value)
    if name == "ece":
        # Noise adds to a binned distance, so resamples sit above the value they were drawn from: move them back onto
        # it.
        defined = np.clip(defined - (defined.mean() - value), 0.0, 1.0)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(defined, [tail, 100 - tail])
    return Estimate(value, float(low), float(high))
