"""Drift between two sets of labels: the population stability index (PSI) of the tier shares and of P(relevant).

    PSI = sum over bins of (now - before) * ln(now / before), with the bins' shares before and now

The usual reading comes from credit scoring: below 0.1 stable, up to 0.25 some drift, above it large drift. It is no test: between
two samples of the same labels PSI is about chi-square times (1 / n + 1 / m) (Yurdakul 2018, "Statistical Properties of Population
Stability Index"), so few pairs reach 0.1 by chance. `psi_noise` is the value that 95 % of such samples stay below.

P(relevant) is kept as a histogram over its log-odds, because most judges are nearly sure of most pairs and equal bins would put all
of them into the first and the last one. Its bins for PSI are the deciles of the labels before, as near as the histogram has them.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import chdtri

SMOOTHING = 0.5
"""Pairs added to each bin, before and now, so that an empty bin has a logarithm."""
STABLE, LARGE = 0.1, 0.25
LOG_ODDS = np.linspace(-10, 10, 201)
"""Edges of the histogram; beyond them lie probabilities below 0.00005 and above 0.99995."""
RELEVANCE_BINS = len(LOG_ODDS) + 1


def psi(before: Sequence[float], now: Sequence[float], smoothing: float = SMOOTHING) -> float:
    """Population stability index of two counts per bin, 0 for equal shares. nan if either has no pairs at all."""
    counts = [np.asarray(part, dtype=np.float64) for part in (before, now)]
    if counts[0].shape != counts[1].shape:
        raise ValueError(f"{len(before)} bins before and {len(now)} now")
    if not all(part.sum() > 0 for part in counts):
        return float("nan")
    first, second = ((part + smoothing) / (part + smoothing).sum() for part in counts)
    return float(((second - first) * np.log(second / first)).sum())


def psi_noise(bins: int, before: float, now: float) -> float:
    """The PSI that 95 % of two samples of the same labels stay below: bins, and pairs in each. Pairs count as independent."""
    return float(chdtri(bins - 1, 0.05) * (1 / before + 1 / now)) if bins > 1 and before and now else 0.0


def reading(value: float, noise: float) -> str:
    """What a PSI says, in words."""
    if np.isnan(value):
        return "no labels to compare"
    if value < STABLE:
        return "stable"
    if value <= noise:
        return "too few pairs to tell"
    return "some drift" if value <= LARGE else "large drift"


def relevance_counts(relevance: np.ndarray) -> np.ndarray:
    """[RELEVANCE_BINS] numbers of pairs by P(relevant) [N]; nan is left out."""
    known = np.clip(relevance[~np.isnan(relevance)], 1e-12, 1 - 1e-12)
    return np.bincount(np.searchsorted(LOG_ODDS, np.log(known / (1 - known)), side="right"), minlength=RELEVANCE_BINS)


def in_deciles(before: Sequence[int], now: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Both histograms in the deciles of the first. There are fewer than ten if one bin holds more than a tenth of the pairs."""
    first, second = np.asarray(before, dtype=np.float64), np.asarray(now, dtype=np.float64)
    ends = np.searchsorted(np.cumsum(first), first.sum() * np.arange(1, 10) / 10)
    starts = np.unique([0, *(ends + 1)])
    starts = starts[starts < len(first)]
    return np.add.reduceat(first, starts), np.add.reduceat(second, starts)
