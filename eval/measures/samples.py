"""pass@k and majority@k from n sampled answers per pair. Both are unbiased: the mean over all choices of k of the n answers.

A format failure is never the gold tier and votes for no tier. k format failures have no majority and count as wrong.
"""

from functools import lru_cache
from math import comb

import numpy as np


def pass_at(n: int, right: int, k: int) -> float:
    """Probability that k of n answers, `right` of them right, contain a right one (Chen et al. 2021, equation 1)."""
    return 1.0 - comb(n - right, k) / comb(n, k)


def majority_at(right: int, wrong: list[int], failures: int, k: int) -> float:
    """Probability that the gold tier has the most votes among k answers drawn at random. If t tiers tie, each wins 1 / t.
    right: votes for the gold tier among all answers; wrong: votes for each other tier."""
    n = right + sum(wrong) + failures
    return float(_majorities(right, tuple(sorted(filter(None, wrong))), failures)[k]) / comb(n, k)


@lru_cache(maxsize=65536)
def _majorities(right: int, wrong: tuple[int, ...], failures: int) -> np.ndarray:
    """[n + 1], indexed by k: number of choices of k answers that the gold tier wins. A win shared by t tiers counts 1 / t.

    For choices in which the gold tier has m votes, others[t, x] counts those in which the other tiers have x votes in total, t of
    them have m votes and none has more. It is a product of one polynomial in x per tier.
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


