"""pass@k and majority@k of a judge's sampled answers, with intervals over queries."""

from collections import Counter

import numpy as np

from lore.eval.measures.bootstrap import mean_estimate
from lore.eval.measures.results import SampleCurves
from lore.eval.measures.samples import counts_of_k, majority_at, pass_at
from lore.eval.testset import Labeled
from lore.rubric.rubric import Rubric
from lore.support.errors import LoreError


def sample_curves(
    samples: dict[str, list[str | None]],
    test: Labeled,
    rubric: Rubric,
    *,
    temperature: float,
    bootstrap_samples: int = 1000,
    seed: int = 0,
    weights: np.ndarray | None = None,
) -> SampleCurves:
    """pass@k and majority@k over the sampled pairs, for k = 1, 2, 4, … up to n, with intervals over queries.

    samples: pair_id to the tiers of its answers, None for a format failure, equally many for every pair; weights [N] of the test
    pairs. Raises LoreError if a pair is not in the test or the numbers of answers differ.
    """
    if foreign := [pair_id for pair_id in samples if pair_id not in test.position]:
        raise LoreError(f"{len(foreign)} sampled pairs are not in the test, such as {foreign[0]}, so their labels are unknown.")
    sizes = Counter(len(tiers) for tiers in samples.values())
    if len(sizes) != 1 or 0 in sizes:
        found = ", ".join(f"{pairs} pairs with {n}" for n, pairs in sizes.items()) or "no pair"
        raise LoreError(f"pass@k needs equally many sampled answers for every pair; found {found}. Sample them again.")
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
