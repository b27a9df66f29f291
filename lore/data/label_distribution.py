"""A probability per tier where a label sums up several raters: from their mean, or from their median and spread.

Mean x between the values of two neighbouring tiers, a < x < b: P(a) = (b - x) / (b - a), P(b) = (x - a) / (b - a). Of all
distributions with this mean it has the smallest variance. 2.33 on tiers 1, 2, 3 is 0.67 for tier 2 and 0.33 for tier 3.

Median m and standard deviation s, as CrowdFlower publishes them: every multiset of ratings by the smallest number of raters that
has this median and, to three decimals, this standard deviation (if there is none: to the decimals of s); their shares of each
tier, averaged over the multisets. Between the two middle ratings of an even number either tier may be the published median.
Median 4 with 0.471 on tiers 1 to 4 is the ratings 3, 4, 4, so 1/3 and 2/3. No ratings lie further apart than the ends of the
scale, so s is at most half its length; for a larger s, and for one that no set of up to MAX_RATERS ratings has, there is no
distribution.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations_with_replacement
from statistics import median, pstdev
from typing import NamedTuple

from lore.rubric.rubric import Rubric

MAX_RATERS = 12
MAX_TIERS = 6  # the number of multisets of ratings grows with its power
DECIMALS = 3
SUM_TOLERANCE = 1e-3


class Spread(NamedTuple):
    """The standard deviation of the ratings whose median is the label, as the file writes it."""

    text: str


def from_mean(mean: float | None, rubric: Rubric) -> dict[str, float] | None:
    """The distribution of a mean between two tiers; None without a mean, for the value of a tier, and outside the scale."""
    valued = [tier for tier in rubric.tiers if tier.value is not None]
    for low, high in zip(valued, valued[1:], strict=False):
        if mean is not None and low.value < mean < high.value:
            share = round((mean - low.value) / (high.value - low.value), 12)  # 0.33 and 0.67 of 2.33, not 0.33000000000000007
            return {low.id: round(1 - share, 12), high.id: share}
    return None


def from_median(tier_id: str, spread: Spread, rubric: Rubric) -> dict[str, float] | None:
    """The distribution of ratings with this median and spread; None if no set of up to MAX_RATERS ratings has both."""
    valued = [tier for tier in rubric.tiers if tier.value is not None]
    ids = [tier.id for tier in valued]
    if tier_id not in ids or len(ids) > MAX_TIERS:
        return None
    text = spread.text.strip()
    deviation = float(text)
    written = len(text.partition(".")[2]) if text.replace(".", "", 1).isdecimal() else DECIMALS
    values, place, deviation = tuple(tier.value for tier in valued), ids.index(tier_id), round(deviation, DECIMALS)
    # Files drop final zeros: 0.8 is 0.800, as of 2, 4, 4, 4, 4. If no ratings have it, the file was rounded to fewer decimals.
    shares = _shares(values, place, deviation, DECIMALS) or _shares(values, place, deviation, min(written, DECIMALS))
    return None if shares is None else {name: share for name, share in zip(ids, shares, strict=True) if share}


@lru_cache(maxsize=10_000)
def _shares(values: tuple[float, ...], place: int, deviation: float, decimals: int) -> tuple[float, ...] | None:
    for raters in range(1, MAX_RATERS + 1):
        found = [
            counts
            for middle, spread, counts in _ratings(values, raters)
            if place in middle and _equal(spread, deviation, decimals)
        ]
        if found:
            return tuple(sum(counts[at] for counts in found) / (raters * len(found)) for at in range(len(values)))
    return None


def _equal(spread: float, deviation: float, decimals: int) -> bool:
    return abs(spread - deviation) <= 0.5 * 10**-decimals + 1e-9 and (spread == 0) == (deviation == 0)


@lru_cache(maxsize=64)
def _ratings(values: tuple[float, ...], raters: int) -> list[tuple[frozenset[int], float, tuple[int, ...]]]:
    """(tiers that may be published as the median, standard deviation, number of ratings per tier) of every set of ratings."""
    found = []
    for ratings in combinations_with_replacement(range(len(values)), raters):
        middle = median(ratings)
        counts = tuple(ratings.count(at) for at in range(len(values)))
        found.append((frozenset({math.floor(middle), math.ceil(middle)}), pstdev([values[at] for at in ratings]), counts))
    return found


def problem(distribution: dict[str, float], tier_ids: Sequence[str]) -> str | None:
    """What is wrong with a given distribution, or None."""
    if unknown := [name for name in distribution if name not in tier_ids]:
        return f"{unknown[0]!r} is no tier"
    total = math.fsum(distribution.values())
    if any(not 0 <= share <= 1 for share in distribution.values()):
        return "a probability below 0 or above 1"
    return None if abs(total - 1) <= SUM_TOLERANCE else f"probabilities that sum to {total:g}"
