"""pass@k and majority@k from n sampled answers to a pair, both unbiased: the mean over every choice of k of the n.

A format failure is never the gold tier and votes for nothing; k failures have no majority and count as wrong.
"""

from functools import lru_cache
from math import comb

import numpy as np


def pass_at(n: int, right: int, k: int) -> float:
    """Chance that k of n answers, `right` of them right, hold a right one (Chen et al. 2021, equation 1)."""
    return 1.0 - comb(n - right, k) / comb(n, k)


def majority_at(right: int, wrong: list[int], failures: int, k: int) -> float:
    """Chance that the gold tier has the most votes among k answers chosen at random; t tiers with as many votes share the
    win evenly. right: votes for the gold tier among all answers; wrong: votes for each other tier."""
    n = right + sum(wrong) + failures
    return float(_majorities(right, tuple(sorted(filter(None, wrong))), failures)[k]) / comb(n, k)


@lru_cache(maxsize=65536)
def _majorities(right: int, wrong: tuple[int, ...], failures: int) -> np.ndarray:
    """[n + 1] by k: how many choices of k answers the gold tier wins, a win shared by t tiers counting 1 / t.

    Of the choices in which the gold tier has m votes, others[t, x] counts those in which the other tiers have x votes together
    and t of them have m, none more: a product of one polynomial in x for each tier.
    """
    n = right + sum(wrong) + failures
    wins = np.zeros(n + 1)
    without_vote = np.asarray([comb(failures, x) for x in range(failures + 1)], dtype=np.float64)
    for m in range(1, right + 1):
        others = np.zeros((len(wrong) + 1, n + 1))
        others[0, : failures + 1] = without_vote
        for votes in wrong:
            fewer = np.asarray([comb(votes, x) for x in range(min(m - 1, votes) + 1)], dtype=np.float64)
            with_more = np.stack([np.convolve(row, fewer)[: n + 1] for row in others])
            if votes >= m:
                with_more[1:, m:] += comb(votes, m) * others[:-1, : n + 1 - m]
            others = with_more
        shared = (others / np.arange(1, len(wrong) + 2)[:, None]).sum(axis=0)
        wins[m:] += comb(right, m) * shared[: n + 1 - m]
    return wins


def counts_of_k(n: int) -> list[int]:
    """1, 2, 4, … below n, then n."""
    return [*(2**power for power in range(n.bit_length()) if 2**power < n), n]


