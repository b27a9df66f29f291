"""How many ratings a GoodRate needs, before anyone is asked to rate: to see a change of a given size, or which change a number of
ratings can see.

A change is the difference of two GoodRates of items, each from ratings of its own, such as those of two months. It is seen if it is
larger than the root of the sum of both squared half intervals of `lore goodrate`. The variance of one GoodRate is that of
lore.eval.measures.ppi for pairs drawn with probabilities p_i proportional to their impressions w_i within a band of traffic:

    variance = sum_i w_i^2 (1 - p_i) / p_i v_i / (sum_i w_i)^2,   v_i = E (y_i - lambda f_i - its mean)^2

v_i comes from a pilot, by band; without one from the judge's probabilities f_i, taken as calibrated: f_i (1 - f_i) with the judge's
help, f_i (1 - f_i) + (f_i - mean)^2 without; without a judge from the GoodRate g alone: g (1 - g), at most 1/4. Ratings are spread
over head, torso and tail in proportion to a band's impressions times the root of its mean v (Neyman 1934, Journal of the Royal
Statistical Society 97).

Not modelled: raters who err, correlation between the errors of one query, and the GoodRate of pages.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
from scipy.stats import nct
from scipy.stats import t as student

from lore.eval.derived_slices import traffic_thirds
from lore.eval.goodrate.log import Shown
from lore.eval.goodrate.rated_sample import Rated, capped_shares
from lore.eval.measures.bootstrap import LEVEL
from lore.eval.measures.ppi import parts, tuned_power
from lore.support.errors import LoreError

BANDS = ("head", "torso", "tail")
FEWEST_RATED = 10
"""Ratings of a pilot in a band below which the band takes the variance of the whole pilot."""
FEWEST = 5
"""Ratings in a band."""
MOST_OF_BAND = 0.7
Basis = Literal["pilot", "judge", "good rate"]


@dataclass(frozen=True)
class Spread:
    """How much one rating varies. One entry per pair of the log."""

    weight: np.ndarray
    """[U] impressions."""
    band: np.ndarray
    """[U] place in BANDS."""
    second: np.ndarray
    """[U] v: mean square of the rating less what the judge says of it."""
    fourth: np.ndarray
    """[U] mean of its fourth power."""
    basis: Basis
    power: float
    """lambda: 0 without a judge."""


@dataclass(frozen=True)
class RatingPlan:
    """ratings [3]: by band; change: the difference that they see; power: with which probability."""

    ratings: np.ndarray
    change: float
    power: float
    spread: Spread

    @property
    def total(self) -> int:
        return int(self.ratings.sum())


def bands_of(log: Shown) -> np.ndarray:
    """[N] place in BANDS of each row: head, torso and tail hold a third of the searches each. A query has as many searches as its
    pages have impressions, and a page as many as its most shown item."""
    pages = np.zeros(int(log.pages.max()) + 1)
    np.maximum.at(pages, log.pages, log.impressions)
    cluster_of = np.zeros(len(pages), dtype=np.int64)
    cluster_of[log.pages] = log.clusters
    searches = np.bincount(cluster_of, pages)
    levels, place, counts = np.unique(searches, return_inverse=True, return_counts=True)
    return traffic_thirds(levels, counts)[place.reshape(-1)][log.clusters]


def spread_of(log: Shown, judged: np.ndarray | None = None, pilot: Rated | None = None, good_rate: float = 0.5) -> Spread:
    """judged [N]: the judge's value of every row. pilot: ratings of a random sample of the log. good_rate: without both."""
    row_band = bands_of(log)
    _, first, unit = np.unique(log.pair_ids.astype(str), return_index=True, return_inverse=True)
    weight = np.bincount(unit.reshape(-1), log.impressions)
    band = row_band[first]
    values = np.zeros(len(log)) if judged is None else judged
    if pilot is not None and pilot.labeled:
        second, fourth, power = _of_pilot(log, values, pilot, row_band)
        return Spread(weight, band, second[band], fourth[band], "pilot", power)
    if judged is None:
        second, fourth = _binary(np.full(len(weight), good_rate))
        return Spread(weight, band, second, fourth, "good rate", 0.0)
    second, fourth = _binary(values[first])
    return Spread(weight, band, second, fourth, "judge", 1.0)


def without_judge(log: Shown, judged: np.ndarray) -> Spread:
    """Of ratings alone, if the judge's values are right."""
    found = spread_of(log, judged)
    _, first = np.unique(log.pair_ids.astype(str), return_index=True)
    share = judged[first]
    mean = float(found.weight @ share / found.weight.sum())
    second = share * (1 - mean) ** 2 + (1 - share) * mean**2
    fourth = share * (1 - mean) ** 4 + (1 - share) * mean**4
    return Spread(found.weight, found.band, second, fourth, "judge", 0.0)


def _binary(share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Second and fourth moment of a 0 or 1 with this mean about it."""
    variance = share * (1 - share)
    return variance, variance * ((1 - share) ** 3 + share**3)


def _of_pilot(log: Shown, judged: np.ndarray, pilot: Rated, band: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Moments by band [3], and lambda."""
    rated = ~np.isnan(pilot.good)
    power = tuned_power(parts(judged, pilot.good, log.impressions, log.clusters, pilot.chances))
    weight = log.impressions[rated] / (1.0 if pilot.chances is None else pilot.chances[rated])
    left = pilot.good[rated] - power * judged[rated]
    left -= weight @ left / weight.sum()
    moments = np.zeros((2, len(BANDS)))
    for number in range(len(BANDS)):
        inside = band[rated] == number
        used = inside if inside.sum() >= FEWEST_RATED else np.ones(len(left), bool)
        moments[:, number] = [np.average(left[used] ** order, weights=weight[used]) for order in (2, 4)]
    if not moments[0].any():
        raise LoreError(
            f"All {pilot.labeled:,} ratings of the pilot are what the judge says, so it shows no variance to plan with.\nPlan with "
            "the judge's probabilities (leave --rated out), or rate more."
        )
    return moments[0], moments[1], power


def spread_ratings(spread: Spread, total: int) -> np.ndarray:
    """[3] ratings by band, which sum to `total`: at least FEWEST in each that has so many pairs, and all pairs of a band of which
    most would be rated. One pair of many impressions that is left out would carry the whole variance."""
    pairs = np.bincount(spread.band, minlength=len(BANDS))
    need = np.zeros(len(BANDS))
    for number in np.flatnonzero(pairs):
        weight = spread.weight[inside := spread.band == number]
        need[number] = weight.sum() * sqrt(max(float(weight @ spread.second[inside]) / weight.sum(), 1e-12))
    whole = np.zeros(len(BANDS), dtype=bool)
    while True:
        open_ = ~whole & (pairs > 0)
        left = total - int(pairs[whole].sum())
        wanted = np.where(open_, need, 0.0) / max(need[open_].sum(), 1e-300) * left
        wanted = np.where(open_, np.maximum(wanted, np.minimum(FEWEST, pairs)), 0.0)
        full = open_ & (wanted > MOST_OF_BAND * pairs) & (pairs < left)
        if not full.any():
            break
        whole[np.argmax(np.where(full, wanted / np.maximum(pairs, 1), -1.0))] = True
    found = np.where(whole, pairs, np.floor(wanted).astype(int))
    while (short := total - int(found.sum())) != 0:
        gap = np.where(
            open_ & (found < pairs) if short > 0 else open_ & (found > 1), wanted - found, -np.inf if short > 0 else np.inf
        )
        found[int(np.argmax(gap) if short > 0 else np.argmin(gap))] += np.sign(short)
    return found


def chances_of(spread: Spread, ratings: np.ndarray) -> np.ndarray:
    """[U] probability of a pair to be rated."""
    found = np.zeros(len(spread.weight))
    for number, count in enumerate(ratings):
        inside = spread.band == number
        if count:
            found[inside] = capped_shares(spread.weight[inside], int(count))
    return found


def power_of(spread: Spread, ratings: np.ndarray, change: float) -> float:
    """Probability that two GoodRates from so many ratings each show a change of this size."""
    error, freedom = _error(spread, ratings)
    if error == 0:
        return 1.0
    if freedom < 1:
        return 0.0
    limit = student.ppf((1 + LEVEL) / 2, freedom)
    shift = change / (sqrt(2) * error)
    return float(np.nan_to_num(nct.sf(limit, 2 * freedom, shift) + nct.cdf(-limit, 2 * freedom, shift), nan=1.0))


def _error(spread: Spread, ratings: np.ndarray) -> tuple[float, float]:
    """Standard error of one GoodRate, and the degrees of freedom of its interval (lore.eval.measures.ppi.interval)."""
    chance = chances_of(spread, ratings)
    there = chance > 0
    p, w = chance[there], spread.weight[there] / spread.weight.sum()
    influence = (w / p) ** 2 * (1 - p)
    variance = float((p * influence) @ spread.second[there])
    fourth = float((p * influence**2) @ spread.fourth[there])
    total = int(ratings.sum())
    fitted = 2 if spread.power > 0 else 1
    freedom = float(total - fitted)
    if fourth > 0:
        freedom = min(freedom, 2 * variance**2 / fourth)
    return sqrt(variance * total / max(total - fitted, 1)), freedom


def plan_ratings(spread: Spread, change: float, power: float) -> RatingPlan:
    """The fewest ratings that see a change. Raises LoreError if all pairs of the log are too few."""

    def seen(total: int) -> bool:
        return power_of(spread, spread_ratings(spread, total), change) >= power

    most = len(spread.weight) - 1
    tried = [total for total in (2 * FEWEST * 2**step for step in range(40)) if total <= most]
    enough = next((total for total in tried if seen(total)), most)
    if most < 2 * FEWEST or not seen(enough):
        raise LoreError(
            f"The log has {len(spread.weight):,} pairs, and ratings of nearly all of them would not show a change of {change:g} "
            f"with a power of {power:g}.\nPlan for a larger change, or with a longer log."
        )
    low, high = max(2 * FEWEST, enough // 2), enough
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if seen(middle) else (middle + 1, high)
    ratings = spread_ratings(spread, low)
    return RatingPlan(ratings, change, power_of(spread, ratings, change), spread)


def plan_change(spread: Spread, total: int, power: float) -> RatingPlan:
    """The smallest change that so many ratings see. Raises LoreError for fewer ratings than bands need, or more than pairs."""
    if not 2 * FEWEST <= total < len(spread.weight):
        raise LoreError(
            f"{total:,} ratings of the {len(spread.weight):,} pairs of the log are no sample to plan for; expected "
            f"{2 * FEWEST} to {len(spread.weight) - 1:,}."
        )
    ratings = spread_ratings(spread, total)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of(spread, ratings, middle) >= power else (middle, high)
    return RatingPlan(ratings, high, power, spread)
