"""pass@k and majority@k from n sampled answers to a pair, both unbiased: the mean over every choice of k of the n.

A format failure is never the gold tier and votes for nothing; k failures have no majority and count as wrong.
"""

from collections import Counter
from functools import lru_cache
from math import comb

import numpy as np

from lore.errors import LoreError
from lore.eval.findings import SampleCurves
from lore.eval.measures.bootstrap import mean_estimate
from lore.eval.testset import Labelled
from lore.rubric import Rubric


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


def sample_curves(
    samples: dict[str, list[str | None]],
    test: Labelled,
    rubric: Rubric,
    *,
    temperature: float,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    weights: np.ndarray | None = None,
) -> SampleCurves:
    """Both curves over the pairs that were sampled, for k = 1, 2, 4, … up to n, with intervals over queries.

    samples: pair_id to its answers' tiers, None for a format failure, as many for every pair; weights [N] of the test's pairs.
    Raises LoreError where a pair is not tested or has another number of answers.
    """
    if foreign := [pair_id for pair_id in samples if pair_id not in test.position]:
        raise LoreError(f"{len(foreign)} sampled pairs are not tested, such as {foreign[0]}: their labels are not known.")
    sizes = Counter(len(tiers) for tiers in samples.values())
    if len(sizes) != 1 or 0 in sizes:
        found = ", ".join(f"{pairs} pairs with {n}" for n, pairs in sizes.items()) or "no pair"
        raise LoreError(f"pass@k needs as many sampled answers for every pair; found {found}. Draw them again with one number.")
    n, ks = sizes.most_common(1)[0][0], counts_of_k(sizes.most_common(1)[0][0])
    at = np.asarray([test.position[pair_id] for pair_id in samples])
    passed, won = np.zeros((len(at), len(ks))), np.zeros((len(at), len(ks)))
    for row, (place, tiers) in enumerate(zip(at, samples.values(), strict=True)):
        votes = Counter(tiers)
        right = votes.pop(rubric.tier_ids[test.gold[place]], 0)
        failures = votes.pop(None, 0)
        passed[row] = [pass_at(n, right, k) for k in ks]
        won[row] = [majority_at(right, list(votes.values()), failures, k) for k in ks]

    def by_k(table: np.ndarray) -> dict:
        given = None if weights is None else weights[at]
        options = {"weights": given, "samples": bootstrap_samples, "seed": seed}
        return {k: mean_estimate(table[:, column], test.groups[at], **options) for column, k in enumerate(ks)}

    return SampleCurves(n, temperature, len(at), by_k(passed), by_k(won))
