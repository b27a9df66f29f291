"""Prediction-powered inference for weighted means of clustered rows. It combines a judge's values of every row with human
labels of a random sample into an unbiased mean with an interval, for a judge of any quality.

With f_i the judge's value of row i, y_i its label, w_i its weight and p_i the probability that it was drawn for rating,

    theta = ybar + lambda (F - fbar)

where F is the w-weighted mean of f over all rows, and ybar and fbar are the means over the rated rows with weights w_i / p_i.
lambda = 0 is the classical estimate from the rated rows alone, lambda = 1 the judge's mean corrected by its mean error. Source:
Angelopoulos et al. 2023, arXiv 2301.09633 (theta at lambda = 1), and PPI++, arXiv 2311.01453 (power tuning: the lambda of least
variance). They take F over the unrated rows alone; this is the same estimate with another lambda if all p are equal. Survey
statistics calls theta the regression estimator. It is unbiased up to terms in 1 / (rated clusters).

The variance is that of the clusters' summed influences, so rows of one query may depend on each other in any way:

    influence_c = A_c + lambda B_c,   variance = sum_c influence_c^2,   lambda* = -sum A_c B_c / sum B_c^2, within [0, 1]

A_c is the cluster's part of ybar: (w_i / p_i) (y_i - ybar) of its rated rows, over the sum of w / p of all rated rows. B_c is
its part of F - fbar. The variance depends on the question (`target`):

- "log": the mean of exactly these rows, if all were rated. F is then known, and a row drawn with probability p keeps (1 - p)
  of its variance.
- "traffic": the mean over all queries that users could ask, of which these are a random sample.

`interval` describes the corrections for the few hundred rows that people rate; the papers do not have them.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import t as student

from lore.eval.measures.bootstrap import LEVEL, Estimate

Target = Literal["log", "traffic"]
UNSEEN_ERRORS = 3.69
"""Expected errors at which a sample still shows none in 2.5 % of the draws (Poisson): -ln 0.025."""


@dataclass(frozen=True)
class Parts:
    """The terms of a weighted mean. C clusters, in the same order for all means that are compared. Parts subtract: B - A holds
    the terms of the difference of two means, cluster by cluster."""

    judged: float
    """F: the judge's mean over all rows."""
    rated: float
    """ybar: the labels' mean over the rated rows; nan if no row is rated."""
    gap: float
    """F - fbar: the judge's mean over all rows minus its mean over the rated rows."""
    judged_C: np.ndarray
    """Influences on F; zero if the target is the log."""
    rated_C: np.ndarray
    """A_c."""
    gap_C: np.ndarray
    """B_c."""
    one_error: float
    """How far one wrong value among the rated rows that vary moves the mean."""
    clusters: float
    """Effective number of rated clusters: sum(v)^2 / sum(v^2) of their weights v (Kish)."""

    def __sub__(self, other: "Parts") -> "Parts":
        return Parts(
            self.judged - other.judged,
            self.rated - other.rated,
            self.gap - other.gap,
            self.judged_C - other.judged_C,
            self.rated_C - other.rated_C,
            self.gap_C - other.gap_C,
            max(self.one_error, other.one_error),
            min(self.clusters, other.clusters),
        )


@dataclass(frozen=True)
class Powered:
    """Three estimates of one mean, or of the difference of two means."""

    judge: Estimate
    """The judge alone: biased by its errors, which its interval does not include."""
    rated: Estimate
    """The rated rows alone."""
    powered: Estimate
    """The prediction-powered estimate from both."""
    power: float
    """lambda: 0 ignores the judge, 1 uses its values in full."""
    gain: float
    """Factor on the number of rated rows that the classical estimate would need for an equally short interval; nan without
    intervals."""


def parts(
    judged: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    clusters: np.ndarray,
    chances: np.ndarray | None = None,
    *,
    n_clusters: int | None = None,
    target: Target = "log",
) -> Parts:
    """judged, labels, weights, clusters [N]: f; y, nan for a row that is not rated; w > 0; integers from 0. chances [N]: p in
    (0, 1], by default the share of rated rows. n_clusters: C, if rows of the other means have clusters that these rows lack."""
    n_clusters = int(clusters.max()) + 1 if n_clusters is None else n_clusters
    rated = ~np.isnan(labels)
    share = weights / weights.sum()
    mean = float(share @ judged)
    judged_C = np.zeros(n_clusters)
    if target == "traffic":
        judged_C = np.bincount(clusters, share * (judged - mean), n_clusters)
    if not rated.any():
        nothing = np.zeros(n_clusters)
        return Parts(mean, np.nan, np.nan, judged_C, nothing, nothing, np.nan, 0.0)
    f, y, of = judged[rated], labels[rated], clusters[rated]
    p = np.full(len(f), rated.mean()) if chances is None else chances[rated]
    w = weights[rated] / p
    w /= w.sum()
    ybar, fbar = float(w @ y), float(w @ f)
    varies = w * np.sqrt(1 - p) if target == "log" else w
    rated_C = np.bincount(of, varies * (y - ybar), n_clusters)
    gap_C = judged_C - np.bincount(of, varies * (f - fbar), n_clusters)
    if not varies.any():
        return Parts(mean, ybar, mean - fbar, judged_C, rated_C, gap_C, 0.0, np.inf)
    mass = np.bincount(of, varies, n_clusters)
    one_error, effective = varies @ varies / varies.sum(), mass.sum() ** 2 / (mass @ mass)
    return Parts(mean, ybar, mean - fbar, judged_C, rated_C, gap_C, float(one_error), float(effective))


def solve(parts: Parts, power: float | None = None) -> Powered:
    """The three estimates. power: a fixed lambda instead of the tuned one."""
    judge = interval(parts.judged, parts.judged_C, np.count_nonzero(parts.judged_C))
    if np.isnan(parts.rated):
        return Powered(judge, Estimate(np.nan), Estimate(np.nan), np.nan, np.nan)
    used = tuned_power(parts) if power is None else power
    fitted = 2 if power is None and used > 0 else 1
    rated = interval(parts.rated, parts.rated_C, parts.clusters, one_error=parts.one_error)
    powered = interval(
        parts.rated + used * parts.gap, parts.rated_C + used * parts.gap_C, parts.clusters, fitted, parts.one_error
    )
    width = powered.high - powered.low
    gain = float(((rated.high - rated.low) / width) ** 2) if width > 0 else np.nan
    return Powered(judge, rated, powered, used, gain)


def tuned_power(parts: Parts) -> float:
    """lambda*, from 0 to 1."""
    spread = float(parts.gap_C @ parts.gap_C)
    return float(np.clip(-(parts.rated_C @ parts.gap_C) / spread, 0.0, 1.0)) if spread > 0 else 0.0


def interval(value: float, influence_C: np.ndarray, clusters: float, fitted: int = 1, one_error: float = 0.0) -> Estimate:
    """value with its 95 % interval; without an interval if no degree of freedom is left after the fitted numbers.

    The normal interval is too short for a few hundred rated rows, and has length zero if the judge agrees with all of them. So
    the quantile is Student's t with two bounds on the degrees of freedom: the effective number of clusters minus the fitted
    numbers, and 2 (sum influence^2)^2 / sum influence^4, which is small if few rows carry the variance, such as ten errors of a
    good judge among 200 right values (Satterthwaite 1946, Biometrics Bulletin 2, with the fourth moment as the variance's
    variance). Half of the interval is at least UNSEEN_ERRORS * one_error, for errors that the sample may have missed.
    """
    freedom = clusters - fitted
    if not freedom >= 1:
        return Estimate(value)
    squares = influence_C**2
    if fourth := float(squares @ squares):
        freedom = min(freedom, 2 * float(squares.sum()) ** 2 / fourth)
    correction = clusters / (clusters - fitted) if np.isfinite(clusters) else 1.0
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * float(correction * squares.sum()) ** 0.5
    half = max(half, UNSEEN_ERRORS * one_error)
    return Estimate(value, value - half, value + half)
