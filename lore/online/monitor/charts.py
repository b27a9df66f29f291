"""Control charts: has a number that is watched every day moved, or is it chance?

A chart compares each day with the days of the reference, by two-sided cumulative sums (CUSUM: Page 1954, "Continuous inspection
schemes", Biometrika 41). With z the distance of a day from the reference, in standard errors,

    up = max(0, up + z - SLACK),   down = max(0, down - z - SLACK)

and the chart alarms when a sum passes its threshold. A CUSUM adds up small shifts over days, which a test of single days misses,
and the day on which its sum left zero estimates when the change began.

Two numbers are watched in this way:

- agreement: the share of pairs for which the student has the judge's tier. z = (share - reference) / standard error.
- a mix (of tiers, of scores): X = PSI / (1/n + 1/N) is about chi-square with bins - 1 degrees of freedom for n pairs of the day and
  N of the reference (see lore.label.drift); z is its distance from its mean, in standard deviations; only upwards.

Pairs of one query are alike, and days differ more than their numbers of pairs say (weekdays). So n and N are divided by a design
effect, the largest of 1, that of queries and that of days in the reference (proportions: Laney 2002, "Improved control charts for
attributes"; mixes: the mean generalized design effect, Rao and Scott 1981, "The analysis of categorical data from complex sample
surveys", JASA 76).

The threshold is simulated: charts without a change, with the same numbers of pairs, over the horizon, each with a reference of its
own, because an estimated reference makes alarms much more frequent (Jones, Champ and Rigdon 2004, "The run length distribution of
the CUSUM with estimated parameters"). The user chooses the chance that any of all charts alarms within the horizon without a
change; each chart gets its part of it (Sidak).
"""

from dataclasses import dataclass, field
from functools import cache
from math import ceil

import numpy as np
from scipy.stats import norm

from lore.label.drift import psi

SLACK = 0.75
"""Standard errors of a day that are no shift. More than the usual 0.5: what an estimated reference is off by adds up over the
horizon, so with 0.5 the thresholds are so high that every shift is seen later."""
LEAST_DAY_PAIRS = 10
"""Effective pairs of a day below which it says nothing."""
LEAST_REFERENCE_PAIRS = 100
LEAST_REFERENCE_DAYS = 5
LEAST_EXPECTED = 5.0
"""Pairs a day in a bin of a mix; bins with fewer are joined with their neighbor (the usual rule for chi-square)."""
LEVEL = 0.95
REPLICATES, PAST_QUANTILE = 4000, 60
"""Simulated charts: at least so many, and so many expected past the threshold."""
MOST_REPLICATES = 200_000
SEED = 20_260_101


@dataclass
class Chart:
    """One number over days, all arrays [D]. Days are in days since 1970."""

    name: str
    kind: str
    """agreement or mix."""
    days: np.ndarray
    values: np.ndarray
    """Share of agreeing pairs, or PSI against the reference; nan for a day without enough pairs."""
    pairs: np.ndarray
    low: np.ndarray = field(default_factory=lambda: np.empty(0))
    high: np.ndarray = field(default_factory=lambda: np.empty(0))
    """95 % interval of a share; of a mix, high is the PSI that chance stays below on 95 % of days, and low is nan."""
    sums: np.ndarray = field(default_factory=lambda: np.empty(0))
    """The larger of the two cumulative sums; nan in the reference."""
    reference: float = float("nan")
    design_effect: float = 1.0
    threshold: float = float("nan")
    alarm: int | None = None
    """Day of the first alarm."""
    began: int | None = None
    """First day of the change, as the sums estimate it."""
    rises: bool = False
    """Direction of the alarm."""
    why_not: str | None = None
    """Why the chart is not watched; None if it is."""


@dataclass(frozen=True)
class Watch:
    """What a user chooses. reference: the days of the reference; chance: of any false alarm of all charts in `horizon` days."""

    reference: frozenset[int]
    horizon: int = 200
    chance: float = 0.05
    charts: int = 5
    """Numbers that share the chance: charts and probes."""

    @property
    def chance_of_one(self) -> float:
        return 1 - (1 - self.chance) ** (1 / self.charts)


def agreement_chart(name: str, day: np.ndarray, query: np.ndarray, hit: np.ndarray, watch: Watch) -> Chart:
    """day, query [N]: integers; hit [N]: whether student and judge have one tier."""
    days, at = np.unique(day, return_inverse=True)
    pairs, hits = np.bincount(at), np.bincount(at, hit)
    is_reference = np.isin(days, list(watch.reference))
    found = Chart(name, "agreement", days, hits / pairs, pairs)
    in_reference = is_reference[at]
    whole = int(in_reference.sum())
    effect = 1.0
    if whole:
        p = (float(hit[in_reference].sum()) + 0.5) / (whole + 1)
        groups = _groups(at[in_reference], query[in_reference])
        rest = np.bincount(groups, hit[in_reference] - p)
        by_query = float((rest**2).sum()) / (whole * p * (1 - p))
        own = pairs[is_reference]
        by_day = float(((hits[is_reference] - p * own) ** 2 / (own * p * (1 - p))).sum()) / max(1, len(own) - 1)
        effect = max(1.0, by_query, by_day)
        found.reference, found.design_effect = hits[is_reference].sum() / whole, effect
    found.low, found.high = wilson(found.values, pairs / effect)
    if not _can_watch(found, whole / effect, is_reference, watch):
        return found
    later = ~is_reference & (pairs / effect >= LEAST_DAY_PAIRS) & (days > max(watch.reference))
    error = np.sqrt(p * (1 - p) * effect / pairs)
    z = (found.values - p) / error
    n = int(np.median(pairs[later | is_reference]) / effect)
    found.threshold = agreement_threshold(_rounded(p, 2), _digits(n), _digits(whole / effect), watch.horizon, watch.chance_of_one)
    _add_up(found, np.where(later, z, np.nan), both=True)
    return found


def mix_chart(name: str, day: np.ndarray, query: np.ndarray, part: np.ndarray, parts: int, watch: Watch) -> Chart:
    """part [N]: the bin of each pair, below `parts`."""
    days, at = np.unique(day, return_inverse=True)
    pairs = np.bincount(at)
    is_reference = np.isin(days, list(watch.reference))
    found = Chart(name, "mix", days, np.full(len(days), np.nan), pairs)
    in_reference = is_reference[at]
    whole = int(in_reference.sum())
    if not whole:
        found.low = found.high = np.full(len(days), np.nan)
        _can_watch(found, 0, is_reference, watch)
        return found
    joined = joined_bins(np.bincount(part[in_reference], minlength=parts), LEAST_EXPECTED / np.median(pairs))
    part, bins = joined[part], int(joined.max()) + 1
    counts = np.zeros((len(days), bins))
    np.add.at(counts, (at, part), 1)
    before = counts[is_reference].sum(axis=0)
    shares = (before + 0.5) / (before + 0.5).sum()
    groups = _groups(at[in_reference], query[in_reference])
    inside = np.zeros((int(groups.max()) + 1, bins))
    np.add.at(inside, (groups, part[in_reference]), 1)
    rest = inside - inside.sum(axis=1, keepdims=True) * shares
    freedom = max(1, bins - 1)
    by_query = float(((rest**2).sum(axis=0) / (whole * shares)).sum()) / freedom
    own = counts[is_reference]
    n_own = own.sum(axis=1, keepdims=True)
    by_day = float(((own - n_own * shares) ** 2 / (n_own * shares)).sum()) / (freedom * max(1, len(own) - 1))
    found.design_effect = effect = max(1.0, by_query, by_day)
    # A reference day is compared with the others: the whole reference holds it.
    found.values = np.asarray([psi(before - row if of else before, row) for row, of in zip(counts, is_reference, strict=True)])
    noise = effect * (1 / pairs + 1 / whole)
    found.low, found.high = np.full(len(days), np.nan), noise * (freedom + norm.ppf(LEVEL) * np.sqrt(2 * freedom))
    found.reference = 0.0
    if bins < 2:
        found.why_not = "all pairs are alike"
        found.sums = np.full(len(days), np.nan)
        return found
    if not _can_watch(found, whole / effect, is_reference, watch):
        return found
    later = ~is_reference & (pairs / effect >= LEAST_DAY_PAIRS) & (days > max(watch.reference))
    z = (found.values / noise - freedom) / np.sqrt(2 * freedom)
    n = int(np.median(pairs[later | is_reference]) / effect)
    found.threshold = mix_threshold(bins, _digits(n), _digits(whole / effect), watch.horizon, watch.chance_of_one)
    _add_up(found, np.where(later, z, np.nan), both=False)
    return found


def joined_bins(counts: np.ndarray, least: float) -> np.ndarray:
    """For each bin the number of the joined bin that it falls into; each of these has at least the share `least`."""
    shares = counts / max(1, counts.sum())
    joined, number, held = np.zeros(len(counts), np.int64), 0, 0.0
    for at, share in enumerate(shares):
        joined[at] = number
        held += share
        if held >= least:
            number, held = number + 1, 0.0
    if held < least and number:  # what is left at the end
        joined[joined == number] = number - 1
    return joined


def wilson(shares: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of shares of so many effective pairs; nan where there are none."""
    z = norm.ppf(0.5 + LEVEL / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        middle = (shares + z**2 / (2 * pairs)) / (1 + z**2 / pairs)
        half = z * np.sqrt(shares * (1 - shares) / pairs + z**2 / (4 * pairs**2)) / (1 + z**2 / pairs)
    return middle - half, middle + half


@cache
def agreement_threshold(share: float, pairs: int, reference_pairs: int, horizon: int, chance: float) -> float:
    """The threshold that a chart of agreement passes with the chance within the horizon if nothing changes. share: of the
    reference; pairs, reference_pairs: effective ones, of a day and of the reference."""
    draw, replicates = np.random.default_rng(SEED), _replicates(chance)
    edge = 0.5 / (reference_pairs + 1)
    reference = np.clip(draw.binomial(reference_pairs, share, replicates) / reference_pairs, edge, 1 - edge)
    error = np.sqrt(reference * (1 - reference) / pairs)
    up, down, most = np.zeros((3, replicates))
    for _ in range(horizon):
        z = (draw.binomial(pairs, share, replicates) / pairs - reference) / error
        up = np.maximum(0, up + z - SLACK)
        down = np.maximum(0, down - z - SLACK)
        most = np.maximum(most, np.maximum(up, down))
    return float(np.quantile(most, 1 - chance))


@cache
def mix_threshold(bins: int, pairs: int, reference_pairs: int, horizon: int, chance: float) -> float:
    """As agreement_threshold, for a mix. In the coordinates in which a multinomial has unit variance, the shares of n pairs are
    normal with variance 1/n, and PSI is the squared distance of two of them."""
    draw, replicates, freedom = np.random.default_rng(SEED), _replicates(chance), bins - 1
    reference = draw.standard_normal((replicates, freedom)) / np.sqrt(reference_pairs)
    noise = 1 / pairs + 1 / reference_pairs
    up, most = np.zeros((2, replicates))
    for _ in range(horizon):
        distance = ((draw.standard_normal((replicates, freedom)) / np.sqrt(pairs) - reference) ** 2).sum(axis=1)
        up = np.maximum(0, up + (distance / noise - freedom) / np.sqrt(2 * freedom) - SLACK)
        most = np.maximum(most, up)
    return float(np.quantile(most, 1 - chance))


def _replicates(chance: float) -> int:
    return min(MOST_REPLICATES, max(REPLICATES, ceil(PAST_QUANTILE / chance)))


def _can_watch(chart: Chart, reference_pairs: float, is_reference: np.ndarray, watch: Watch) -> bool:
    """Notes in the chart why it is not watched."""
    chart.sums = np.full(len(chart.days), np.nan)
    days = int(is_reference.sum())
    if days < len(watch.reference) or days < LEAST_REFERENCE_DAYS:
        chart.why_not = f"{days} of {max(len(watch.reference), LEAST_REFERENCE_DAYS)} reference days have pairs"
    elif reference_pairs < LEAST_REFERENCE_PAIRS:
        chart.why_not = f"the reference has {reference_pairs:.0f} effective pairs, and {LEAST_REFERENCE_PAIRS} are needed"
    return chart.why_not is None


def _add_up(chart: Chart, z: np.ndarray, *, both: bool) -> None:
    """Fills sums, alarm and began. Days without z leave the sums as they are."""
    up = down = 0.0
    since_up = since_down = None
    for at, one in enumerate(z):
        if np.isnan(one):
            continue
        up, down = max(0.0, up + one - SLACK), max(0.0, down - one - SLACK) if both else 0.0
        day = int(chart.days[at])
        since_up = None if up == 0 else day if since_up is None else since_up
        since_down = None if down == 0 else day if since_down is None else since_down
        chart.sums[at] = max(up, down)
        if chart.alarm is None and chart.sums[at] > chart.threshold:
            chart.alarm, chart.rises = day, up >= down
            chart.began = since_up if chart.rises else since_down


def _groups(day: np.ndarray, query: np.ndarray) -> np.ndarray:
    """[N] integers from 0, one per query of a day."""
    return np.unique(day.astype(np.int64) * (int(query.max()) + 1) + query, return_inverse=True)[1].reshape(-1)


def _digits(number: float) -> int:
    """Two digits of a number, so that thresholds are simulated once for charts that are alike."""
    number = max(1, int(number))
    power = 10 ** max(0, len(str(number)) - 2)
    return number // power * power


def _rounded(share: float, digits: int) -> float:
    return min(1 - 10.0**-digits / 2, max(10.0**-digits / 2, round(share, digits)))
