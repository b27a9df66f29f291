"""What a wrong verdict costs. Pure numpy: the evaluation reports it, training can be rewarded by it."""

from collections.abc import Sequence

import numpy as np


def cost_matrix(relevant: Sequence[bool], *, border_cost: float = 1.0, optimism_cost: float = 1.0) -> np.ndarray:
    """[K, K + 1] cost of each verdict (column) for each label (row), tiers worst first; the last column is no verdict.

    One for each tier of distance, border_cost more where the verdict stands on the other side of relevant, all of it
    times optimism_cost where the verdict is above the label. No verdict costs the most that the label's row holds.
    relevant [K]: rubric.relevant_mask.
    """
    side = np.asarray(relevant, dtype=bool)
    tier = np.arange(len(side))
    cost = np.abs(tier[:, None] - tier) + border_cost * (side[:, None] != side)
    cost = np.where(tier > tier[:, None], optimism_cost * cost, cost)
    return np.column_stack([cost, cost.max(axis=1)])
