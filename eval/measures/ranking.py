"""Ranking metrics: AUC of relevant against irrelevant, and nDCG of a query's items. A tie counts as half of each order."""

from collections.abc import Callable

import numpy as np

SAME = 12  # decimals: sums of the same probabilities in another order must give equal scores


def auc(relevant: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[...] weighted share of (relevant, irrelevant) pairs in which the relevant one has the higher score; a tie counts half.
    This is the area under the ROC curve, exact for weights [..., N]. relevant [N] bool, scores [N]. nan if one side is empty."""
    return auc_of(relevant, scores)(weights)


def auc_of(relevant: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """`auc` as a function of the weights. It sorts once and serves many weightings."""
    order = np.argsort(np.round(scores, SAME), kind="stable")
    ranked, side = np.round(scores, SAME)[order], np.asarray(relevant, dtype=bool)[order]
    upper, lower = order[side], order[~side]
    beaten = np.searchsorted(ranked[~side], ranked[side], "left")
    reached = np.searchsorted(ranked[~side], ranked[side], "right")
    tied = bool((beaten != reached).any())

    def under(weights: np.ndarray) -> np.ndarray:
        # below[..., i]: total weight of the i lowest irrelevant scores.
        below = np.zeros((*weights.shape[:-1], len(lower) + 1))
        np.cumsum(weights[..., lower], axis=-1, out=below[..., 1:])
        upper_weights = weights[..., upper]
        won = np.einsum("...n,...n->...", upper_weights, below[..., beaten])
        if tied:
            won = (won + np.einsum("...n,...n->...", upper_weights, below[..., reached])) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return won / (upper_weights.sum(axis=-1) * below[..., -1])

    return under


def ndcg_by_query(gains: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """[Q] nDCG of each group: gains [N] discounted by log2(rank + 1) in the order of scores [N], divided by the best order's.

    Items of equal score share the mean gain of their ranks (McSherry and Najork 2008), as in scikit-learn's ndcg_score. nan for
    a group without any gain, because then all orders are equal.
    """
    groups = np.asarray(groups, dtype=np.int64)
    queries = int(groups.max()) + 1 if groups.size else 0
    starts = np.concatenate([[0], np.cumsum(np.bincount(groups, minlength=queries))])
    scores = np.round(scores, SAME)

    def discounted(order: np.ndarray, values: np.ndarray) -> np.ndarray:
        rank = np.arange(len(order)) - starts[groups[order]]
        return np.bincount(groups[order], values / np.log2(rank + 2), queries)

    order = np.lexsort((-scores, groups))
    new = (np.diff(groups[order], prepend=-1) != 0) | (np.diff(scores[order], prepend=np.nan) != 0)
    tie = np.cumsum(new) - 1
    shared = (np.bincount(tie, gains[order]) / np.bincount(tie))[tie] if groups.size else gains
    best = np.lexsort((-gains, groups))
    with np.errstate(divide="ignore", invalid="ignore"):
        return discounted(order, shared) / discounted(best, gains[best])
