"""The cost of a wrong verdict, in pure numpy. The evaluation reports it, and a training reward can use it."""

from collections.abc import Sequence

import numpy as np


def cost_matrix(relevant: Sequence[bool], *, border_cost: float = 1.0, optimism_cost: float = 1.0) -> np.ndarray:
    """Cost [K, K + 1] of each verdict (column) for each label (row), tiers worst first. The last column is a missing verdict.

    The cost is 1 per tier of distance, plus border_cost if label and verdict differ in relevance. If the verdict is above the
    label, the sum is multiplied by optimism_cost. A missing verdict costs as much as the most expensive verdict of its row.
    relevant [K]: rubric.relevant_mask.
    """
    side = np.asarray(relevant, dtype=bool)
    tier = np.arange(len(side))
    cost = np.abs(tier[:, None] - tier) + border_cost * (side[:, None] != side)
    cost = np.where(tier > tier[:, None], optimism_cost * cost, cost)
    return np.column_stack([cost, cost.max(axis=1)])
