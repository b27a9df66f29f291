"""Personal taste orders the items of a page within a tier of relevance, and never across tiers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def personal_order(tiers: Sequence[int], scores: Sequence[float]) -> np.ndarray:
    """[N] places in the new order: the higher tier first, within a tier the higher score.

    tiers [N]: number of the judged tier, higher is more relevant. scores [N]: of a recommender for this shopper; nan for an item
    that it does not know, which follows the known ones of its tier. Equal items stay in the given order.
    """
    tier, score = np.asarray(tiers, dtype=np.int64), np.asarray(scores, dtype=np.float64)
    if tier.shape != score.shape or tier.ndim != 1:
        raise ValueError(f"{tier.shape} tiers and {score.shape} scores; expected one of each per item")
    return np.lexsort((-np.nan_to_num(score, nan=0.0), np.isnan(score), -tier))
