"""What a student learns from each pair: probabilities per tier from judge and raters, how strongly the pair counts, and when it is
visited.

Everything here is a pure function of numpy arrays. N pairs, K tiers, worst first. lore.distill.rows reads the labels.
"""

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from lore.rubric.rubric import Rubric

WINDOW = 16
"""Batches whose groups are sorted by length together."""


def tier_gains(rubric: Rubric) -> np.ndarray:
    """[K] gain of each tier, from 0 for the worst to 1 for the best: its `value` if all tiers have growing ones, else its place."""
    values = np.asarray([np.nan if tier.value is None else tier.value for tier in rubric.tiers], dtype=np.float64)
    if np.isnan(values).any() or (np.diff(values) <= 0).any():
        values = np.arange(len(rubric.tiers), dtype=np.float64)
    return (values - values[0]) / (values[-1] - values[0])


def expected_gain(probabilities: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """[N] mean gain under probabilities [N, K]; gains [K]."""
    return np.asarray(probabilities, dtype=np.float64) @ gains


def border_targets(tiers: np.ndarray, n_tiers: int, border: float) -> np.ndarray:
    """[N, K] targets of a judge that gave only a tier [N]: `border` of the mass goes over each border to the neighboring tier.

    A tier says nothing about how near its borders the pair lies, and a one-hot target says "far from both". border: below 0.5, so
    that the tier itself keeps the most mass between two neighbors; 0 is one-hot.
    """
    near = np.abs(np.arange(n_tiers)[:, None] - np.arange(n_tiers)) == 1
    rows = border * near
    return (rows + np.diag(1 - rows.sum(axis=1)))[np.asarray(tiers, dtype=np.int64)]


def two_readings(first: np.ndarray, second: np.ndarray, least_weight: float) -> tuple[np.ndarray, np.ndarray]:
    """(targets [N, K], weights [N]) from a judge's probabilities [N, K] under two prompt orders.

    The target is their mean. The weight is 1 minus their total variation distance, and at least `least_weight`: where the order of
    the prompt moves the verdict, the judge does not know it. A pair without a second reading (nan) keeps the first and weight 1.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    alone = np.isnan(second).any(axis=1)
    second = np.where(alone[:, None], first, second)
    distance = np.abs(first - second).sum(axis=1) / 2
    return (first + second) / 2, np.maximum(1 - distance, least_weight)


def human_targets(tiers: np.ndarray, distributions: list[dict[str, float] | None], tier_ids: list[str]) -> np.ndarray:
    """[N, K] targets of human labels: the raters' distribution where a pair has one, else all mass on its tier [N]."""
    targets = np.eye(len(tier_ids))[np.asarray(tiers, dtype=np.int64)]
    for row, distribution in enumerate(distributions):
        if distribution:
            shares = np.asarray([distribution.get(tier, 0.0) for tier in tier_ids])
            targets[row] = shares / shares.sum()
    return targets


def even_rates(grades: np.ndarray, bins: int, most_repeats: float) -> np.ndarray:
    """[N] expected visits per epoch, mean 1, that make the grades [N] in [0, 1] uniform over `bins` bins of equal width.

    A shop's log is mostly perfect matches, and a student that sees few others learns no borders. Rows of a nearly empty bin are
    visited at most `most_repeats` times as often as on average; the rest of their share goes to the other bins.
    """
    grades = np.clip(np.asarray(grades, dtype=np.float64), 0, 1)
    place = np.minimum((grades * bins).astype(np.int64), bins - 1)
    return _capped(1 / np.bincount(place, minlength=bins)[place], np.ones(len(place)), most_repeats)


def _capped(values: np.ndarray, weights: np.ndarray, most: float) -> np.ndarray:
    """The values [N] times one factor, cut at `most` (1 or more), so that their mean under weights [N] is 1."""
    cut = np.zeros(len(values), dtype=bool)
    while True:
        factor = (weights.sum() - most * weights[cut].sum()) / (weights * values)[~cut].sum() if not cut.all() else 0.0
        over = ~cut & (factor * values > most)
        if not over.any():
            return np.where(cut, most, factor * values)
        cut |= over


def traffic_weights(rates: np.ndarray, frequency: np.ndarray, strength: float, most: float) -> np.ndarray:
    """[N] weights that lead from sampled rows back to traffic; their mean over the visits is 1.

    rates [N]: visits per epoch; frequency [N]: searches of the pair's query, nan where unknown (counts as the mean). The weight is
    (frequency / rate) ** strength: 1 gives the loss of the shop's traffic, 0 that of the sampled rows. At most `most` times the
    mean, because a few head queries would otherwise be the whole gradient.
    """
    frequency = np.asarray(frequency, dtype=np.float64)
    known = frequency[~np.isnan(frequency)]
    usual = known.mean() if known.size and known.mean() > 0 else 1.0
    share = np.where(np.isnan(frequency), usual, frequency) / usual
    return _capped((np.maximum(share, 1e-9) / rates) ** strength, rates, most)


def rationale_vectors(rationales: list[str | None], size: int, seed: int) -> np.ndarray:
    """[N, D] unit vectors of rationales, D at most `size`: a truncated SVD of their TF-IDF (latent semantic analysis).
    Zeros without a rationale."""
    known = [at for at, text in enumerate(rationales) if text]
    found = np.zeros((len(rationales), 1), dtype=np.float32)
    if known:
        words = TfidfVectorizer(max_features=20_000, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
        counts = words.fit_transform([rationales[at] for at in known])
        size = min(size, counts.shape[1] - 1, len(known) - 1)
        if size >= 1:
            found = np.zeros((len(rationales), size), dtype=np.float32)
            found[known] = normalize(TruncatedSVD(size, random_state=seed).fit_transform(counts))
    return found


def grouped_order(
    queries: np.ndarray, lengths: np.ndarray, rates: np.ndarray, *, batch_size: int, steps: int, items: int, seed: int
) -> np.ndarray:
    """[steps * batch_size] row numbers: the order of training, fixed before step 0.

    Rows of one query come side by side, up to `items` at a time, so that a batch holds several items of each of its queries and
    the loss can compare them. queries [N]: an integer per query. rates [N]: expected visits per epoch; the fraction is drawn.
    lengths [N]: the groups of WINDOW batches are sorted by their longest row before they are cut into batches, which then come in
    random order, so that a batch has little padding; within a batch the longest group comes first.
    """
    rng = np.random.default_rng(seed)
    queries, lengths, rates = np.asarray(queries), np.asarray(lengths), np.asarray(rates, dtype=np.float64)
    found, total = [], 0
    while total < steps * batch_size:
        times = np.floor(rates + rng.random(len(rates))).astype(np.int64)
        rows = np.repeat(np.arange(len(rates)), times)
        if not rows.size:
            continue
        turn = np.arange(rows.size) - np.repeat(np.cumsum(times) - times, times)  # two visits of a row are never in one group
        order = np.lexsort((rng.random(rows.size), queries[rows], turn))
        rows, turn = rows[order], turn[order]
        first = np.append(True, (np.diff(queries[rows]) != 0) | (np.diff(turn) != 0))
        within = np.arange(rows.size) - np.flatnonzero(first)[np.cumsum(first) - 1]
        group = np.cumsum(first | (within % items == 0)) - 1
        mixed = rng.permutation(group[-1] + 1)[group]
        order = np.argsort(mixed, kind="stable")
        rows, mixed = rows[order], mixed[order]
        longest = np.zeros(mixed[-1] + 1, dtype=np.int64)
        np.maximum.at(longest, mixed, lengths[rows])
        first = -total % batch_size  # where the first batch begins that lies in this pass over the rows alone
        for start in range(first, rows.size - batch_size + 1, WINDOW * batch_size):
            batches = min(WINDOW, (rows.size - start) // batch_size)
            part = slice(start, start + batches * batch_size)
            order = np.lexsort((mixed[part], -longest[mixed[part]])).reshape(batches, batch_size)
            rows[part] = rows[part][rng.permutation(order).reshape(-1)]
        found.append(rows)
        total += rows.size
    return np.concatenate(found)[: steps * batch_size]
