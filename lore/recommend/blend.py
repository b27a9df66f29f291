"""Recommenders that are added up: a trained model knows the order of a history, counts know items that few have taken.

The score of an item is the mean of the shares that the recommenders give it (a linear mixture of distributions). Left out: weights
that are learned, and mixtures by the length of the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lore.recommend.histories import Recommender


@dataclass(frozen=True)
class Blend:
    """weights: of the recommenders, in their order."""

    name: str
    of: Sequence[Recommender]
    weights: Sequence[float]

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        found = [weight * one.shares(histories) for one, weight in zip(self.of, self.weights, strict=True)]
        return np.sum(found, axis=0) / sum(self.weights)

    def shares(self, histories: list[np.ndarray]) -> np.ndarray:
        return self.scores(histories)
